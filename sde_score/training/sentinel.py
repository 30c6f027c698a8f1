"""When a loss or a gradient is not finite: what exactly, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class TimeProbe:
    """Stands in for a score model and notes the times it is asked for; everything else is the model's own."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.times: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **cond: Any) -> Any:
        self._note(t)
        return self._model(x, t, *args, **cond)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)
        if name not in ("forward", "eps", "denoise", "score"):
            return value

        def asked(x: Tensor, t: Tensor, *args: Any, **cond: Any) -> Any:
            self._note(t)
            return value(x, t, *args, **cond)

        return asked

    def _note(self, t: Tensor) -> None:
        if self.times is None and isinstance(t, Tensor) and t.is_floating_point():
            self.times = t.detach()


def diagnose_losses(model: nn.Module, losses: Callable[[Any], Tensor], positions: Sequence[int]) -> str | None:
    """Say which samples have a loss that is not finite, at what time, and which layer was the first; None if there
    are none.

    `losses(model)` repeats the failed forward pass and returns the loss of each sample, `positions` are their places
    in the batch.
    """
    probe = TimeProbe(model)
    with first_bad_layer(model) as bad_layer:
        per_sample = losses(probe).detach()
    wrong = (~torch.isfinite(per_sample)).nonzero().flatten().tolist()
    if not wrong:
        return None
    first = wrong[0]
    told = f"the loss is not finite for {len(wrong)} of {len(per_sample)} samples"
    told += f" (first: the one at position {int(positions[first])}"
    if probe.times is not None and probe.times.shape == per_sample.shape:
        told += f", t = {float(probe.times[first]):.6g}"
    return told + ")" + (f"; first layer with such an output: {bad_layer[0]}" if bad_layer else "")


def diagnose_gradients(model: nn.Module) -> str:
    """Say in which parameters the gradient is not finite."""
    names = [name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    if names:
        return f"the losses are finite, the gradient is not, in {len(names)} parameters (first: {names[0]})"
    return "all is finite on this process (another has the bad sample, or the norm of the gradient overflows)"


@contextmanager
def first_bad_layer(model: nn.Module) -> Iterator[list[str]]:
    """A list that receives the name of the first module whose output is not finite, while the block runs the model."""
    found: list[str] = []

    def watch(name: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"{name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
