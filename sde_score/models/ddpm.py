"""DDPM: the U-Net of denoising diffusion probabilistic models.

Residual blocks with group norms of 32 groups, self-attention at chosen resolutions, plain resampling, a positional
embedding. Source: Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, arXiv:2006.11239, app. B.

Shapes: x (B, C, H, W); c_noise (B,); y (B,) int64 or None; h (B, width, H / 2^l, W / 2^l) at level l; emb (B, 4 nf).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from sde_score.models.input_checks import check_unet_inputs, check_unet_sizes
from sde_score.models.layers import (
    AttentionBlock,
    ResidualBlock,
    activation,
    conv,
    group_norm,
    image_conv,
    needs_plain_attention,
)
from sde_score.models.ncsnpp import DownLevel, Middle, UpLevel
from sde_score.models.noise_level import NoiseConditioning, PositionalEmbedding, SigmaTable
from sde_score.models.registry import MODELS
from sde_score.models.resample import Downsample, DownsampleConv, Upsample, UpsampleConv


@MODELS.register("ddpm")
class DDPM(nn.Module):
    """The U-Net of DDPM.

        out = network(x, c_noise, y), shape of x: the predicted noise (or the score, if trained so)

    c_noise is a number, published: the index of the noise level, or 999 t. With `scale_by_sigma` it must be the index
    in a descending table of sigmas, by which the output is divided.

    Args: as `NCSNpp`; here `init_scale` is always 0. The group norms have 32 groups if the width allows it (published
    widths are multiples of 32), else the next smaller number that divides the width.
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
        super().__init__()
        if up_attention not in ("last", "each"):
            raise ValueError(f"DDPM(up_attention={up_attention!r}): `up_attention` must be 'last' or 'each'.")
        check_unet_sizes("DDPM", channels=channels, nf=nf, ch_mult=ch_mult, num_res_blocks=num_res_blocks,
                         num_classes=num_classes)  # fmt: skip
        self.channels = channels
        self.image_size = image_size
        self.num_classes = num_classes
        self.scale_by_sigma = scale_by_sigma
        self.up_attention = up_attention
        self.centered = centered
        self.act = activation(nonlinearity)
        self.sigma_table = SigmaTable(sigma_min, sigma_max, num_scales)

        emb_size = 4 * nf
        block = partial(ResidualBlock, act=self.act, max_groups=lambda width: 32, emb_size=emb_size, dropout=dropout,
                        shortcut_scale=0.1)  # fmt: skip
        attend = partial(AttentionBlock, max_groups=32, rescale=False)
        common = dict(checkpointing=gradient_checkpointing, rescale=False)

        self.conditioning = NoiseConditioning(PositionalEmbedding(nf), emb_size, self.act, conditional=conditional,
                                              num_classes=num_classes)  # fmt: skip

        levels = len(ch_mult)
        attended = [image_size // 2**level in attn_resolutions for level in range(levels)]
        self.conv_in = conv(channels, nf)
        self.down = nn.ModuleList()
        skips, width = [nf], nf
        for level, mult in enumerate(ch_mult):
            stage = DownLevel(**common)
            for _ in range(num_res_blocks):
                stage.blocks.append(block(width, nf * mult))
                width = nf * mult
                if attended[level]:
                    stage.attentions.append(attend(width))
                skips.append(width)
            if level < levels - 1:
                stage.reduce = DownsampleConv(width, width) if resamp_with_conv else Downsample()
                skips.append(width)
            self.down.append(stage)

        self.middle = Middle(
            block(width, width), attend(width), block(width, width), checkpointing=gradient_checkpointing
        )

        self.up = nn.ModuleList()
        for level in reversed(range(levels)):
            stage = UpLevel(act=self.act, **common)
            for _ in range(num_res_blocks + 1):
                stage.blocks.append(block(width + skips.pop(), nf * ch_mult[level]))
                width = nf * ch_mult[level]
            if attended[level]:
                if up_attention == "each":
                    stage.attentions.extend(attend(width) for _ in range(num_res_blocks))
                stage.attention = attend(width)
            if level:
                stage.enlarge = UpsampleConv(width, width) if resamp_with_conv else Upsample()
            self.up.append(stage)

        self.norm_out = group_norm(width)
        self.conv_out = image_conv(width, channels, scale=0.0)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        check_unet_inputs("DDPM", x, c_noise, y, channels=self.channels, halvings=len(self.down) - 1,
                          num_classes=self.num_classes)  # fmt: skip
        plain = needs_plain_attention(x)
        emb = self.conditioning(c_noise, y)

        h = self.conv_in(x if self.centered else 2.0 * x - 1.0)
        skips = [h]
        for stage in self.down:
            h, _ = stage(h, emb, x, skips, plain)
        h = self.middle(h, emb, plain)
        for stage in self.up:
            h, _ = stage(h, emb, None, skips, plain)
        out = self.conv_out(self.act(self.norm_out(h)))

        if self.scale_by_sigma:
            out = out / self.sigma_table(c_noise)[:, None, None, None]
        return out.to(x.dtype)
