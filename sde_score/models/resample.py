"""Resampling of images by small filters (FIR), and by nearest neighbour and 2 x 2 means.

Every operation is one depthwise convolution (downwards) or one depthwise transposed convolution (upwards) with a cached
kernel, so that all that PyTorch can do with a convolution works: any dtype and device, memory formats, derivatives of
any order, `torch.compile`. On the CPU, small images are multiplied by the matrix of the same linear map instead.

With K taps, factor f and a convolution of width w, p = K - f, the published padding is

    upsample         gain f^2   pads ((p+1)//2 + f - 1, p//2)        filter the zero-filled image
    downsample       gain 1     pads ((p+1)//2, p//2)                filter, keep every f-th pixel
    conv then down   gain 1     the same for p + w - 1               filter, then convolution with stride f
    up then conv     gain f^2   ((p'+1)//2 + f - 1, p'//2 + 1)       transposed convolution with stride f, then filter
                                with p' = p - (w - 1)

Sources: Zhang, "Making convolutional networks shift-invariant again", ICML 2019; Karras et al., StyleGAN2, CVPR 2020;
Song et al., arXiv:2011.13456, app. H. Shapes: x (B, C, H, W); kernel (K, K); weight (out, in, w, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_score.models.layers import variance_scaling_

__all__ = [
    "Downsample",
    "DownsampleConv",
    "Upsample",
    "UpsampleConv",
    "downsample2d",
    "downsample_conv2d",
    "fir_kernel",
    "upfirdn2d",
    "upsample2d",
    "upsample_conv2d",
]


# --- functions --------------------------------------------------------------------------------------------------------


def fir_kernel(
    taps: Sequence[float] | Tensor | None,
    *,
    factor: int = 2,
    gain: float = 1.0,
    device: torch.device | None = None,
) -> Tensor:
    """The 2-D kernel of 1-D `taps`: their outer product, normalised to the sum `gain`; (K, K) float32.

    A 2-D `taps` is normalised as it is. `None` means a box of length `factor`. Raises `ValueError` for taps that are
    empty or sum to 0.
    """
    kernel = torch.as_tensor([1.0] * factor if taps is None else taps, dtype=torch.float32, device=device)
    if kernel.ndim == 1:
        kernel = torch.outer(kernel, kernel)
    if kernel.ndim != 2 or kernel.numel() == 0:
        raise ValueError(f"A FIR kernel is a non-empty list of taps such as (1, 3, 3, 1), got {taps!r}.")
    total = kernel.sum()
    if total.device.type != "meta" and float(total) == 0.0:
        raise ValueError(f"The taps of a FIR kernel must not sum to 0, got {taps!r}.")
    return kernel / total * gain


def upfirdn2d(x: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Zero-insert by `up`, pad, convolve with `kernel`, keep every `down`-th pixel.

    The image grows to H up (zeros after every pixel); `pad` = (before, after) applies to both axes, negative values
    crop; the convolution is a true one (flipped kernel). Output side: (H up + before + after - K) // down + 1.
    """
    _check_factors(up=up, down=down)
    size = kernel.shape[-1]
    if up == 1:
        return _filter_down(x, _depthwise(kernel.flip(0, 1), x), down, pad)
    y = _filter_up(x, _depthwise(kernel, x), up, size, pad)
    return y if down == 1 else y[:, :, ::down, ::down]


def upsample2d(
    x: Tensor, taps: Sequence[float] | Tensor | None = None, *, factor: int = 2, gain: float = 1.0
) -> Tensor:
    """x enlarged by `factor` with the FIR filter `taps`: (B, C, factor H, factor W)."""
    kernel = fir_kernel(taps, factor=factor, gain=gain * factor**2)
    return upfirdn2d(x, kernel, up=factor, pad=_up_pads(kernel.shape[0], factor))


def downsample2d(
    x: Tensor, taps: Sequence[float] | Tensor | None = None, *, factor: int = 2, gain: float = 1.0
) -> Tensor:
    """x reduced by `factor` with the FIR filter `taps`: (B, C, H // factor, W // factor)."""
    kernel = fir_kernel(taps, factor=factor, gain=gain)
    return upfirdn2d(x, kernel, down=factor, pad=_down_pads(kernel.shape[0], factor))


def downsample_conv2d(
    x: Tensor, weight: Tensor, taps: Sequence[float] | Tensor | None = None, *, factor: int = 2, gain: float = 1.0
) -> Tensor:
    """Convolution with `weight` and FIR reduction by `factor` in one pass: (B, out, H // factor, W // factor)."""
    kernel = fir_kernel(taps, factor=factor, gain=gain)
    pads = _down_pads(kernel.shape[0] + weight.shape[-1] - 1, factor)
    return F.conv2d(upfirdn2d(x, kernel, pad=pads), weight, stride=factor)


def upsample_conv2d(
    x: Tensor, weight: Tensor, taps: Sequence[float] | Tensor | None = None, *, factor: int = 2, gain: float = 1.0
) -> Tensor:
    """FIR enlargement by `factor` and convolution with `weight` in one pass: (B, out, factor H, factor W)."""
    kernel = fir_kernel(taps, factor=factor, gain=gain * factor**2)
    y = _transposed(x, weight, factor)
    return upfirdn2d(y, kernel, pad=_up_conv_pads(kernel.shape[0], weight.shape[-1], factor))


def _check_factors(**factors: int) -> None:
    for name, value in factors.items():
        if value != int(value) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")


def _up_pads(taps: int, factor: int) -> tuple[int, int]:
    p = taps - factor
    return (p + 1) // 2 + factor - 1, p // 2


def _down_pads(taps: int, factor: int) -> tuple[int, int]:
    p = taps - factor
    return (p + 1) // 2, p // 2


def _up_conv_pads(taps: int, width: int, factor: int) -> tuple[int, int]:
    p = taps - factor - (width - 1)
    return (p + 1) // 2 + factor - 1, p // 2 + 1


def _depthwise(kernel: Tensor, x: Tensor) -> Tensor:
    """The (K, K) kernel as weights (C, 1, K, K) for the C channels of x."""
    return kernel.to(x.device, x.dtype).expand(x.shape[1], 1, *kernel.shape)


def _filter_down(x: Tensor, weight: Tensor, down: int, pad: tuple[int, int]) -> Tensor:
    """Cross-correlate with depthwise weights, stride `down`."""
    before, after = pad
    if before == after >= 0:
        return F.conv2d(x, weight, stride=down, padding=before, groups=x.shape[1])
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=down, groups=x.shape[1])


def _filter_up(x: Tensor, weight: Tensor, up: int, size: int, pad: tuple[int, int]) -> Tensor:
    """Zero-insert by `up` and convolve with depthwise weights of width `size`."""
    # A transposed convolution gives the full convolution of the zero-filled image, (H - 1) up + size pixels wide; the
    # asked for one lacks `crop` of these at either end (has more, if negative).
    crop = size - 1 - pad[0], size - up - pad[1]
    common = max(0, min(crop))
    y = F.conv_transpose2d(x, weight, stride=up, padding=common, groups=x.shape[1])
    before, after = common - crop[0], common - crop[1]
    return y if before == after == 0 else F.pad(y, (before, after, before, after))


def _transposed(x: Tensor, weight: Tensor, factor: int) -> Tensor:
    """Zero-insert x to (H - 1) factor + 1 and cross-correlate with (out, in, w, w) weights at full padding w - 1."""
    return F.conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), stride=factor)


# --- modules ----------------------------------------------------------------------------------------------------------


LARGEST_MATRIX = 2**14
"""Entries up to which a filter of images is faster as a matrix than as a convolution, on a CPU: 16 x 16 to 8 x 8."""


class _Resampler(nn.Module):
    """Holds the kernel of `taps`, ready for use, as a buffer that follows the module and is not saved.

    `size` is the side of the images that the module will mostly see. If it is small, the matrix (H W, H' W') of the
    filter is held too. It serves such images on the CPU; others are convolved.
    """

    kernel: Tensor | None
    matrix: Tensor | None

    def __init__(self, taps: Sequence[float] | None, size: int | None, *, gain: float, flip: bool) -> None:
        super().__init__()
        self.taps = None if taps is None else tuple(taps)
        self.size = size
        self.gain = gain
        self.flip = flip
        self.register_buffer("kernel", None, persistent=False)
        self.register_buffer("matrix", None, persistent=False)
        if taps is not None:
            self._fill_buffers(torch.float32)

    def convolve(self, x: Tensor) -> Tensor:
        """The filter, as a convolution."""
        raise NotImplementedError

    def filter(self, x: Tensor) -> Tensor:
        """The filter, in the faster of its two forms."""
        if self.matrix is None or x.device.type != "cpu" or x.shape[2] != x.shape[3] or x.shape[2] != self.size:
            return self.convolve(x)
        batch, channels, height, _ = x.shape
        side = math.isqrt(self.matrix.shape[1])
        return (x.reshape(-1, height**2) @ self.matrix.to(x.dtype)).view(batch, channels, side, side)

    @torch.no_grad()
    def _fill_buffers(self, dtype: torch.dtype, device: torch.device | None = None) -> None:
        kernel = fir_kernel(self.taps, gain=self.gain, device=device)
        self.kernel = kernel.flip(0, 1) if self.flip else kernel
        self.matrix = None
        if self.size is not None and self.size**4 <= 4 * LARGEST_MATRIX:
            pixels = torch.eye(self.size**2, dtype=torch.float32, device=device).view(-1, 1, self.size, self.size)
            matrix = self.convolve(pixels).flatten(1)
            self.matrix = matrix.to(dtype) if matrix.numel() <= LARGEST_MATRIX else None
        self.kernel = self.kernel.to(dtype)

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        if self.kernel is not None:
            # A model built on `meta` and given memory by `to_empty` holds arbitrary numbers: write the constants again.
            self._fill_buffers(self.kernel.dtype, self.kernel.device)
        return self

    def extra_repr(self) -> str:
        return f"taps={self.taps}, size={self.size}"


class Upsample(_Resampler):
    """Twice the size, by the FIR filter `taps` or, if None, by nearest neighbour: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, taps: Sequence[float] | None = None, *, size: int | None = None) -> None:
        super().__init__(taps, size, gain=4.0, flip=False)

    def convolve(self, x: Tensor) -> Tensor:
        size = len(self.taps)
        return _filter_up(x, _depthwise(self.kernel, x), 2, size, _up_pads(size, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.taps is None else self.filter(x)


class Downsample(_Resampler):
    """Half the size, by the FIR filter `taps` or, if None, by 2 x 2 means: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, taps: Sequence[float] | None = None, *, size: int | None = None) -> None:
        super().__init__(taps, size, gain=1.0, flip=True)

    def convolve(self, x: Tensor) -> Tensor:
        return _filter_down(x, _depthwise(self.kernel, x), 2, _down_pads(len(self.taps), 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.taps is None else self.filter(x)


class UpsampleConv(_Resampler):
    """Twice the size and a 3 x 3 convolution: FIR fused with it, or nearest neighbour and then the convolution.

    Parameters `weight` (out, in, 3, 3) and `bias` (out,). (B, in, H, W) -> (B, out, 2H, 2W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, taps: Sequence[float] | None = None, *, size: int | None = None
    ) -> None:
        # what is filtered is the transposed convolution, 2 size + 1 wide
        super().__init__(taps, None if size is None else 2 * size + 1, gain=4.0, flip=True)
        self.weight, self.bias = _conv_parameters(in_channels, out_channels)

    def convolve(self, x: Tensor) -> Tensor:
        return _filter_down(x, _depthwise(self.kernel, x), 1, _up_conv_pads(len(self.taps), 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.taps is None:
            return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), self.weight, self.bias, padding=1)
        return self.filter(_transposed(x, self.weight, 2)) + self.bias[:, None, None]


class DownsampleConv(_Resampler):
    """Half the size by a 3 x 3 convolution of stride 2, after the FIR filter `taps` if given.

    Without a filter the image is padded by one pixel on the right and at the bottom, as published.
    Parameters `weight` (out, in, 3, 3) and `bias` (out,). (B, in, H, W) -> (B, out, H/2, W/2).
    """

    def __init__(
        self, in_channels: int, out_channels: int, taps: Sequence[float] | None = None, *, size: int | None = None
    ) -> None:
        super().__init__(taps, size, gain=1.0, flip=True)
        self.weight, self.bias = _conv_parameters(in_channels, out_channels)

    def convolve(self, x: Tensor) -> Tensor:
        return _filter_down(x, _depthwise(self.kernel, x), 1, _down_pads(len(self.taps) + 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1)) if self.taps is None else self.filter(x)
        return F.conv2d(x, self.weight, self.bias, stride=2)


def _conv_parameters(in_channels: int, out_channels: int) -> tuple[nn.Parameter, nn.Parameter]:
    weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
    variance_scaling_(weight)
    return weight, nn.Parameter(torch.zeros(out_channels))
