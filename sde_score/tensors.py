"""Small tensor tools shared by every room: broadcasting, reductions per sample, and noise whose seed is the user's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn


def expand_like(coefficient: Tensor, x: Tensor) -> Tensor:
    """Append axes of length one to a `(B,)` or `(B, C, ...)` coefficient until it broadcasts against `x` of shape `(B,
    *)`.
    """
    if coefficient.ndim > x.ndim:
        raise ValueError(
            f"A coefficient of shape {tuple(coefficient.shape)} has more axes than the data, {tuple(x.shape)}."
        )
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def rows(x: Tensor) -> Tensor:
    """Each sample as one row: `(B, *) -> (B, D)`, also for an empty batch."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, real tensors whose type nobody says are of `dtype`: for networks, which say none for their weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on a device; float64 becomes float32 on one that does not know it."""
    x = x.float() if device.type == "mps" and x.dtype == torch.float64 else x
    return x.to(device, non_blocking=True)


def with_derivative(func: Callable[[Tensor], Any], t: Tensor) -> tuple[Any, Any]:
    """`func(t)` and its derivative, `(B,)` or a tuple of such, of a function that works elementwise, by forward
    differentiation. `t` must not be expanded.
    """
    with warnings.catch_warnings():  # torch loads this mode when it is first used, and warns of its own torch.jit
        warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        return torch.func.jvp(func, (t,), (torch.ones_like(t),))


def sum_except_batch(x: Tensor) -> Tensor:
    """Sum over everything but the first axis: `(B, *) -> (B,)`."""
    return rows(x).sum(1)


def mean_except_batch(x: Tensor) -> Tensor:
    """Mean over everything but the first axis: `(B, *) -> (B,)`."""
    return rows(x).mean(1)


def norm_except_batch(x: Tensor) -> Tensor:
    """Euclidean norm of each sample: `(B, *) -> (B,)`."""
    return torch.linalg.vector_norm(rows(x), dim=1)


def require_finite(x: Tensor, what: str) -> None:
    """Raise `FloatingPointError` naming the first sample of `x` that holds a NaN or an infinity. `what` says what was
    computed, where.
    """
    bad = ~torch.isfinite(rows(x)).all(1)
    if bad.any():
        index = int(bad.nonzero()[0, 0])
        raise FloatingPointError(
            f"{what} is not finite in {int(bad.sum())} of {len(x)} samples, first in sample {index}."
        )


_MASK = (1 << 64) - 1


def mix_seed(*numbers: int) -> int:
    """Hash integers into one 63-bit seed (the finaliser of SplitMix64, Steele et al. 2014, applied to each in turn)."""
    state = 0
    for number in numbers:
        state = (state + (int(number) & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


class GeneratorNoise:
    """Noise of the whole batch from one generator: fast; a sample's noise depends on its place in the batch."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def _draw(self, kind, x: Tensor) -> Tensor:
        device = x.device if self.generator is None else self.generator.device
        return kind(x.shape, generator=self.generator, device=device, dtype=x.dtype).to(x.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Standard normal like `x`."""
        return self._draw(torch.randn, x)

    def uniform(self, x: Tensor) -> Tensor:
        """Uniform on [0, 1) like `x`."""
        return self._draw(torch.rand, x)


class SampleNoise:
    """Noise in which sample i is a function of `(seed, i)` only, whatever the batch, the device or the number of
    processes.

    Each sample has its own generator on the CPU; `indices` names the samples of the batch by their global numbers.
    Draws are made in float32 and converted, so that the precision of a run does not change its path. Where the samples
    are part of a larger batch, `places` `(B,)` are their places in it and `size` is its size, for what concerns all of
    it (stratified times); otherwise both are None.
    """

    def __init__(
        self,
        seed: int | tuple[int, ...],
        indices: Sequence[int] | Tensor,
        *,
        places: Tensor | None = None,
        size: int | None = None,
    ) -> None:
        self.places, self.size = places, size
        words = seed if isinstance(seed, tuple) else (seed,)
        numbers = indices.tolist() if isinstance(indices, Tensor) else indices
        self.generators = [torch.Generator().manual_seed(mix_seed(*words, i)) for i in numbers]

    def _draw(self, fill: str, x: Tensor) -> Tensor:
        if x.shape[0] != len(self.generators):
            raise ValueError(
                f"This noise was made for {len(self.generators)} samples and is asked for a batch of {x.shape[0]}."
            )
        z = torch.empty(x.shape, dtype=torch.float32, pin_memory=x.is_cuda)
        for row, generator in zip(z, self.generators):
            getattr(row, fill)(generator=generator)
        return z.to(device=x.device, dtype=x.dtype, non_blocking=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Standard normal like `x`."""
        return self._draw("normal_", x)

    def uniform(self, x: Tensor) -> Tensor:
        """Uniform on [0, 1) like `x`."""
        return self._draw("uniform_", x)


def draw_uniform(noise: NoiseFn, x: Tensor) -> Tensor:
    """Uniform on [0, 1) like `x`, from the stream of `noise` where it has one (`torch.randn_like` has none: then
    `torch.rand_like`).
    """
    uniform = getattr(noise, "uniform", torch.rand_like)
    return uniform(x)
