"""The few function types that the rooms of the library exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

ScoreFn = Callable[[Tensor, Tensor], Tensor]
"""`(x: (B, *), t: (B,)) -> score`, of the shape of `x`: the gradient of log p_t at x."""

NoiseFn = Callable[[Tensor], Tensor]
"""Like `torch.randn_like`: standard normal of the shape, dtype and device of its argument. Seeds live here."""

Transform = Callable[[ScoreFn], ScoreFn]
"""Guidance: takes a score function and returns another with the same signature, so that transforms stack."""

Constraint = Callable[[Tensor, Any], Tensor]
"""`(x, moment) -> x`: applied by a sampler to its state after each update, and once more to the result; see
`sde_score.sampling.Moment` for what it may ask."""
