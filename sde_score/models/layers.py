"""Single layers: the published activations and initial weights, and torch's own layers where ours are faster.

Shapes: h (B, C, H, W). Source: Song et al., arXiv:2011.13456, app. H; Ho et al., arXiv:2006.11239, app. B.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_score.registry import suggest


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
        raise ValueError(f"Unknown activation {name!r}.{suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


# --- initial weights --------------------------------------------------------------------------------------------------


@torch.no_grad()
def variance_scaling_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fill weights (out, in, *) uniformly on +-sqrt(3 scale / fan_avg), fan_avg = (in + out) / 2 * prod(*).

    A scale of 0 stands for 1e-10: a layer that is nearly zero but still receives gradients.
    """
    fan_avg = (weight.shape[0] + weight.shape[1]) / 2 * math.prod(weight.shape[2:])
    bound = math.sqrt(3 * (scale or 1e-10) / fan_avg)
    return weight.uniform_(-bound, bound)


def _initialised(layer: nn.Module, scale: float) -> nn.Module:
    variance_scaling_(layer.weight, scale)
    nn.init.zeros_(layer.bias)
    return layer


def conv(in_channels: int, out_channels: int, width: int = 3, *, scale: float = 1.0) -> nn.Conv2d:
    """A size-preserving convolution with variance-scaling weights and zero bias."""
    return _initialised(nn.Conv2d(in_channels, out_channels, width, padding=width // 2), scale)


def linear(in_features: int, out_features: int, *, scale: float = 1.0) -> nn.Linear:
    """A linear layer with variance-scaling weights and zero bias."""
    return _initialised(nn.Linear(in_features, out_features), scale)


def image_conv(in_channels: int, out_channels: int, *, scale: float = 1.0) -> ImageConv:
    """An `ImageConv` with variance-scaling weights and zero bias."""
    return _initialised(ImageConv(in_channels, out_channels), scale)


# --- layers that torch has too ----------------------------------------------------------------------------------------


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


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` without its look at the input's shape, which at 8 x 8 pixels takes a sixth of its time."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.group_norm(h, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(channels: int, max_groups: int) -> GroupNorm:
    """Group norm (eps 1e-6) with the largest number of groups up to `max_groups` that divides the channels."""
    groups = next(g for g in range(max(1, min(max_groups, channels)), 0, -1) if channels % g == 0)
    return GroupNorm(groups, channels, eps=1e-6)


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
