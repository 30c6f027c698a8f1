"""The interfaces of sampling: predictors, correctors and samplers, and what a sampler returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_score.protocols import Constraint, NoiseFn, ScoreFn
from sde_score.registry import Registry, suggest
from sde_score.score import CountedScore, Score, as_score
from sde_score.sdes.base import SDE, require_sde
from sde_score.tensors import rows

PREDICTORS: Registry[Predictor] = Registry("predictor", group="sde_score.predictors")
CORRECTORS: Registry[Corrector] = Registry("corrector", group="sde_score.correctors")
SAMPLERS: Registry[Sampler] = Registry("sampler", group="sde_score.samplers")
DENOISING = ("tweedie", "mean", "none")


Advance = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""`(x, k) -> (x, x_mean)`: step k of a run, from `grid[k, 0]` to `grid[k, 1]`."""


class Predictor:
    """The reverse process from `t` down to `t_next`. Settings in the constructor, data in the call.

    A one-step predictor overrides `step`. One that remembers (multistep and exponential methods) overrides `start`
    instead, and keeps what belongs to a run in the function that it gives back: the object itself serves many runs.
    """

    moves: bool = True
    """Does it change the state at all?"""

    def __init__(self, sde: SDE) -> None:
        self.sde = require_sde(sde)

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, t_next: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        """Return `(x, x_mean)` at `t_next`: the new state, and the same before its noise was added. `t`, `t_next`:
        `(B,)`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no step(): a one-step predictor overrides it. A multistep predictor overrides "
            "start() and is run over a whole grid."
        )

    def start(self, score: Score, grid: Tensor, noise: NoiseFn) -> Advance:
        """Begin a run over `grid`, `(N, 2)` times from T to t_min in the precision of the state: a function that takes
        step k. `score` is a `sde_score.score.Score`, so `eps` and `denoise` are at hand.
        """

        def advance(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
            t, t_next = (time.expand(len(x)) for time in grid[k])
            return self.step(score, x, t, t_next, noise)

        return advance


class Corrector(ABC):
    """Steps at a fixed time that leave the marginal law invariant (to first order in their size) and repair the
    predictor's errors.
    """

    moves: bool = True
    """Does it change the state at all?"""
    batch_coupled: bool = False
    """Does a sample's step depend on its neighbours in the batch?"""

    def __init__(self, sde: SDE) -> None:
        self.sde = require_sde(sde)

    @abstractmethod
    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        """Return `(x, x_mean)`, both at `t`."""


@dataclass
class Moment:
    """Where in a run a constraint is applied, and what it may ask for.

    Attributes:
        t: the time of the state, `(B,)`; 0 for the result.
        step, steps: step `step` of `steps` led here.
        final: is this the result, denoised, in which no noise is left?
        score: the score of the run; its evaluations count.
        noise: the run's noise.
    """

    t: Tensor
    step: int
    steps: int
    score: Score
    noise: NoiseFn
    final: bool = False

    def denoise(self, x: Tensor) -> Tensor:
        """E[x_0 | x_t = x], by one evaluation of the score; `x` itself at the end."""
        return x if self.final else self.score.denoise(x, self.t)

    def noised(self, x0: Tensor) -> Tensor:
        """Data `x0` brought to the noise level of this moment: a draw of x_t given x_0; `x0` itself at the end."""
        return x0 if self.final else self.score.sde.simulate(x0, self.t, self.noise)


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


class Trajectory:
    """A callback that keeps at most `frames` states of a run, evenly spaced in steps where their number is known.

    `states` has shape `(frames, B, *)` on the CPU; `times` are theirs.
    """

    def __init__(self, frames: int = 12, *, mean: bool = True) -> None:
        self.frames, self.mean = frames, mean
        self.kept: list[tuple[float, Tensor]] = []
        self._latest: tuple[float, Tensor] | None = None
        self._stride = 1

    def __call__(self, progress: Progress) -> None:
        state = (progress.t, (progress.x_mean if self.mean else progress.x).detach())
        if progress.steps:
            wanted = {round((k + 1) * progress.steps / self.frames) for k in range(self.frames)}
            if progress.step not in wanted:
                return
        else:  # of unknown length: every stride-th step, a stride that doubles as the run grows, and the last one
            self._latest = state
            if progress.step % self._stride:
                return
        self.kept.append((state[0], state[1].cpu().clone()))
        if len(self.kept) > 4 * self.frames:
            self.kept, self._stride = self.kept[1::2], 2 * self._stride

    def _picked(self) -> list[tuple[float, Tensor]]:
        if not self.kept:
            raise ValueError("This trajectory has recorded nothing yet: pass it as callback to a sampler first.")
        count = min(self.frames, len(self.kept))
        picked = [self.kept[i] for i in torch.linspace(0, len(self.kept) - 1, count).round().long().tolist()]
        if self._latest is not None:
            picked[-1] = (self._latest[0], self._latest[1].cpu().clone())
        return picked

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


@dataclass
class Context:
    """What a run of a sampler works with: the counted score, the noise, and what is to happen between the steps."""

    score: CountedScore
    noise: NoiseFn
    steps: int | None
    constraint: Constraint | None = None
    callback: Callback | None = None

    def constrained(self, x: Tensor, t: float | Tensor, step: int, *, final: bool = False) -> Tensor:
        """The state with the constraint applied, if there is one."""
        if self.constraint is None:
            return x
        time = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        kept = self.constraint(x, Moment(time, step, self.steps or step, self.score, self.noise, final))
        if not isinstance(kept, Tensor) or kept.shape != x.shape:
            got = tuple(kept.shape) if isinstance(kept, Tensor) else type(kept).__name__
            raise ValueError(f"The constraint returned {got} for x of shape {tuple(x.shape)}; they must be equal.")
        return kept

    def tell(self, step: int, t: float, x: Tensor, x_mean: Tensor) -> None:
        """Call the callback."""
        if self.callback is not None:
            self.callback(Progress(step, self.steps, t, x, x_mean, self.score.calls))


@dataclass
class End:
    """Where a run arrived at `t_min`: the state, the same before its last noise (None where a sampler has no such
    thing), and what else there is to know.
    """

    x: Tensor
    x_mean: Tensor | None = None
    step: int = 0
    info: dict[str, Any] = field(default_factory=dict)


class Sampler(ABC):
    """From prior samples to data: `sampler(score_fn, x_T)`. One object serves the raw model, its EMA, a guided or an
    exact score.

    A subclass gives `run`, the way from `T` to `t_min`.

    Args:
        sde: the forward process.
        t_min: where to stop; the SDE's own unless given.
        denoise: the last step, which removes the noise still present at `t_min`. `"tweedie"`: the posterior mean, one
            more score call; `"mean"`: the last update before its noise; `"none"`.
    """

    has_mean: bool = True
    """Does a step give a mean before its noise, which denoise='mean' could take?"""

    def __init__(self, sde: SDE, *, t_min: float | None = None, denoise: str = "tweedie") -> None:
        self.sde = require_sde(sde)
        self.t_min = sde.t_min if t_min is None else float(t_min)
        if not 0 <= self.t_min < sde.T:
            raise ValueError(f"t_min must lie in [0, {sde.T:g}); got {t_min}.")
        if denoise not in DENOISING:
            raise ValueError(f"Unknown denoise {denoise!r}.{suggest(str(denoise), DENOISING)}")
        if denoise == "tweedie" and not sde.can_denoise:
            raise ValueError(
                f"denoise='tweedie' needs the law of x_t given x_0, which {type(sde).__name__} does not know; choose "
                "denoise='mean' (predictor-corrector) or 'none'."
            )
        if denoise == "mean" and not self.has_mean:
            raise ValueError(
                f"{type(self).__name__} has no mean before noise that denoise='mean' could take; choose 'tweedie' or "
                "'none'."
            )
        self.denoise = denoise

    @abstractmethod
    def run(self, x: Tensor, context: Context) -> End:
        """Carry `x` of shape `(B, *)` from `T` to `t_min` with `context.score` and `context.noise`; call
        `context.constrained` and `context.tell` after each step.
        """

    def __call__(
        self,
        score_fn: ScoreFn,
        x_T: Tensor,
        *,
        noise: NoiseFn = torch.randn_like,
        constraint: Constraint | None = None,
        callback: Callback | None = None,
        differentiable: bool = False,
    ) -> SampleResult:
        """Carry `x_T` of shape `(B, *)` from `T` to `t_min` and denoise.

        Args:
            score_fn: `(x, t) -> score`, or a `Score`.
            x_T: a draw of the prior. An empty batch gives an empty result.
            noise: holds the seeds.
            constraint: `(x, moment) -> x`, applied to the state after each update and once more to the result.
            callback: sees every step.
            differentiable: keep the graph of the whole run, so that gradients reach `x_T` and what the score depends
                on; memory grows with the steps. Otherwise nothing of it is kept, whatever the score does.

        Raises:
            FloatingPointError: with step and time, when a state is not finite.
            ValueError, TypeError: for a start or a score that cannot serve.
        """
        check_start(x_T)
        if constraint is not None:
            self.check_constraint()
        if len(x_T) == 0:
            return SampleResult(x_T.clone(), 0)
        score = CountedScore(as_score(score_fn, self.sde))
        with graph_of_the_run(differentiable):
            x_T = x_T.clone() if x_T.is_inference() else x_T
            end = self.run(x_T, Context(score, noise, None, constraint, callback))
            x = self.finish(score, end)
            if x is not end.x:
                x = Context(score, noise, end.step, constraint).constrained(x, 0.0, end.step, final=True)
            self.check_finite(x, end.step, self.t_min)
        return SampleResult(x, score.nfe(len(x)), end.info)

    def check_constraint(self) -> None:  # noqa: B027
        """Raise `ValueError` where this sampler cannot apply a constraint."""

    def finish(self, score: Score, end: End) -> Tensor:
        """The final denoising step at `t_min`."""
        if self.denoise == "none":
            return end.x
        if self.denoise == "mean":
            return end.x if end.x_mean is None else end.x_mean
        return score.denoise(end.x, end.x.new_full((1,), self.t_min).expand(len(end.x)))

    def check_finite(self, x: Tensor, step: int, t: float) -> None:
        """Raise when `x` holds a NaN or an infinity, saying where and what to try."""
        if not torch.isfinite(x).all():
            bad = (~torch.isfinite(rows(x)).all(1)).nonzero().flatten().tolist()
            raise FloatingPointError(
                f"Sampling left the finite numbers at step {step}, t = {t:.4g}, in samples "
                f"{bad[:8]}{'...' if len(bad) > 8 else ''} of {len(x)}. Try more steps, a smaller corrector snr or "
                "another predictor; and check the score at that time (an untrained or diverged model, or data outside "
                "the scaler's range)."
            )


@contextmanager
def graph_of_the_run(wanted: bool) -> Iterator[None]:
    """Keep the graph, or keep none; in either case outside of inference mode, so that a score may differentiate."""
    with torch.inference_mode(False), torch.set_grad_enabled(wanted):
        yield


def check_start(x_T: Tensor) -> None:
    """Refuse a start that no sampler can use."""
    if not isinstance(x_T, Tensor) or x_T.ndim < 2 or not x_T.is_floating_point():
        got = f"{x_T.dtype} {tuple(x_T.shape)}" if isinstance(x_T, Tensor) else type(x_T).__name__
        raise ValueError(f"x_T must be a floating-point tensor of shape (B, *) with at least two axes; got {got}.")
    if not torch.isfinite(x_T).all():
        raise FloatingPointError("x_T holds values that are not finite.")
