"""Layers shared by the U-Nets: initialisation, embeddings of the noise level, norms, attention, residual blocks.

Shapes: h (B, C, H, W); label (B,) the noise level as the network is told it; emb (B, E) the conditioning vector.
Source: Song et al., arXiv:2011.13456, app. H; Ho et al., arXiv:2006.11239, app. B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
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


# --- the noise level --------------------------------------------------------------------------------------------------


def _moved_only(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `Module._apply` without its change of type, for tables that must keep their precision."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move


class FourierEmbedding(nn.Module):
    """Random Fourier features of a noise level sigma > 0: [sin a, cos a], a = 2 pi W ln(sigma); (B,) -> (B, 2 size).

    The frequencies W ~ N(0, scale^2) are drawn once and saved; they are a buffer and stay float32 when the model is
    cast: in bfloat16 the angle would be noise. Tancik et al., NeurIPS 2020.
    """

    def __init__(self, size: int, scale: float = 16.0) -> None:
        super().__init__()
        self.size = 2 * size
        self.register_buffer("frequencies", torch.randn(size) * scale)

    def forward(self, sigma: Tensor) -> Tensor:
        log_sigma = torch.log(_at_least_float32(sigma))
        angle = (log_sigma[:, None] * self.frequencies) * 2 * math.pi
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        return super()._apply(_moved_only(fn), recurse)


class PositionalEmbedding(nn.Module):
    """[sin(t w), cos(t w)], w_i = 10000^(-i / (half - 1)), half = size // 2; (B,) -> (B, size).

    An odd size has a zero appended. Vaswani et al., NeurIPS 2017, as in Ho et al., arXiv:2006.11239.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, label: Tensor) -> Tensor:
        label = _at_least_float32(label)
        half = self.size // 2
        rate = -math.log(10000) / max(half - 1, 1)
        # The frequencies are float32 in the published system; in a float64 model too.
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=label.device) * rate)
        angle = label[:, None] * frequencies
        return F.pad(torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1), (0, self.size % 2))


def _at_least_float32(label: Tensor) -> Tensor:
    return label if label.dtype == torch.float64 else label.float()


class NoiseConditioning(nn.Module):
    """The vector that tells every residual block the noise level and the class: act(MLP(embedding(label)) + table[y]).

    (B,), (B,) -> (B, size); None if there is neither. The MLP is linear, act, linear. The class table starts at zero;
    its last row, index `num_classes`, stands for "no class".
    """

    def __init__(
        self,
        embedding: nn.Module,
        size: int,
        act: Callable[[Tensor], Tensor],
        *,
        conditional: bool = True,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.act = act
        self.embedding = embedding
        self.linear1 = linear(embedding.size, size) if conditional else None
        self.linear2 = linear(size, size) if conditional else None
        self.classes = None
        if num_classes is not None:
            self.classes = nn.Embedding(num_classes + 1, size)
            nn.init.zeros_(self.classes.weight)

    def forward(self, label: Tensor, y: Tensor | None = None) -> Tensor | None:
        emb = None
        if self.linear1 is not None:
            features = self.embedding(label).to(self.linear1.weight.dtype)
            emb = self.linear2(self.act(self.linear1(features)))
        if self.classes is not None:
            emb = self.classes(y) if emb is None else emb + self.classes(y)
        return None if emb is None else self.act(emb)


class SigmaTable(nn.Module):
    """The noise levels sigma_max ... sigma_min, descending and geometric, looked up by index: (B,) -> (B,) float32.

    A label is truncated to its index. Published files hold the table in float64. Here its bits are saved as integers,
    so that they survive casts, and devices without float64; the values in use are float32, so that no output becomes
    float64.
    """

    def __init__(self, sigma_min: float, sigma_max: float, num_scales: int) -> None:
        super().__init__()
        if not 0 < sigma_min <= sigma_max or num_scales < 1:
            raise ValueError(
                "The table of noise levels needs 0 < sigma_min <= sigma_max and num_scales >= 1, got "
                f"sigma_min={sigma_min}, sigma_max={sigma_max}, num_scales={num_scales}."
            )
        table = np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), num_scales))
        self.register_buffer("bits", torch.tensor(table.view(np.int64)))
        self.register_buffer("sigmas", torch.tensor(table.astype(np.float32)), persistent=False)

    @property
    def num_scales(self) -> int:
        return len(self.bits)

    def forward(self, label: Tensor) -> Tensor:
        index = label.long()
        check_range("label", index, self.num_scales, "The table of noise levels (`num_scales`)")
        return self.sigmas[index]

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        return super()._apply(_moved_only(fn), recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.bits.device.type != "meta":
            self.sigmas = self.bits.cpu().view(torch.float64).float().to(self.bits.device)


# --- checks -----------------------------------------------------------------------------------------------------------


def _values_are_free(tensor: Tensor) -> bool:
    """Whether reading values costs neither a synchronisation with an accelerator nor a graph break."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and tensor.numel() > 0


def check_range(name: str, index: Tensor, size: int, owner: str) -> None:
    """Raise `ValueError` unless 0 <= index < size; on an accelerator the look-up itself fails instead."""
    if _values_are_free(index):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"{owner} has {size} entries, `{name}` may be 0 to {size - 1}; got values from {low} to {high}."
            )


def check_positive(name: str, value: Tensor, owner: str) -> None:
    """Raise `ValueError` unless all values are above 0 (read on the CPU only)."""
    if _values_are_free(value) and not bool((value > 0).all()):
        raise ValueError(f"{owner} needs `{name}` > 0, got values down to {float(value.min())}.")


def check_unet_sizes(
    owner: str, *, channels: int, nf: int, ch_mult: Sequence[int], num_res_blocks: int, num_classes: int | None
) -> None:
    """Raise `ValueError` for sizes of which no U-Net can be built."""
    for name, value in (("channels", channels), ("nf", nf), ("num_res_blocks", num_res_blocks)):
        if value != int(value) or value < 1:
            raise ValueError(f"{owner}({name}={value!r}): `{name}` must be a positive integer.")
    if not ch_mult or any(mult != int(mult) or mult < 1 for mult in ch_mult):
        raise ValueError(
            f"{owner}(ch_mult={ch_mult!r}): `ch_mult` must be positive integers, one per level: (1, 2, 2)."
        )
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"{owner}(num_classes={num_classes!r}): `num_classes` must be positive, or None for none.")


def check_unet_inputs(
    owner: str, x: Tensor, label: Tensor, y: Tensor | None, *, channels: int, halvings: int, num_classes: int | None
) -> None:
    """Raise `ValueError` for images, labels or classes that a U-Net with these settings cannot take."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"{owner}(channels={channels}) needs images of shape (B, {channels}, H, W), got {tuple(x.shape)}."
        )
    multiple = 2**halvings
    height, width = x.shape[2:]
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(
            f"{owner} halves the image {halvings} time(s): height and width must be multiples of {multiple}, got "
            f"{height} x {width}. Pad or resize the images, or give `ch_mult` fewer levels."
        )
    if label.shape != x.shape[:1]:
        raise ValueError(f"{owner} needs one label per sample, shape ({x.shape[0]},), got {tuple(label.shape)}.")
    if num_classes is None:
        if y is not None:
            raise ValueError(
                f"{owner} was built without classes but got y. Build it with `num_classes=...`, or pass y=None."
            )
        return
    if y is None:
        raise ValueError(f"{owner}(num_classes={num_classes}) needs class labels y of shape ({x.shape[0]},), got None.")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(
            f"{owner} needs integer class labels y of shape ({x.shape[0]},), got {y.dtype} of shape {tuple(y.shape)}."
        )
    check_range("y", y, num_classes + 1, f'The class table of {owner}, its last entry meaning "no class",')


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
