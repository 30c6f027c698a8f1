"""What a person sees of a training run while it goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sde_score.training.trainer import Trainer


class TrainingProgress:
    """A bar on a terminal, elsewhere a line every 10 seconds; and the speed since the last line of the metrics."""

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
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, loss: float, samples: int) -> None:
        self.samples += samples
        self.told_samples += samples
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

    def take_rate(self) -> float:
        """Samples per second since the last call."""
        now = time.monotonic()
        rate = self.samples / max(now - self.since, 1e-9)
        self.since, self.samples = now, 0
        return rate
