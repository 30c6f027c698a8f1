"""Blocks of the U-Nets: attention and residual blocks.

Shapes: h (B, C, H, W); emb (B, E) the conditioning vector.
Source: Song et al., arXiv:2011.13456, app. H; Ho et al., arXiv:2006.11239, app. B.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from sde_score.models.layers import Dropout, add_pointwise, conv, group_norm, linear, scaled


def needs_plain_attention(x: Tensor) -> bool:
    """Whether derivatives of the network with respect to its input x are wanted.

    The fused attention kernels have neither second derivatives nor forward-mode ones, which score matching objectives
    and likelihoods may ask for. Training by denoising differentiates with respect to the weights only and stays fused.
    """
    return (x.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(x).tangent is not None


def attention(q: Tensor, k: Tensor, v: Tensor, *, plain: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over tokens; q, k, v (B, heads, N, D). `plain`: differentiable any number of times."""
    if plain:
        return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all pixels with a residual connection.

        out = (h + W_o softmax(q k^T / sqrt(C)) v) / s,    q, k, v = W_{q,k,v} norm(h)

    with s = sqrt(2) if `rescale`, else 1.
    """

    def __init__(self, channels: int, *, max_groups: int, rescale: bool, init_scale: float = 0.0) -> None:
        super().__init__()
        self.norm = group_norm(channels, max_groups)
        self.query = linear(channels, channels, scale=0.1)
        self.key = linear(channels, channels, scale=0.1)
        self.value = linear(channels, channels, scale=0.1)
        self.out = linear(channels, channels, scale=init_scale)
        self.factor = math.sqrt(0.5) if rescale else 1.0

    def forward(self, h: Tensor, *, plain: bool = False) -> Tensor:
        tokens = self.norm(h).flatten(2).mT[:, None].contiguous()  # (B, 1, HW, C)
        mixed = attention(self.query(tokens), self.key(tokens), self.value(tokens), plain=plain)
        return scaled(h + self.out(mixed)[:, 0].mT.view_as(h), self.factor)


class ResidualBlock(nn.Module):
    """The residual block of DDPM, DDPM++ and BigGAN.

        g = conv1(resample(act(norm1(h)))) + W emb;    out = (shortcut(resample(h)) + conv2(dropout(act(norm2(g))))) / s

    with s = sqrt(2) if `rescale`, else 1. `emb` (B, emb_size) arrives with its activation applied.

    Args:
        max_groups: function of the number of channels, for the two norms.
        emb_size: size of the conditioning vector; None for a block that has none.
        resample: a module without parameters that changes the image size (BigGAN blocks).
        shortcut: width of the convolution on the shortcut, 1 or 3; it exists if the channels change or `resample` is
            given.
        shortcut_scale, init_scale: scales of the initial weights of the shortcut and of conv2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        act: Callable[[Tensor], Tensor],
        max_groups: Callable[[int], int],
        emb_size: int | None,
        dropout: float = 0.0,
        rescale: bool = False,
        resample: nn.Module | None = None,
        shortcut: int = 1,
        shortcut_scale: float = 1.0,
        init_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.act = act
        self.factor = math.sqrt(0.5) if rescale else 1.0
        self.norm1 = group_norm(in_channels, max_groups(in_channels))
        self.conv1 = conv(in_channels, out_channels)
        self.emb = None if emb_size is None else linear(emb_size, out_channels)
        self.norm2 = group_norm(out_channels, max_groups(out_channels))
        self.dropout = Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, scale=init_scale)
        self.resample = resample
        self.shortcut = None
        if in_channels != out_channels or resample is not None:
            self.shortcut = conv(in_channels, out_channels, shortcut, scale=shortcut_scale)

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        g = self.act(self.norm1(h))
        if self.resample is not None:
            g, h = self.resample(g), self.resample(h)
        g = self.conv1(g)
        if emb is not None:
            g = g + self.emb(emb)[:, :, None, None]
        g = self.conv2(self.dropout(self.act(self.norm2(g))))
        if self.shortcut is None:
            return scaled(h + g, self.factor)
        if self.shortcut.kernel_size == (1, 1):
            return add_pointwise(g, self.shortcut, h, factor=self.factor)
        return scaled(self.shortcut(h) + g, self.factor)


def run_block(module: nn.Module, *args: Any, recompute: bool = False) -> Any:
    """`module(*args)`; with `recompute` its activations are not kept but computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, *args, use_reentrant=False)
    return module(*args)
