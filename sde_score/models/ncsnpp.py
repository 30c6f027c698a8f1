"""NCSN++ and DDPM++: the U-Nets of score-based modelling through SDEs.

DDPM's U-Net with any of: residual blocks of BigGAN type, FIR (anti-aliased) resampling, rescaled skip connections,
Fourier features of the noise level, and progressive growing at the input and the output. The same class with the
options of `NCSNpp(embedding_type="positional", fir=False, progressive_input="none", scale_by_sigma=False)` is DDPM++.

Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through stochastic
differential equations", ICLR 2021, arXiv:2011.13456, app. H.

Shapes: x (B, C, H, W); c_noise (B,); y (B,) int64 or None; h (B, width, H / 2^l, W / 2^l) at level l; emb (B, 4 nf).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sde_score.models.input_checks import check_positive, check_unet_inputs, check_unet_sizes
from sde_score.models.layers import (
    AttentionBlock,
    ResidualBlock,
    activation,
    conv,
    group_norm,
    image_conv,
    needs_plain_attention,
    run_block,
    scaled,
)
from sde_score.models.noise_level import FourierEmbedding, NoiseConditioning, PositionalEmbedding, SigmaTable
from sde_score.models.registry import MODELS
from sde_score.models.resample import Downsample, DownsampleConv, Upsample, UpsampleConv

_OPTIONS = {
    "embedding_type": ("fourier", "positional"),
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
}


@MODELS.register("ncsnpp")
class NCSNpp(nn.Module):
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
        super().__init__()
        _check_options(
            embedding_type=embedding_type,
            resblock_type=resblock_type,
            progressive=progressive,
            progressive_input=progressive_input,
            progressive_combine=progressive_combine,
        )
        check_unet_sizes("NCSNpp", channels=channels, nf=nf, ch_mult=ch_mult, num_res_blocks=num_res_blocks,
                         num_classes=num_classes)  # fmt: skip

        self.channels = channels
        self.image_size = image_size
        self.num_classes = num_classes
        self.embedding_type = embedding_type
        self.resblock_type = resblock_type
        self.progressive = progressive
        self.progressive_input = progressive_input
        self.scale_by_sigma = scale_by_sigma
        self.centered = centered
        self.act = activation(nonlinearity)
        self.sigma_table = SigmaTable(sigma_min, sigma_max, num_scales)

        # The parts of which every level is made.
        taps = tuple(fir_kernel) if fir else None
        emb_size = 4 * nf
        block = partial(ResidualBlock, act=self.act, max_groups=_max_groups, emb_size=emb_size, dropout=dropout,
                        rescale=skip_rescale, init_scale=init_scale,
                        shortcut_scale=1.0 if resblock_type == "biggan" else 0.1)  # fmt: skip

        def reduce(width: int, size: int) -> nn.Module:
            if resblock_type == "biggan":
                return block(width, width, resample=Downsample(taps, size=size))
            return DownsampleConv(width, width, taps, size=size) if resamp_with_conv else Downsample(taps, size=size)

        def enlarge(width: int, size: int) -> nn.Module:
            if resblock_type == "biggan":
                return block(width, width, resample=Upsample(taps, size=size))
            return UpsampleConv(width, width, taps, size=size) if resamp_with_conv else Upsample(taps, size=size)

        def attend(width: int) -> AttentionBlock:
            return AttentionBlock(width, max_groups=_max_groups(width), rescale=skip_rescale, init_scale=init_scale)

        embedding = FourierEmbedding(nf, fourier_scale) if embedding_type == "fourier" else PositionalEmbedding(nf)
        self.conditioning = NoiseConditioning(
            embedding, emb_size, self.act, conditional=conditional, num_classes=num_classes
        )

        # Down. `skips` are the widths that the way up will find.
        levels = len(ch_mult)
        sizes = [image_size // 2**level for level in range(levels)]
        attended = [size in attn_resolutions for size in sizes]
        self.conv_in = conv(channels, nf)
        self.down = nn.ModuleList()
        skips, width, pyramid = [nf], nf, channels
        for level, mult in enumerate(ch_mult):
            last = level == levels - 1
            stage = DownLevel(checkpointing=gradient_checkpointing, rescale=skip_rescale)
            for _ in range(num_res_blocks):
                stage.blocks.append(block(width, nf * mult))
                width = nf * mult
                if attended[level]:
                    stage.attentions.append(attend(width))
                skips.append(width)
            if not last:
                stage.reduce = reduce(width, sizes[level])
                if progressive_input == "input_skip":
                    stage.reduce_image = Downsample(taps, size=sizes[level])
                    stage.combine = Combine(channels, width, progressive_combine)
                    width = stage.combine.out_channels
                elif progressive_input == "residual":
                    stage.reduce_image = DownsampleConv(pyramid, width, taps, size=sizes[level])
                    pyramid = width
                skips.append(width)
            self.down.append(stage)

        self.middle = Middle(
            block(width, width), attend(width), block(width, width), checkpointing=gradient_checkpointing
        )

        # Up, from the coarsest level to the finest.
        self.up = nn.ModuleList()
        for level in reversed(range(levels)):
            coarsest = level == levels - 1
            stage = UpLevel(act=self.act, checkpointing=gradient_checkpointing, rescale=skip_rescale, mode=progressive)
            for _ in range(num_res_blocks + 1):
                stage.blocks.append(block(width + skips.pop(), nf * ch_mult[level]))
                width = nf * ch_mult[level]
            if attended[level]:
                stage.attention = attend(width)
            if progressive == "output_skip":
                stage.norm = group_norm(width, _max_groups(width))
                stage.conv = image_conv(width, channels, scale=init_scale)
                stage.enlarge_pyramid = None if coarsest else Upsample(taps, size=sizes[level + 1])
            elif progressive == "residual" and coarsest:
                stage.norm = group_norm(width, _max_groups(width))
                stage.conv = conv(width, width)
            elif progressive == "residual":
                stage.enlarge_pyramid = UpsampleConv(pyramid, width, taps, size=sizes[level + 1])
            pyramid = width
            if level:
                stage.enlarge = enlarge(width, sizes[level])
            self.up.append(stage)

        self.norm_out = self.conv_out = None
        if progressive != "output_skip":
            self.norm_out = group_norm(width, _max_groups(width))
            self.conv_out = image_conv(width, channels, scale=init_scale)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        check_unet_inputs("NCSNpp", x, c_noise, y, channels=self.channels, halvings=len(self.down) - 1,
                          num_classes=self.num_classes)  # fmt: skip
        if self.embedding_type == "fourier":
            check_positive("c_noise", c_noise, "NCSNpp with Fourier features")
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
            sigma = c_noise if self.embedding_type == "fourier" else self.sigma_table(c_noise)
            out = out / sigma[:, None, None, None]
        return out.to(x.dtype)


class DownLevel(nn.Module):
    """One resolution on the way down: residual blocks, each with its attention if the level has any; the reduction.

    `forward(h, emb, image, skips, plain)` appends to `skips`; returns h and the input pyramid at the next resolution.
    """

    def __init__(self, *, checkpointing: bool, rescale: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.factor = math.sqrt(0.5) if rescale else 1.0
        self.blocks = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.reduce: nn.Module | None = None
        self.reduce_image: nn.Module | None = None
        self.combine: Combine | None = None

    def forward(
        self, h: Tensor, emb: Tensor | None, image: Tensor, skips: list[Tensor], plain: bool
    ) -> tuple[Tensor, Tensor]:
        for i, block in enumerate(self.blocks):
            h = run_block(block, h, emb, recompute=self.checkpointing)
            if self.attentions:
                h = self.attentions[i](h, plain=plain)
            skips.append(h)
        if self.reduce is not None:
            if isinstance(self.reduce, ResidualBlock):
                h = run_block(self.reduce, h, emb, recompute=self.checkpointing)
            else:
                h = self.reduce(h)
            if self.combine is not None:
                image = self.reduce_image(image)
                h = self.combine(image, h)
            elif self.reduce_image is not None:
                h = image = scaled(self.reduce_image(image) + h, self.factor)
            skips.append(h)
        return h, image


class Middle(nn.Module):
    """The coarsest resolution between the two ways: block, attention, block."""

    def __init__(self, block1: nn.Module, attention: AttentionBlock, block2: nn.Module, *, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.block1 = block1
        self.attention = attention
        self.block2 = block2

    def forward(self, h: Tensor, emb: Tensor | None, plain: bool) -> Tensor:
        h = run_block(self.block1, h, emb, recompute=self.checkpointing)
        h = self.attention(h, plain=plain)
        return run_block(self.block2, h, emb, recompute=self.checkpointing)


class UpLevel(nn.Module):
    """One resolution on the way up: residual blocks on [h, skip], one attention, the output pyramid, the enlargement.

    `forward(h, emb, pyramid, skips, plain)` pops from `skips` and returns h at the next resolution and the pyramid at
    this one: an image for the mode "output_skip", features for "residual", None for "none".
    """

    def __init__(
        self, *, act: Callable[[Tensor], Tensor], checkpointing: bool, rescale: bool, mode: str = "none"
    ) -> None:
        super().__init__()
        self.act = act
        self.checkpointing = checkpointing
        self.factor = math.sqrt(0.5) if rescale else 1.0
        self.mode = mode
        self.blocks = nn.ModuleList()
        self.attentions = nn.ModuleList()  # after all blocks but the last, where attention follows every block
        self.attention: AttentionBlock | None = None
        self.norm: nn.Module | None = None
        self.conv: nn.Module | None = None
        self.enlarge_pyramid: nn.Module | None = None
        self.enlarge: nn.Module | None = None

    def forward(
        self, h: Tensor, emb: Tensor | None, pyramid: Tensor | None, skips: list[Tensor], plain: bool
    ) -> tuple[Tensor, Tensor | None]:
        for i, block in enumerate(self.blocks):
            h = run_block(block, torch.cat([h, skips.pop()], dim=1), emb, recompute=self.checkpointing)
            if i < len(self.attentions):
                h = self.attentions[i](h, plain=plain)
        if self.attention is not None:
            h = self.attention(h, plain=plain)
        if self.mode == "output_skip":
            image = self.conv(self.act(self.norm(h)))
            pyramid = image if pyramid is None else self.enlarge_pyramid(pyramid) + image
        elif self.mode == "residual" and pyramid is None:
            pyramid = self.conv(self.act(self.norm(h)))
        elif self.mode == "residual":
            h = pyramid = scaled(self.enlarge_pyramid(pyramid) + h, self.factor)
        if isinstance(self.enlarge, ResidualBlock):
            h = run_block(self.enlarge, h, emb, recompute=self.checkpointing)
        elif self.enlarge is not None:
            h = self.enlarge(h)
        return h, pyramid


class Combine(nn.Module):
    """A reduced image joins the features: conv1x1(image) + h, or [conv1x1(image), h] along the channels."""

    def __init__(self, image_channels: int, width: int, method: str) -> None:
        super().__init__()
        self.method = method
        self.conv = conv(image_channels, width, 1)
        self.out_channels = width if method == "sum" else 2 * width

    def forward(self, image: Tensor, h: Tensor) -> Tensor:
        image = self.conv(image)
        return image + h if self.method == "sum" else torch.cat([image, h], dim=1)


def _max_groups(width: int) -> int:
    return min(width // 4, 32)


def _check_options(**chosen: str) -> None:
    for name, value in chosen.items():
        if value not in _OPTIONS[name]:
            known = ", ".join(map(repr, _OPTIONS[name]))
            raise ValueError(f"NCSNpp({name}={value!r}): `{name}` must be one of {known}.")
