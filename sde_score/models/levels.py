"""The resolutions of a U-Net for images: down, middle, up.

Shapes: h (B, width, H / 2^l, W / 2^l) at level l; image, pyramid (B, *, H / 2^l, W / 2^l); emb (B, E) the conditioning
vector. Source: Song et al., arXiv:2011.13456, app. H; Ho et al., arXiv:2006.11239, app. B.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sde_score.models.blocks import AttentionBlock, ResidualBlock, run_block
from sde_score.models.layers import conv, scaled


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
