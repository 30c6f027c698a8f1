"""The interface of training objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from sde_score.protocols import NoiseFn
from sde_score.registry import Registry
from sde_score.score import Score, as_score
from sde_score.sdes.base import SDE, require_sde
from sde_score.tensors import mean_except_batch, sum_except_batch

OBJECTIVES: Registry[Objective] = Registry("objective", group="sde_score.objectives")

REDUCTIONS = {
    "mean": mean_except_batch,
    "sum": sum_except_batch,
    "half_sum": lambda x: 0.5 * sum_except_batch(x),  # the published default
}


class Objective(ABC):
    """A training objective: `objective(model, x0, noise=noise, **cond)` gives one loss per sample, `(B,)`."""

    def __init__(self, sde: SDE) -> None:
        self.sde = require_sde(sde)

    def score_of(self, model: nn.Module) -> Score:
        """The model as a score, whatever kind of callable it is."""
        return as_score(model, self.sde)

    def check_data(self, x0: Tensor) -> None:
        """Refuse data that are not scaled yet."""
        if not x0.is_floating_point():
            raise TypeError(
                f"{type(self).__name__}: x0 holds {x0.dtype}; an objective takes scaled data, floating-point numbers: "
                "encode them with the scaler first."
            )

    @abstractmethod
    def __call__(self, model: nn.Module, x0: Tensor, *, noise: NoiseFn, **cond) -> Tensor:
        """Loss per sample; `x0` is scaled data of shape `(B, *)`."""
