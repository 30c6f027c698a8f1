"""Grids of samples while a model trains, at a bounded price."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sde_score.files import first_line
from sde_score.run.facts import RunFacts
from sde_score.run.pictures import save_picture_of
from sde_score.run.sample import Samples, sample
from sde_score.sampling.base import Progress
from sde_score.tensors import mix_seed
from sde_score.training import MetricsWriter
from sde_score.training.state import TrainState

SHARE = 0.1  # of the training time, at most, goes into grids
AT_LEAST = 10.0  # seconds that they may take together, however short the training
FEWEST = 4  # samples that are worth a picture


class _TooLong(Exception):
    """A grid will take `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Snapshots:
    """A training action: a picture of `num` samples of the averaged weights, `samples/step_*.png`.

    All of them together take at most a tenth of the training time so far (or ten seconds): after two steps of the
    sampler it is known what the picture will take, and one that is too dear is drawn with fewer samples, or not.

    Args:
        run: the run that trains.
        num: how many samples; 0: none.
        seed: of the samples.
        say: takes messages for people.
        writers: each is shown the pictures.
    """

    def __init__(
        self,
        run: RunFacts,
        num: int,
        seed: int,
        *,
        say: Callable[[str], None] = print,
        writers: Sequence[MetricsWriter] = (),
    ) -> None:
        self.run, self.num, self.seed, self.say, self.writers = run, num, seed, say, writers
        self.spent, self.price = 0.0, 0.0  # seconds so far, and of one sample where they are known
        self.told: set[str] = set()

    def __call__(self, state: TrainState) -> None:
        if not self.num:
            return
        model = state.ema.model if state.ema is not None else state.model
        now, began = replace(self.run, model=model, step=state.step), time.monotonic()
        try:
            samples = self._affordable(now, max(AT_LEAST, SHARE * state.seconds) - self.spent)
            if samples is not None:
                self._show(now, samples)
        # an early model may diverge under a sampler; training need not stop for that
        except (FloatingPointError, RuntimeError) as error:
            self.say(f"No sample grid at step {state.step}: {first_line(error)}")
        finally:
            self.spent += time.monotonic() - began

    def _affordable(self, run: RunFacts, budget: float) -> Samples | None:
        """As many of the samples as `budget` seconds allow; `None` where that is none worth a picture."""
        for _ in range(2):  # the second time the price is known
            num = min(self.num, int(max(budget, 0.0) / self.price)) if self.price else self.num
            if num < min(FEWEST, self.num):
                break
            if num < self.num:
                self._say_once(
                    "fewer",
                    f"{self.num} samples would take {self.price * self.num:.0f} s, grids more than a tenth of the "
                    f"training time: this one holds {num}. Fewer or none: config.training.snapshot_samples.",
                )
            try:
                return self._draw(run, num, budget)
            except _TooLong as found:
                self.price = found.seconds / num
        self._say_once(
            "none",
            f"No sample grid at step {run.step}: grids would take more than a tenth of the training time. "
            f"sde-score sample --workdir={run.workdir} draws one afterwards; config.training.snapshot_freq says how "
            "often.",
        )
        return None

    def _draw(self, run: RunFacts, num: int, budget: float) -> Samples:
        chunks = -(-num // run.config.sampling.batch_size)
        first: list[float] = []

        def watch(progress: Progress) -> None:
            first.append(time.monotonic())
            elapsed = first[-1] - first[0]
            if progress.steps is not None and len(first) == 2:  # the first step prepares what the others use
                expected = elapsed * progress.steps * chunks
                if expected > budget:
                    raise _TooLong(expected)
                if expected > 10:
                    self.say(f"Step {run.step}: drawing {num} samples, about {expected:.0f} s.")
            elif elapsed > 2 * max(budget, 1.0):  # of unknown length, or slower than it began
                raise _TooLong(2 * elapsed)

        # the other processes wait at the next step
        return sample(run, num, seed=mix_seed(self.seed, 1), progress=True, shared=False, callback=watch)

    def _show(self, run: RunFacts, samples: Samples) -> None:
        path = run.workdir / "samples" / f"step_{run.step:08d}.png"
        path.parent.mkdir(exist_ok=True)  # fails where the run directory was deleted
        save_picture_of(run, path, samples.x)
        if self.writers:
            import numpy as np
            from PIL import Image

            with Image.open(path) as picture:
                pixels: Any = np.asarray(picture.convert("RGB")).transpose(2, 0, 1) / 255
            for writer in self.writers:
                writer.image(run.step, "samples", pixels)

    def _say_once(self, kind: str, message: str) -> None:
        if kind not in self.told:
            self.told.add(kind)
            self.say(message)
