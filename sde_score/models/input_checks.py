"""Checks of what a network is built with and called with; each says what was wrong and what to write instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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


def check_sizes(owner: str, *, ch_mult: Sequence[int] = (1,), num_classes: int | None = None, **sizes: int) -> None:
    """Raise `ValueError` for sizes of which no network can be built."""
    for name, value in sizes.items():
        if value != int(value) or value < 1:
            raise ValueError(f"{owner}({name}={value!r}): `{name}` must be a positive integer.")
    if not ch_mult or any(mult != int(mult) or mult < 1 for mult in ch_mult):
        raise ValueError(
            f"{owner}(ch_mult={ch_mult!r}): `ch_mult` must be positive integers, one per level: (1, 2, 2)."
        )
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"{owner}(num_classes={num_classes!r}): `num_classes` must be positive, or None for none.")


def check_classes(owner: str, y: Tensor | None, batch: int, num_classes: int | None) -> None:
    """Raise `ValueError` unless `y` holds a class per sample, 0 to `num_classes`, or is None where there are none."""
    if num_classes is None:
        if y is not None:
            raise ValueError(
                f"{owner} was built without classes but was given `y`. Build it with num_classes=..., or drop `y`."
            )
        return
    if y is None:
        raise ValueError(
            f"{owner} was built for {num_classes} classes and needs `y`, one class per sample; {num_classes} means no "
            "class."
        )
    if y.shape != (batch,) or y.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{owner}: `y` must hold one integer per sample, shape ({batch},); got {y.dtype} {tuple(y.shape)}."
        )
    check_range("y", y, num_classes + 1, f'{owner}: the class table, whose last entry means "no class",')


def check_image_inputs(
    owner: str, x: Tensor, c_noise: Tensor, y: Tensor | None, *, channels: int, halvings: int, num_classes: int | None
) -> None:
    """Raise `ValueError` for images, noise levels or classes that a network with these settings cannot take."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"{owner}(channels={channels}) needs images of shape (B, {channels}, H, W), got {tuple(x.shape)}."
        )
    multiple = 2**halvings
    height, width = x.shape[2:]
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(
            f"{owner} halves the image {halvings} time(s): height and width must be multiples of {multiple}, got "
            f"{height} x {width}. Pad or resize the images, or take a network that halves less often."
        )
    if c_noise.shape != x.shape[:1]:
        raise ValueError(f"{owner} needs one c_noise per sample, shape ({len(x)},), got {tuple(c_noise.shape)}.")
    check_classes(owner, y, len(x), num_classes)
