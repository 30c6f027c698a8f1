"""DDPM: the U-Net of denoising diffusion probabilistic models.

Residual blocks with group norms of 32 groups, self-attention at chosen resolutions, plain resampling, a positional
embedding. Source: Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, arXiv:2006.11239, app. B.
"""

from __future__ import annotations

from collections.abc import Sequence

from sde_score.models.image_unet import ImageUNet, Parts
from sde_score.models.layers import activation
from sde_score.models.registry import MODELS


@MODELS.register("ddpm")
class DDPM(ImageUNet):
    """The U-Net of DDPM.

        out = network(x, c_noise, y), shape of x: the predicted noise (or the score, if trained so)

    c_noise is a number, published: the index of the noise level, or 999 t. With `scale_by_sigma` it must be the index
    in a descending table of sigmas, by which the output is divided.

    Args: as `NCSNpp`; here `init_scale` is always 0. The group norms have 32 groups if the width allows it (published
    widths are multiples of 32), else the next smaller number that divides the width. A block of width 32 or less thus
    has one channel in each group, and its norm takes away what the noise level and the class add: choose nf above 32.
    up_attention: on the way up, attention follows the "last" block of a level (Song et al.) or "each" (Ho et al.).

    Raises:
        ValueError: images of another channel count or that cannot be halved; c_noise out of range; y missing or
        unexpected.
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 32,
        *,
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        nonlinearity: str = "swish",
        conditional: bool = True,
        num_classes: int | None = None,
        resamp_with_conv: bool = True,
        up_attention: str = "last",
        scale_by_sigma: bool = False,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        num_scales: int = 1000,
        centered: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        if up_attention not in ("last", "each"):
            raise ValueError(f"DDPM(up_attention={up_attention!r}): `up_attention` must be 'last' or 'each'.")
        parts = Parts(
            act=activation(nonlinearity),
            max_groups=lambda width: 32,
            emb_size=4 * nf,
            dropout=dropout,
            shortcut_scale=0.1,
            resamp_with_conv=resamp_with_conv,
            up_attention=up_attention,
            checkpointing=gradient_checkpointing,
        )
        super().__init__(
            parts,
            channels=channels,
            image_size=image_size,
            nf=nf,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            attn_resolutions=attn_resolutions,
            conditional=conditional,
            num_classes=num_classes,
            scale_by_sigma=scale_by_sigma,
            sigmas=(sigma_min, sigma_max, num_scales),
            centered=centered,
        )
