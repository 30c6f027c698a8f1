"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from sde_score.registry import suggest

DECAYS = ("constant", "cosine")


def make_optimizer(
    params: Iterable[nn.Parameter],
    *,
    name: str = "adam",
    lr: float = 2e-4,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Adam, with weight decay added to the gradient ("adam") or decoupled from it ("adamw"); one fused kernel where
    torch has one.

    Defaults as published with the SDE framework (Song et al. 2021). Build it after the model is on its device.

    Raises:
        ValueError: for another name, or no parameters.
    """
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if name not in kinds:
        raise ValueError(
            f"`make_optimizer(name=...)` knows 'adam' and 'adamw', not {name!r}. Any torch optimiser can be given to "
            "the Trainer."
        )
    params = list(params)
    if not params:
        raise ValueError("`make_optimizer` got no parameters; give model.parameters().")
    fused = all(p.device.type in ("cpu", "cuda") and p.dtype.is_floating_point for p in params)
    return kinds[name](params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=fused)


@dataclass(frozen=True)
class Schedule:
    """How many steps, and what the learning rate is multiplied by in each: `schedule(k)`, k counted from 0.

    Warm-up: `min((k + 1) / warmup, 1)`. The published rule `min(k / warmup, 1)` makes the first step one of length 0.
    Decay "constant" stays there; "cosine" goes on with `(1 + cos(pi (k - warmup) / (steps - warmup))) / 2`.

    Args:
        steps: how many steps in all.
        warmup: steps of the warm-up; 0: none.
        decay: "constant" or "cosine".
        published_warmup: see above.
    """

    steps: int
    warmup: int = 0
    decay: str = "constant"
    published_warmup: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`Schedule(steps=...)` must be at least 1, got {self.steps}.")
        if self.warmup < 0:
            raise ValueError(f"`Schedule(warmup=...)` must be at least 0, got {self.warmup}.")
        if self.decay not in DECAYS:
            raise ValueError(
                f"`Schedule(decay=...)`: no schedule decays like {self.decay!r}.{suggest(str(self.decay), DECAYS)}"
            )

    def __call__(self, step: int) -> float:
        k = step if self.published_warmup else step + 1
        warm = min(k / self.warmup, 1.0) if self.warmup > 0 else 1.0
        if self.decay == "constant" or step < self.warmup:
            return warm
        return warm * 0.5 * (1.0 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))
