"""The U-Net for images of which DDPM, DDPM++ and NCSN++ are settings: how its levels are put together.

Shapes: x (B, C, H, W); c_noise (B,); y (B,) int64 or None; h (B, width, H / 2^l, W / 2^l) at level l; emb (B, 4 nf).
Source: Ho et al., arXiv:2006.11239, app. B; Song et al., arXiv:2011.13456, app. H.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sde_score.models.blocks import AttentionBlock, ResidualBlock, needs_plain_attention
from sde_score.models.conditioning import ClassConditional
from sde_score.models.input_checks import check_image_inputs, check_positive, check_sizes
from sde_score.models.layers import GroupNorm, conv, group_norm, image_conv
from sde_score.models.levels import Combine, DownLevel, Middle, UpLevel
from sde_score.models.noise_level import FourierEmbedding, NoiseConditioning, PositionalEmbedding, SigmaTable
from sde_score.models.resample import Downsample, DownsampleConv, Upsample, UpsampleConv


@dataclass(frozen=True)
class Parts:
    """What the levels are made of; the defaults are DDPM's. Settings as in `NCSNpp` and `DDPM`."""

    act: Callable[[Tensor], Tensor]
    max_groups: Callable[[int], int]  # of a norm, by its width
    emb_size: int
    dropout: float
    shortcut_scale: float
    resamp_with_conv: bool
    checkpointing: bool
    rescale: bool = False
    init_scale: float = 0.0
    taps: tuple[float, ...] | None = None  # of the FIR filter
    resblock_type: str = "ddpm"
    progressive: str = "none"
    progressive_input: str = "none"
    progressive_combine: str = "sum"
    up_attention: str = "last"

    def block(self, in_width: int, width: int, resample: nn.Module | None = None) -> ResidualBlock:
        return ResidualBlock(in_width, width, act=self.act, max_groups=self.max_groups, emb_size=self.emb_size,
                             dropout=self.dropout, rescale=self.rescale, resample=resample,
                             shortcut_scale=self.shortcut_scale, init_scale=self.init_scale)  # fmt: skip

    def attention(self, width: int) -> AttentionBlock:
        return AttentionBlock(
            width, max_groups=self.max_groups(width), rescale=self.rescale, init_scale=self.init_scale
        )

    def norm(self, width: int) -> GroupNorm:
        return group_norm(width, self.max_groups(width))

    def reduce(self, width: int, size: int) -> nn.Module:
        """Features of `width` at half the size."""
        if self.resblock_type == "biggan":
            return self.block(width, width, Downsample(self.taps, size=size))
        return DownsampleConv(width, width, self.taps, size=size) if self.resamp_with_conv else self.shrink(size)

    def enlarge(self, width: int, size: int) -> nn.Module:
        """Features of `width` at twice the size."""
        if self.resblock_type == "biggan":
            return self.block(width, width, Upsample(self.taps, size=size))
        return UpsampleConv(width, width, self.taps, size=size) if self.resamp_with_conv else self.grow(size)

    def shrink(self, size: int) -> Downsample:
        return Downsample(self.taps, size=size)

    def grow(self, size: int) -> Upsample:
        return Upsample(self.taps, size=size)


class ImageUNet(ClassConditional):
    """Levels of residual blocks and attention with skip connections; subclasses choose the parts.

        out = network(x, c_noise, y), shape of x

    Level l has width `nf * ch_mult[l]`, `num_res_blocks` blocks on the way down and one more on the way up; attention
    where `image_size // 2**l` is in `attn_resolutions`, and in the middle. `sigmas`: sigma_min, sigma_max and number of
    the descending table. Arguments and errors as in `NCSNpp`.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        channels: int,
        image_size: int,
        nf: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        embedding_type: str = "positional",
        fourier_scale: float = 16.0,
        conditional: bool,
        num_classes: int | None,
        scale_by_sigma: bool,
        sigmas: tuple[float, float, int],
        centered: bool,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, channels=channels, nf=nf, ch_mult=ch_mult, num_res_blocks=num_res_blocks,
                    num_classes=num_classes)  # fmt: skip
        self.channels = channels
        self.image_size = image_size
        self.num_classes = num_classes
        self.embedding_type = embedding_type
        self.resblock_type = parts.resblock_type
        self.progressive = parts.progressive
        self.progressive_input = parts.progressive_input
        self.up_attention = parts.up_attention
        self.scale_by_sigma = scale_by_sigma
        self.centered = centered
        self.act = parts.act
        self.sigma_table = SigmaTable(*sigmas)

        embedding = FourierEmbedding(nf, fourier_scale) if embedding_type == "fourier" else PositionalEmbedding(nf)
        self.conditioning = NoiseConditioning(
            embedding, parts.emb_size, self.act, conditional=conditional, num_classes=num_classes
        )
        self.conv_in = conv(channels, nf)
        widths = [nf * mult for mult in ch_mult]
        sizes = [image_size // 2**level for level in range(len(widths))]
        attended = [size in attn_resolutions for size in sizes]
        width, skips = self._make_down(parts, widths, sizes, attended, num_res_blocks)
        self.middle = Middle(
            parts.block(width, width),
            parts.attention(width),
            parts.block(width, width),
            checkpointing=parts.checkpointing,
        )
        width = self._make_up(parts, width, skips, widths, sizes, attended, num_res_blocks + 1)
        self.norm_out = self.conv_out = None
        if self.progressive != "output_skip":
            self.norm_out = parts.norm(width)
            self.conv_out = image_conv(width, channels, scale=parts.init_scale)

    def _make_down(
        self, parts: Parts, widths: list[int], sizes: list[int], attended: list[bool], blocks: int
    ) -> tuple[int, list[int]]:
        """The levels from the finest to the coarsest. Returns the last width, and those that the way up will find."""
        self.down = nn.ModuleList()
        width, pyramid = self.conv_in.out_channels, self.channels
        skips = [width]
        for level, size in enumerate(sizes):
            stage = DownLevel(checkpointing=parts.checkpointing, rescale=parts.rescale)
            for _ in range(blocks):
                stage.blocks.append(parts.block(width, widths[level]))
                width = widths[level]
                if attended[level]:
                    stage.attentions.append(parts.attention(width))
                skips.append(width)
            if level < len(sizes) - 1:
                stage.reduce = parts.reduce(width, size)
                if self.progressive_input == "input_skip":
                    stage.reduce_image = parts.shrink(size)
                    stage.combine = Combine(self.channels, width, parts.progressive_combine)
                    width = stage.combine.out_channels
                elif self.progressive_input == "residual":
                    stage.reduce_image = DownsampleConv(pyramid, width, parts.taps, size=size)
                    pyramid = width
                skips.append(width)
            self.down.append(stage)
        return width, skips

    def _make_up(
        self,
        parts: Parts,
        width: int,
        skips: list[int],
        widths: list[int],
        sizes: list[int],
        attended: list[bool],
        blocks: int,
    ) -> int:
        """The levels from the coarsest to the finest. Returns the last width."""
        self.up = nn.ModuleList()
        coarsest, pyramid = len(sizes) - 1, width
        for level in reversed(range(len(sizes))):
            stage = UpLevel(
                act=self.act, checkpointing=parts.checkpointing, rescale=parts.rescale, mode=self.progressive
            )
            for _ in range(blocks):
                stage.blocks.append(parts.block(width + skips.pop(), widths[level]))
                width = widths[level]
            if attended[level]:
                if self.up_attention == "each":
                    stage.attentions.extend(parts.attention(width) for _ in range(blocks - 1))
                stage.attention = parts.attention(width)
            if self.progressive == "output_skip":
                stage.norm = parts.norm(width)
                stage.conv = image_conv(width, self.channels, scale=parts.init_scale)
                stage.enlarge_pyramid = None if level == coarsest else parts.grow(sizes[level + 1])
            elif self.progressive == "residual" and level == coarsest:
                stage.norm = parts.norm(width)
                stage.conv = conv(width, width)
            elif self.progressive == "residual":
                stage.enlarge_pyramid = UpsampleConv(pyramid, width, parts.taps, size=sizes[level + 1])
            pyramid = width
            if level:
                stage.enlarge = parts.enlarge(width, sizes[level])
            self.up.append(stage)
        return width

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        fourier = self.embedding_type == "fourier"
        owner = type(self).__name__
        check_image_inputs(owner, x, c_noise, y, channels=self.channels, halvings=len(self.down) - 1,
                           num_classes=self.num_classes)  # fmt: skip
        if fourier:
            check_positive("c_noise", c_noise, f"{owner} with Fourier features")
        plain = needs_plain_attention(x)
        emb = self.conditioning(c_noise, y)

        if not self.centered:
            x = 2.0 * x - 1.0
        image = x
        h = self.conv_in(x)
        skips = [h]
        for stage in self.down:
            h, image = stage(h, emb, image, skips, plain)
        h = self.middle(h, emb, plain)
        pyramid = None
        for stage in self.up:
            h, pyramid = stage(h, emb, pyramid, skips, plain)
        out = pyramid if self.progressive == "output_skip" else self.conv_out(self.act(self.norm_out(h)))

        if self.scale_by_sigma:
            sigma = c_noise if fourier else self.sigma_table(c_noise)
            out = out / sigma[:, None, None, None]
        return out.to(x.dtype)
