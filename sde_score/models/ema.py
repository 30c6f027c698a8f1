"""Exponential moving average of a model's weights, kept as a second model."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Moving average of a module's weights; `ema.model` is a module of its own, ready to sample from.

        theta_ema <- theta_ema + (1 - d_n) (theta - theta_ema),   d_n = min(decay, (1 + n) / (10 + n)),   n = 1, 2, ...

    The ramp d_n lets the first updates forget the random initialisation; `ramp=False` uses `decay` from the start.
    Parameters are averaged, buffers are copied. `decay=0` reproduces the parameters exactly. Convention of Song et
    al. 2021 (arXiv:2011.13456), in whose file format frozen parameters have no shadow; here they have one, equal to
    the parameter.

    Args:
        model: the module to follow; it is deep-copied, so build its EMA before wrapping it for several processes.
        decay: weight of the past, in [0, 1).
        ramp: whether the weight of the past grows with the number of updates.

    Raises:
        ValueError: if `decay` is outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, *, ramp: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(
                f"`EMA(decay=...)` must be at least 0 and below 1, got {decay}. Usual values: 0.999, 0.9999."
            )
        self.decay = decay
        self.ramp = ramp
        self.num_updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._followed: _Followed | None = None

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the present weights of `model`. Call it once after each optimiser step."""
        self.num_updates += 1
        n = self.num_updates
        d_n = min(self.decay, (1 + n) / (10 + n)) if self.ramp else self.decay
        if self._followed is None or self._followed.model is not model:
            self._followed = _Followed(self.model, model)
        followed = self._followed
        torch._foreach_lerp_(followed.averages, followed.parameters, 1.0 - d_n)  # one kernel; exact when d_n = 0
        for average, module in followed.with_buffers:
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    average._buffers[name].copy_(buffer)

    def state_dict(self) -> dict[str, object]:
        """The average under the names of the model, with the count of updates on which the ramp depends."""
        return {"num_updates": self.num_updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up a state written by `state_dict`. `decay` and `ramp` are settings and stay as constructed."""
        weights: Mapping[str, Tensor] = state["model"]  # type: ignore[assignment]
        self.model.load_state_dict(weights)
        self.num_updates = int(state["num_updates"])  # type: ignore[call-overload]


class _Followed:
    """The parameters of a model and of its average, and the modules with buffers: a walk through both takes long.

    As for an optimiser, parameters stay the same objects while training goes on; buffers may be replaced.
    """

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        self.model = model
        self.averages, self.parameters = list(average.parameters()), list(model.parameters())
        # a wrapper around a module, such as a compiled one, has no buffers of its own
        holders = ([m for m in module.modules() if m._buffers] for module in (average, model))
        self.with_buffers = list(zip(*holders, strict=True))
