"""Validation loss by noise level, with noise and times that never change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sde_score.tensors import SampleNoise, to_device
from sde_score.training.batch import as_conditions
from sde_score.training.sentinel import TimeProbe
from sde_score.training.state import TrainState
from sde_score.training.trainer import per_sample_loss

# Keeps this noise apart from that of training, (seed, step, position); no number of a step or of a sample gets so far.
_VALIDATION = 0x7A11 << 40


class ValidationLoss:
    """Mean loss over held-out batches, in all and by log-SNR; an action for the `Trainer`.

    Noise and times of a sample are functions of (seed, repeat, its number), in a stream of their own, so that two
    evaluations differ by the weights alone and a slow trend shows under what would otherwise be noise. The time is read
    off the call of the model; where the objective makes no such call with one time per sample, only the mean is given.

    Args:
        objective: as in training.
        batches: pairs `(x, cond)`, gone through anew at each evaluation (so a sequence, not a generator).
        log_snr: `sde.log_snr`, or None for no bins.
        edges: inner bounds of the bins of log-SNR.
        repeats: times drawn for each sample.
        prepare: as in training.
        seed: of the noise.
        raw: whether to report the weights being trained too, not the EMA only.
    """

    def __init__(
        self,
        objective: Callable[..., Tensor],
        batches: Iterable[tuple[Tensor, Any]],
        *,
        log_snr: Callable[[Tensor], Tensor] | None = None,
        edges: Sequence[float] = (-6.0, -3.0, 0.0, 3.0, 6.0),
        repeats: int = 1,
        prepare: Callable[[Tensor, Any], Tensor] | None = None,
        seed: int = 0,
        raw: bool = True,
    ) -> None:
        self.objective, self.batches, self.log_snr = objective, batches, log_snr
        self.edges = [float(edge) for edge in edges]
        self.repeats, self.seed, self.raw = repeats, seed, raw
        self.prepare = prepare if prepare is not None else lambda x, noise: x

    def __call__(self, state: TrainState) -> dict[str, float | None]:
        """Names `val/loss`, `val/loss/logsnr<-6` ... for the EMA, and the same under `val_raw` for the raw weights."""
        values: dict[str, float | None] = {}
        if state.ema is not None:
            values |= self.evaluate(state.ema.model, "val")
        if self.raw or state.ema is None:
            values |= self.evaluate(state.model, "val_raw" if state.ema is not None else "val")
        return values

    def evaluate(self, model: nn.Module, prefix: str = "val") -> dict[str, float | None]:
        """The mean loss of `model` and, for each bin that received samples, the mean there."""
        losses, levels = self.samples(model)
        values = {f"{prefix}/loss": float(losses.mean())}
        if levels is not None:
            bins = torch.bucketize(levels, torch.tensor(self.edges, dtype=levels.dtype))
            bounds = [-math.inf, *self.edges, math.inf]
            for i, (low, high) in enumerate(zip(bounds, bounds[1:])):
                if (bins == i).any():
                    name = (
                        f"<{high:g}" if low == -math.inf else f">{low:g}" if high == math.inf else f"{low:g}..{high:g}"
                    )
                    values[f"{prefix}/loss/logsnr{name}"] = float(losses[bins == i].mean())
        return values

    def samples(self, model: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Loss and log-SNR of each sample and repeat, float64 on the CPU; no log-SNR where the times are not known."""
        device = next(model.parameters()).device
        losses: list[Tensor] = []
        levels: list[Tensor] = []
        with at_rest(model):
            for repeat in range(self.repeats):
                seen = 0
                for x, cond in self.batches:
                    noise = SampleNoise((self.seed, _VALIDATION, repeat), range(seen, seen + len(x)))
                    seen += len(x)
                    loss, times = self._batch(model, to_device(x, device), as_conditions(cond, len(x), device), noise)
                    losses.append(loss.detach().double().cpu())
                    if self.log_snr is not None and times is not None:
                        levels.append(self.log_snr(times.double().cpu()))
        if not losses:
            raise ValueError("ValidationLoss has no batches. Give a sequence of (x, cond), not a used-up generator.")
        return torch.cat(losses), torch.cat(levels) if len(levels) == len(losses) else None

    def _batch(
        self, model: nn.Module, x: Tensor, cond: Mapping[str, Any], noise: SampleNoise
    ) -> tuple[Tensor, Tensor | None]:
        probe = TimeProbe(model)
        loss = per_sample_loss(self.objective, probe, self.prepare(x, noise), noise, cond)
        known = probe.times is not None and probe.times.shape == loss.shape
        return loss, probe.times if known else None


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode and without gradients for its weights, and afterwards as it was.

    Not `no_grad`: some objectives differentiate the score with respect to x.
    """
    was_training, trained = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(was_training)
        for p in trained:
            p.requires_grad_(True)
