"""NCSN++ and DDPM++: the U-Nets of score-based modelling through SDEs.

DDPM's U-Net with any of: residual blocks of BigGAN type, FIR (anti-aliased) resampling, rescaled skip connections,
Fourier features of the noise level, and progressive growing at the input and the output. The same class with the
options of `NCSNpp(embedding_type="positional", fir=False, progressive_input="none", scale_by_sigma=False)` is DDPM++.

Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through stochastic
differential equations", ICLR 2021, arXiv:2011.13456, app. H.
"""

from __future__ import annotations

from collections.abc import Sequence

from sde_score.models.image_unet import ImageUNet, Parts
from sde_score.models.layers import activation
from sde_score.models.registry import MODELS
from sde_score.registry import suggest

_OPTIONS = {
    "embedding_type": ("fourier", "positional"),
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
}


@MODELS.register("ncsnpp")
class NCSNpp(ImageUNet):
    """The U-Net of NCSN++ and DDPM++, with every published option.

        out = network(x, c_noise, y), shape of x: the score (VE processes) or the predicted noise (VP processes)

    c_noise is the noise level sigma > 0 with Fourier features; with the positional embedding any number, published:
    999 t, or the index of sigma in a descending table. With `scale_by_sigma` the output is divided by that sigma.

    Args:
        channels: channels of the images.
        image_size: the nominal side. Images of another size, also H != W, are taken if they can be halved
            `len(ch_mult) - 1` times: attention sits at levels l where `image_size // 2**l` is in `attn_resolutions`,
            and in the middle.
        nf: base width; level l has width `nf * ch_mult[l]`.
        num_res_blocks: residual blocks per level on the way down; there is one more on the way up.
        dropout: rate inside the residual blocks.
        nonlinearity: elu, relu, lrelu or swish.
        embedding_type, fourier_scale: "fourier" (and the standard deviation of the frequencies) or "positional".
        conditional: whether the network is told the noise level at all.
        num_classes: number of classes; the call then needs `y`, where `num_classes` itself means "no class". The class
            adds a learned vector, at first zero, to the conditioning vector.
        resblock_type: "biggan" (resampling inside residual blocks) or "ddpm".
        resamp_with_conv: whether the resampling between "ddpm" blocks convolves.
        fir, fir_kernel: FIR resampling with these taps, instead of nearest neighbour and means.
        skip_rescale: divide every residual sum by sqrt(2).
        progressive: "none", "output_skip" (the images of all levels are summed) or "residual" (a feature pyramid is).
        progressive_input: "none", "input_skip" (reduced images join the features) or "residual" (learned reductions).
        progressive_combine: how reduced images join for "input_skip": "sum" or "cat".
        init_scale: scale of the initial weights of every last convolution; 0 stands for 1e-10.
        scale_by_sigma: divide the output by sigma.
        sigma_min, sigma_max, num_scales: the descending table, read for a positional c_noise with `scale_by_sigma`.
        centered: the data are in [-1, 1]; otherwise the network maps [0, 1] to [-1, 1] itself.
        gradient_checkpointing: recompute the activations of the residual blocks in the backward pass: less memory,
            more time.

    Raises:
        ValueError: unknown options; images of another channel count or that cannot be halved; c_noise out of range; y
            missing or unexpected.
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 32,
        *,
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        nonlinearity: str = "swish",
        embedding_type: str = "fourier",
        fourier_scale: float = 16.0,
        conditional: bool = True,
        num_classes: int | None = None,
        resblock_type: str = "biggan",
        resamp_with_conv: bool = True,
        fir: bool = True,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        skip_rescale: bool = True,
        progressive: str = "none",
        progressive_input: str = "residual",
        progressive_combine: str = "sum",
        init_scale: float = 0.0,
        scale_by_sigma: bool = True,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        num_scales: int = 1000,
        centered: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        _check_options(
            embedding_type=embedding_type,
            resblock_type=resblock_type,
            progressive=progressive,
            progressive_input=progressive_input,
            progressive_combine=progressive_combine,
        )
        parts = Parts(
            act=activation(nonlinearity),
            max_groups=_max_groups,
            emb_size=4 * nf,
            dropout=dropout,
            rescale=skip_rescale,
            init_scale=init_scale,
            shortcut_scale=1.0 if resblock_type == "biggan" else 0.1,
            taps=tuple(fir_kernel) if fir else None,
            resblock_type=resblock_type,
            resamp_with_conv=resamp_with_conv,
            progressive=progressive,
            progressive_input=progressive_input,
            progressive_combine=progressive_combine,
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
            embedding_type=embedding_type,
            fourier_scale=fourier_scale,
            scale_by_sigma=scale_by_sigma,
            sigmas=(sigma_min, sigma_max, num_scales),
            centered=centered,
        )


def _max_groups(width: int) -> int:
    return min(width // 4, 32)


def _check_options(**chosen: str) -> None:
    for name, value in chosen.items():
        if value not in _OPTIONS[name]:
            raise ValueError(f"NCSNpp({name}={value!r}): no such `{name}`.{suggest(value, _OPTIONS[name])}")
