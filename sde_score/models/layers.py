"""Layers shared by the U-Nets: initialisation, norms, attention, residual blocks.

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


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, negative_slope=0.2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "lrelu": _leaky_relu,
    "swish": F.silu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function of that name. Raises `ValueError` with the known names."""
    if name not in ACTIVATIONS:
        raise ValueError(f"Unknown activation {name!r}. Known: {', '.join(sorted(ACTIVATIONS))}.")
    return ACTIVATIONS[name]


# --- initialised layers -----------------------------------------------------------------------------------------------


@torch.no_grad()
def variance_scaling_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fill weights (out, in, *) uniformly on +-sqrt(3 scale / fan_avg), fan_avg = (in + out) / 2 * prod(*).

    A scale of 0 stands for 1e-10: a layer that is nearly zero but still receives gradients.
    """
    fan_avg = (weight.shape[0] + weight.shape[1]) / 2 * math.prod(weight.shape[2:])
    bound = math.sqrt(3 * (scale or 1e-10) / fan_avg)
    return weight.uniform_(-bound, bound)


def conv(in_channels: int, out_channels: int, width: int = 3, *, scale: float = 1.0) -> nn.Conv2d:
    """A size-preserving convolution with variance-scaling weights and zero bias."""
    layer = nn.Conv2d(in_channels, out_channels, width, padding=width // 2)
    variance_scaling_(layer.weight, scale)
    nn.init.zeros_(layer.bias)
    return layer


class ImageConv(nn.Conv2d):
    """A 3 x 3 convolution to the few channels of an image: (B, C, H, W) -> (B, out, H, W).

    On the CPU, what every pixel gives to its nine neighbours comes from one matrix product and is then summed: a
    quarter to two thirds of a convolution's time, derivatives included. In half precision, where the sum would be
    rounded at every step, it remains a convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        if h.device.type != "cpu" or not h.is_contiguous() or self.out_channels > 4:
            return super().forward(h)
        if h.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
            return super().forward(h)
        # entry (dy, dx) of the kernel looks from a pixel at its neighbour; seen from that one it is (-dy, -dx)
        taps = self.weight.flip(2, 3).permute(0, 2, 3, 1).reshape(1, -1, self.in_channels)
        parts = torch.bmm(taps.expand(len(h), -1, -1), h.flatten(2))
        return F.fold(parts, h.shape[2:], 3, padding=1) + self.bias[:, None, None]


def image_conv(in_channels: int, out_channels: int, *, scale: float = 1.0) -> ImageConv:
    """An `ImageConv` with variance-scaling weights and zero bias."""
    layer = ImageConv(in_channels, out_channels)
    variance_scaling_(layer.weight, scale)
    nn.init.zeros_(layer.bias)
    return layer


def linear(in_features: int, out_features: int, *, scale: float = 1.0) -> nn.Linear:
    """A linear layer with variance-scaling weights and zero bias."""
    layer = nn.Linear(in_features, out_features)
    variance_scaling_(layer.weight, scale)
    nn.init.zeros_(layer.bias)
    return layer


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` without its look at the input's shape, which at 8 x 8 pixels takes a sixth of its time."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.group_norm(h, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(channels: int, max_groups: int = 32) -> GroupNorm:
    """Group norm (eps 1e-6) with the largest number of groups up to `max_groups` that divides the channels."""
    groups = next(g for g in range(max(1, min(max_groups, channels)), 0, -1) if channels % g == 0)
    return GroupNorm(groups, channels, eps=1e-6)


# --- blocks -----------------------------------------------------------------------------------------------------------


class Dropout(nn.Dropout):
    """Zeroes entries with probability p in training and divides the others by 1 - p: E[out] = x.

    Torch draws Bernoulli numbers on the CPU at twice the cost of uniform ones u; here an entry stays where u > p.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if x.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(x)
        # float32, as bfloat16 has few numbers in [0, 1); ceil, as compiled code is slow to store what `>` gives
        kept = torch.rand(x.shape, dtype=torch.float32, device=x.device).sub_(self.p).ceil_()
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))


def add_pointwise(h: Tensor, layer: nn.Module, x: Tensor, *, factor: float = 1.0) -> Tensor:
    """factor (h + W x + b) for a convolution `layer` of width 1; h (B, out, *), x (B, in, *).

    On the CPU it is one matrix product that also takes the sum and the factor, in about half the time. `h` is
    overwritten.
    """
    if x.device.type != "cpu" or not x.is_contiguous():
        return scaled(h + layer(x), factor)
    weight = layer.weight.flatten(1).expand(len(x), -1, -1)
    h = h.add_(layer.bias.view(-1, *(1,) * (x.ndim - 2)))
    return torch.baddbmm(h.flatten(2), weight, x.flatten(2), beta=factor, alpha=factor).view(h.shape)


def scaled(fresh: Tensor, factor: float) -> Tensor:
    """`factor` times a tensor that nobody else uses."""
    return fresh.mul_(factor) if factor != 1.0 else fresh


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
