"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


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


def learning_rate_factor(
    step: int, *, steps: int, warmup: int = 0, schedule: str = "constant", published_warmup: bool = False
) -> float:
    """What the learning rate is multiplied by in step k = `step`, counted from 0.

    Warm-up: `min((k + 1) / warmup, 1)`. The published rule `min(k / warmup, 1)` makes the first step one of length 0.
    Schedule "constant" stays there; "cosine" goes on with `(1 + cos(pi (k - warmup) / (steps - warmup))) / 2`.
    """
    warm = min((step if published_warmup else step + 1) / warmup, 1.0) if warmup > 0 else 1.0
    if schedule == "constant" or step < warmup:
        return warm
    return warm * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
