"""The interfaces of sampling: predictors, correctors and samplers, and what a sampler returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_score.protocols import Constraint, NoiseFn, ScoreFn
from sde_score.registry import Registry, parse_spec, suggest
from sde_score.sdes.base import SDE

PREDICTORS = Registry("predictor", group="sde_score.predictors")
CORRECTORS = Registry("corrector", group="sde_score.correctors")
SAMPLERS = Registry("sampler", group="sde_score.samplers")
DENOISING = ("tweedie", "mean", "none")


class Predictor(ABC):
    """One step of the reverse process from `t` down to `t_next`. Settings in the constructor, data in the call."""

    n_chain: int | None = None
    """Number of steps of the published chain this predictor follows, if it does: the grid must be the published one."""
    within_process: bool = False
    """Does it need `t_next >= 0`?"""

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    @abstractmethod
    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, t_next: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        """Return `(x, x_mean)` at `t_next`: the new state, and the same before its noise was added. `t`, `t_next`:
        `(B,)`.
        """


class Corrector(ABC):
    """Steps at a fixed time that leave the marginal law invariant (to first order in their size) and repair the
    predictor's errors.
    """

    batch_coupled: bool = False
    """Does a sample's step depend on its neighbours in the batch?"""

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    @abstractmethod
    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        """Return `(x, x_mean)`, both at `t`."""


@dataclass
class Progress:
    """What a sampler tells its callback after each step: step `step` of `steps` (None if unknown) led to time `t`."""

    step: int
    steps: int | None
    t: float
    x: Tensor
    x_mean: Tensor
    nfe: int


Callback = Callable[[Progress], None]


@dataclass
class SampleResult:
    """Samples and what they cost. `x`: `(B, *)`; `nfe`: score calls counted, per sample; `info`: what else a sampler
    knows.
    """

    x: Tensor
    nfe: int
    info: dict[str, Any] = field(default_factory=dict)


class CountedScore:
    """A score function that counts its calls, and that checks its first answer once, at the door."""

    def __init__(self, score_fn: ScoreFn) -> None:
        self.score_fn = score_fn
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        score = self.score_fn(x, t)
        if self.calls == 0 and score.shape != x.shape:
            raise ValueError(
                f"The score function returned shape {tuple(score.shape)} for x of shape {tuple(x.shape)}; they must be "
                "equal."
            )
        self.calls += 1
        return score


class Trajectory:
    """A callback that keeps at most `frames` states of a run, evenly spaced in steps where their number is known.

    `states` has shape `(frames, B, *)` on the CPU; `times` are theirs.
    """

    def __init__(self, frames: int = 12, *, mean: bool = True) -> None:
        self.frames, self.mean = frames, mean
        self.kept: list[tuple[float, Tensor]] = []

    def __call__(self, progress: Progress) -> None:
        if progress.steps:
            wanted = {round((k + 1) * progress.steps / self.frames) for k in range(self.frames)}
            if progress.step not in wanted:
                return
        self.kept.append((progress.t, (progress.x_mean if self.mean else progress.x).detach().cpu().clone()))
        if len(self.kept) > 4 * self.frames:  # unknown length: thin out as it grows
            self.kept = self.kept[1::2]

    def _picked(self) -> list[tuple[float, Tensor]]:
        if not self.kept:
            raise ValueError("This trajectory has recorded nothing yet: pass it as callback to a sampler first.")
        count = min(self.frames, len(self.kept))
        return [self.kept[i] for i in torch.linspace(0, len(self.kept) - 1, count).round().long().tolist()]

    @property
    def states(self) -> Tensor:
        """The kept states, thinned to `frames`."""
        return torch.stack([x for _, x in self._picked()])

    @property
    def times(self) -> list[float]:
        """The times of `states`."""
        return [t for t, _ in self._picked()]


class ProgressBar:
    """A callback that draws a tqdm bar (on a terminal only, unless `disable` says otherwise)."""

    def __init__(self, label: str = "sampling", *, disable: bool | None = None) -> None:
        self.label, self.disable, self.bar = label, disable, None

    def __call__(self, progress: Progress) -> None:
        if self.bar is None:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=progress.steps, desc=self.label, disable=self.disable, leave=False)
        self.bar.update(progress.step - self.bar.n)
        self.bar.set_postfix_str(f"t={progress.t:.3g} nfe={progress.nfe}", refresh=False)
        if progress.steps is not None and progress.step >= progress.steps:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def callbacks(*parts: Callback | None) -> Callback | None:
    """One callback from several, leaving out those that are None."""
    present: Sequence[Callback] = [p for p in parts if p is not None]

    def call(progress: Progress) -> None:
        for part in present:
            part(progress)

    return call if present else None


class Sampler(ABC):
    """From prior samples to data: `sampler(score_fn, x_T)`. One object serves the raw model, its EMA, a guided or an
    exact score.

    Args:
        sde: the forward process.
        t_min: where to stop; the SDE's own unless given.
        denoise: the last step, which removes the noise still present at `t_min`. `"tweedie"`: the posterior mean, one
            more score call; `"mean"`: the last update before its noise; `"none"`; or a predictor spec, whose `x_mean`
            at `t_min` is taken.
    """

    def __init__(self, sde: SDE, *, t_min: float | None = None, denoise: str = "tweedie") -> None:
        self.sde = sde
        self.t_min = sde.t_min if t_min is None else float(t_min)
        if not 0 <= self.t_min < sde.T:
            raise ValueError(f"t_min must lie in [0, {sde.T:g}); got {t_min}.")
        self.denoise = denoise
        if denoise == "tweedie" and not sde.can_denoise:
            raise ValueError(
                f"denoise='tweedie' needs the law of x_t given x_0, which {type(sde).__name__} does not know; choose "
                "denoise='mean' (predictor-corrector) or 'none'."
            )
        self.denoiser = None
        if denoise not in DENOISING:
            if parse_spec(denoise)[0] not in PREDICTORS.names():
                raise ValueError(f"Unknown denoise {denoise!r}.{suggest(denoise, DENOISING)} Or a predictor spec.")
            self.denoiser = PREDICTORS.build(denoise, sde)

    @abstractmethod
    def __call__(
        self,
        score_fn: ScoreFn,
        x_T: Tensor,
        *,
        noise: NoiseFn = torch.randn_like,
        constraint: Constraint | None = None,
        callback: Callback | None = None,
    ) -> SampleResult:
        """Carry `x_T` of shape `(B, *)` from `T` to `t_min` and denoise.

        `noise` holds the seeds; `constraint` is applied after every update; `callback` sees every step.
        Raises `FloatingPointError` with step and time when a state is not finite.
        """

    def finish(self, score_fn: ScoreFn, x: Tensor, x_mean: Tensor, noise: NoiseFn) -> Tensor:
        """The final denoising step at `t_min`."""
        if self.denoise == "none":
            return x
        if self.denoise == "mean":
            return x_mean
        t = x.new_full((1,), self.t_min).expand(len(x))
        if self.denoise == "tweedie":
            return self.sde.denoise(score_fn, x, t)
        return self.denoiser.step(score_fn, x, t, torch.zeros_like(t), noise)[1]

    def check_finite(self, x: Tensor, step: int, t: float) -> None:
        """Raise when `x` holds a NaN or an infinity, saying where and what to try."""
        if not torch.isfinite(x).all():
            bad = (~torch.isfinite(x.reshape(len(x), -1)).all(1)).nonzero().flatten().tolist()
            raise FloatingPointError(
                f"Sampling left the finite numbers at step {step}, t = {t:.4g}, in samples "
                f"{bad[:8]}{'...' if len(bad) > 8 else ''} of {len(x)}. Try more steps, a smaller corrector snr or "
                "another predictor; and check the score at that time (an untrained or diverged model, or data outside "
                "the scaler's range)."
            )


def check_start(x_T: Tensor) -> None:
    """Refuse a start that no sampler can use."""
    if x_T.ndim < 2 or not x_T.is_floating_point():
        raise ValueError(
            f"x_T must be a floating-point tensor of shape (B, *) with at least two axes; got {x_T.dtype} "
            f"{tuple(x_T.shape)}."
        )
    if not torch.isfinite(x_T).all():
        raise FloatingPointError("x_T holds values that are not finite.")
