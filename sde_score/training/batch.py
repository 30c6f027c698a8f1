"""What one process works on in one step: its share of the batch, and how it is cut and stripped of conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_score.tensors import SampleNoise, expand_like, mix_seed, to_device
from sde_score.training import distributed

# A word that keeps this stream apart from the others of one seed; no number of a step or of a sample gets so far.
_DROP = 0xD209 << 40


def as_conditions(cond: Any, n: int, device: torch.device) -> dict[str, Tensor]:
    """Conditions of `n` samples as a mapping, on `device`: from a mapping, from class labels alone (`y`), or from None.

    Raises `ValueError` for a condition that does not hold one entry per sample.
    """
    cond = {} if cond is None else {"y": cond} if isinstance(cond, Tensor) else dict(cond)
    for name, values in cond.items():
        if not isinstance(values, Tensor) or values.ndim < 1 or len(values) != n:
            raise ValueError(
                f"The condition {name!r} must be a tensor with one entry per sample, shape ({n}, *); got "
                f"{tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__}."
            )
    return {name: values.to(device, non_blocking=True) for name, values in cond.items()}


@dataclass(frozen=True)
class Share:
    """Samples of a step.

    Attributes:
        x: `(B, *)`.
        cond: their conditions, each `(B, *)`.
        positions: the B numbers that name their noise.
        places: their places in the batch of all processes, `(B,)`.
        size: of that batch.
    """

    x: Tensor
    cond: dict[str, Tensor]
    positions: Sequence[int]
    places: Tensor
    size: int

    @classmethod
    def of(cls, x: Tensor, cond: Any, positions: Sequence[int], device: torch.device) -> Share:
        """This process's share of a step, on `device`; the processes' shares follow one another."""
        if len(positions) != len(x):
            raise ValueError(
                f"A batch of {len(x)} samples and {len(positions)} positions; it must give one position per sample."
            )
        counts = torch.zeros(distributed.world_size(), dtype=torch.int64)
        counts[distributed.rank()] = len(x)
        if len(counts) > 1:
            counts = distributed.all_sum(counts.to(device)).cpu()
        places = int(counts[: distributed.rank()].sum()) + torch.arange(len(x))
        return cls(to_device(x, device), as_conditions(cond, len(x), device), positions, places, int(counts.sum()))

    def __len__(self) -> int:
        return len(self.x)

    def cut(self, parts: int) -> list[Share]:
        """In so many parts, as equal as may be."""
        size = math.ceil(len(self) / parts)
        cuts = [slice(begin, begin + size) for begin in range(0, len(self), size)]
        return [
            replace(
                self,
                x=self.x[cut],
                cond={name: values[cut] for name, values in self.cond.items()},
                positions=self.positions[cut],
                places=self.places[cut],
            )
            for cut in cuts
        ]

    def noise(self, seed: int, step: int) -> SampleNoise:
        """The noise of these samples in step `step`: of each a function of (seed, step, position)."""
        return SampleNoise((seed, step), self.positions, places=self.places, size=self.size)

    def without_some_conditions(
        self, rate: float, seed: int, step: int, none: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    ) -> Share:
        """All conditions of a share `rate` of the samples replaced by what `none(cond)` gives for the same batch.

        Which samples is a function of (seed, step, position), in a stream of its own: the noise of the loss is the same
        with and without.
        """
        if rate == 0 or not self.cond:
            return self
        bound = rate * 2**63  # `mix_seed` has 63 bits
        drop = [mix_seed(seed, _DROP, step, int(position)) < bound for position in self.positions]
        mask, absent = torch.tensor(drop, device=self.x.device), none(self.cond)
        cond = {name: torch.where(expand_like(mask, v), absent[name].to(v.dtype), v) for name, v in self.cond.items()}
        return replace(self, cond=cond)
