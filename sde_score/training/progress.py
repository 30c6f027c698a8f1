"""What a person sees of a training run while it goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sde_score.training.trainer import Trainer


ESTIMATE_AFTER = 20  # steps; the first one, which sets everything up, is left out


def in_words(seconds: float) -> str:
    """A duration as one says it: `40 s`, `12 min`, `3.5 h`, `4 days`."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86400:.0f} days"


class TrainingProgress:
    """A bar on a terminal, elsewhere a line every 10 seconds, and after 20 steps how long it will take; and the speed
    since the last line of the metrics."""

    def __init__(self, trainer: Trainer, interval: float = 10.0) -> None:
        self.trainer, self.interval = trainer, interval
        self.bar: Any = None

    def __enter__(self) -> TrainingProgress:
        from tqdm import tqdm

        off = None if self.trainer.progress else True  # None: on a terminal only
        self.bar = tqdm(
            total=self.trainer.steps, initial=self.trainer.state.step, disable=off, unit="step", dynamic_ncols=True
        )
        self.since, self.samples = time.monotonic(), 0
        self.told, self.told_samples = self.since, 0
        self.steps, self.first = 0, self.since
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, loss: float, samples: int) -> None:
        self.samples += samples
        self.told_samples += samples
        self.steps += 1
        if self.steps == 1:
            self.first = time.monotonic()
        elif self.steps == ESTIMATE_AFTER:
            self._estimate((time.monotonic() - self.first) / (ESTIMATE_AFTER - 1))
        if not self.bar.disable:
            self.bar.set_postfix_str(
                f"loss {loss:.4g}, {self.samples / max(time.monotonic() - self.since, 1e-9):.0f} samples/s",
                refresh=False,
            )
            self.bar.update()
        elif self.trainer.progress and (now := time.monotonic()) - self.told >= self.interval:
            speed = self.told_samples / (now - self.told)
            self.trainer.say(
                f"step {self.trainer.state.step} of {self.trainer.steps}: loss {loss:.4g}, {speed:.0f} samples/s"
            )
            self.told, self.told_samples = now, 0

    def _estimate(self, seconds: float) -> None:
        """Say how long the steps that are left will take, or what the cap on the time leaves undone."""
        trainer = self.trainer
        left = trainer.steps - trainer.state.step
        if not left or not trainer.progress:
            return
        cap = trainer.max_seconds
        room = left * seconds if cap is None else min(left * seconds, max(0.0, cap - trainer.state.seconds))
        told = f"{seconds:.2g} s a step: about {in_words(room)} for the {left:,} steps that are left"
        if room < left * seconds:
            told = (
                f"{seconds:.2g} s a step: max_seconds={cap:g} leaves time for about {int(room / seconds):,} of the "
                f"{left:,} steps that are left, which would take {in_words(left * seconds)}"
            )
        trainer.say(told + ".")

    def take_rate(self) -> float:
        """Samples per second since the last call."""
        now = time.monotonic()
        rate = self.samples / max(now - self.since, 1e-9)
        self.since, self.samples = now, 0
        return rate
