"""A small U-Net for series, images and volumes of any size and number of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_score.models.blocks import attention, needs_plain_attention, run_block
from sde_score.models.conditioning import ClassConditional, Conditioning
from sde_score.models.layers import Dropout, GroupNorm, ImageConv, add_pointwise
from sde_score.models.registry import MODELS

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
AXES = {1: "B, {}, L", 2: "B, {}, H, W", 3: "B, {}, D, H, W"}


def _zero(layer: nn.Module) -> nn.Module:
    """The layer with weights of zero: the residual branch that it ends starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(math.gcd(channels, 8), channels)


class ResBlock(nn.Module):
    """`skip(x) + conv(dropout(silu((1 + a) norm(h) + b)))`, `h = conv(silu(norm(x)))`, `a, b = film(cond)`."""

    def __init__(self, axes: int, c_in: int, c_out: int, c_cond: int, dropout: float) -> None:
        super().__init__()
        conv = CONVS[axes]
        self.norm1, self.conv1 = _norm(c_in), conv(c_in, c_out, 3, padding=1)
        self.film = nn.Linear(c_cond, 2 * c_out)
        self.norm2, self.conv2 = _norm(c_out), _zero(conv(c_out, c_out, 3, padding=1))
        self.dropout = Dropout(dropout)
        self.skip = nn.Identity() if c_in == c_out else conv(c_in, c_out, 1)

    def forward(self, x: Tensor, cond: Tensor, plain: bool) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        a, b = self.film(cond).reshape(len(h), -1, *(1,) * (h.ndim - 2)).chunk(2, 1)
        h = self.dropout(F.silu(torch.addcmul(b, self.norm2(h), 1 + a)))
        h = self.conv2(h)
        return x + h if isinstance(self.skip, nn.Identity) else add_pointwise(h, self.skip, x)


class Attention(nn.Module):
    """Self-attention between all places of the grid: `x + out(softmax(q kᵀ/√d) v)`, heads of about 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(h for h in range(1, max(1, channels // 32) + 1) if channels % h == 0)
        self.norm = _norm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), _zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, cond: Tensor, plain: bool) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = self.out(attention(q, k, v, plain=plain).transpose(1, 2).flatten(2))
        return x + h.transpose(1, 2).reshape(x.shape)


class Down(nn.Module):
    """Half of every axis, rounded up: a convolution of stride 2."""

    def __init__(self, axes: int, channels: int) -> None:
        super().__init__()
        self.conv = CONVS[axes](channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, cond: Tensor, plain: bool) -> Tensor:
        return self.conv(x)


class Stage(nn.ModuleList):
    """Blocks in turn. `plain` asks attention for a form that can be differentiated in every way."""

    def forward(self, x: Tensor, cond: Tensor, plain: bool) -> Tensor:
        for block in self:
            x = block(x, cond, plain)
        return x


@MODELS.register("unet")
class UNet(ClassConditional):
    """U-Net of residual blocks for series, images and volumes of any size: `network(x, c_noise, y) -> like x`.

    Each level halves every axis, rounding up (an axis of length one stays), and the way up returns to the size of the
    skip connection: nothing is padded, and a network made for one size runs on others. The output layer starts at
    zero. After Ronneberger et al. 2015; conditioning by scale and shift as in Dhariwal & Nichol 2021; Fourier features
    of the values, which help likelihoods, as in Kingma et al. 2021.

    Args:
        shape: of one sample, channels first: `(C, L)`, `(C, H, W)` or `(C, D, H, W)`.
        width: channels of the first level; those of level i are `width * mult[i]`.
        mult: one factor for each level.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: numbers of the levels (0 is the finest) with attention after each block. It costs the square of
            the number of places.
        dropout: probability in the residual blocks.
        num_classes: number of classes, `None` for none; class `num_classes` of `y` means "no class".
        fourier: frequencies f in cycles per unit of the network's input; `sin 2πfx` and `cos 2πfx` join the channels.
        gradient_checkpointing: recompute the blocks in the backward pass: less memory, more time.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 24,
        mult: Sequence[float] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (2,),
        dropout: float = 0.0,
        num_classes: int | None = None,
        fourier: Sequence[float] = (),
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.shape, axes = tuple(shape), len(shape) - 1
        widths = [int(width * m) for m in mult]
        if axes not in CONVS or min(self.shape) < 1:
            raise ValueError(
                f"unet works on (C, L), (C, H, W) or (C, D, H, W); got shape={self.shape}. For vectors choose "
                "'mlp': --config.model.name=mlp."
            )
        if blocks < 1 or not widths or min(widths) < 1:
            raise ValueError(
                f"unet: width, blocks and width * mult must be at least 1; got {width}, {blocks} and mult={mult}."
            )
        if not all(0 <= level < len(widths) for level in attention):
            raise ValueError(
                f"unet: attention={attention} must name levels 0 .. {len(widths) - 1}, one per entry of mult={mult}."
            )
        self.num_classes = num_classes
        self.fourier, self.gradient_checkpointing = tuple(fourier), gradient_checkpointing
        channels, c_cond, conv = self.shape[0], 4 * width, CONVS[axes]
        self.cond = Conditioning(c_cond, num_classes)
        self.conv_in = conv(channels * (1 + 2 * len(self.fourier)), widths[0], 3, padding=1)

        def stage(c_in: int, c_out: int, level: int) -> Stage:
            block = ResBlock(axes, c_in, c_out, c_cond, dropout)
            return Stage([block, Attention(c_out)] if level in attention else [block])

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c = widths[0]
        skips = [c]
        for level, w in enumerate(widths):
            if level:
                self.down.append(Stage([Down(axes, c)]))
                skips.append(c)
            for _ in range(blocks):
                self.down.append(stage(c, w, level))
                skips.append(c := w)
        self.middle = stage(c, c, len(widths) - 1)
        for level, w in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(c + skips.pop(), w, level))
                c = w
        self.norm_out = _norm(c)
        self.conv_out = _zero(ImageConv(c, channels) if axes == 2 else conv(c, channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """The output for `x: (B, C, ...)`, `c_noise: (B,)` and, with classes, `y: (B,)` of integers.

        Raises `ValueError` for a wrong number of axes or channels, and for a wrong c_noise or class.
        """
        if x.ndim != len(self.shape) + 1 or x.shape[1] != self.shape[0]:
            wanted = AXES[len(self.shape) - 1].format(self.shape[0])
            raise ValueError(f"This unet (shape={self.shape}) takes x of shape ({wanted}); got {tuple(x.shape)}.")
        cond, plain = self.cond(x, c_noise, y), needs_plain_attention(x)
        run = partial(run_block, recompute=self.gradient_checkpointing)
        angles = [2 * math.pi * f * x for f in self.fourier]
        h = self.conv_in(torch.cat([x, *map(torch.sin, angles), *map(torch.cos, angles)], 1))
        skips = [h]
        for stage in self.down:
            h = run(stage, h, cond, plain)
            skips.append(h)
        h = run(self.middle, h, cond, plain)
        for stage in self.up:
            skip = skips.pop()
            if h.shape[2:] != skip.shape[2:]:  # places 2i and 2i + 1 descend from place i, also when the size is odd
                h = F.interpolate(h, size=skip.shape[2:], mode="nearest")
            h = run(stage, torch.cat([h, skip], 1), cond, plain)
        return self.conv_out(F.silu(self.norm_out(h)))
