"""Samplers: predictor-corrector, and the probability-flow ODE."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_score.protocols import Constraint, NoiseFn, ScoreFn
from sde_score.sampling.base import (
    CORRECTORS,
    PREDICTORS,
    SAMPLERS,
    Callback,
    Corrector,
    CountedScore,
    Predictor,
    Progress,
    Sampler,
    SampleResult,
    check_start,
)
from sde_score.sampling.correctors import NoneCorrector
from sde_score.sampling.predictors import NonePredictor
from sde_score.sampling.times import make_times
from sde_score.sdes.base import SDE
from sde_score.solvers import SOLVERS, ODEError, ODEProgress, solve_ode

GPU_CHECK_EVERY = 50  # looking for NaNs costs a synchronisation on a GPU


@SAMPLERS.register("pc")
class PCSampler(Sampler):
    """Predictor-corrector sampling: at each time of the grid the corrector, then the predictor (Song et al. 2021,
    algorithm 1).

    Args:
        predictor, corrector: component specs or instances.
        steps: predictor steps.
        times: time grid, e.g. `"uniform"`, `"log_snr"`, `"karras(rho=7)"`, or `"published"` (the published grid and
            step).
        t_min, denoise: see `Sampler`.

    Raises `ValueError` for the pair none/none, which moves nothing.
    """

    def __init__(
        self,
        sde: SDE,
        predictor: str | Predictor = "reverse_diffusion",
        corrector: str | Corrector = "none",
        *,
        steps: int = 1000,
        times: str = "uniform",
        t_min: float | None = None,
        denoise: str = "tweedie",
    ) -> None:
        super().__init__(sde, t_min=t_min, denoise=denoise)
        self.predictor: Predictor = PREDICTORS.build(predictor, sde)
        self.corrector: Corrector = CORRECTORS.build(corrector, sde)
        if isinstance(self.predictor, NonePredictor) and isinstance(self.corrector, NoneCorrector):
            raise ValueError(
                "Predictor 'none' with corrector 'none' moves nothing: the samples would be the prior's. Choose at "
                "least one."
            )
        self.grid = make_times(times, sde, steps=steps, t_min=self.t_min)
        n = self.predictor.n_chain
        if n is not None and (n != steps or times != "published"):
            raise ValueError(
                f"A predictor with chain={n} takes the published steps and is right on the published grid only: set "
                f"steps={n} and times='published' (here: steps={steps}, times={times!r}), or leave out 'chain'."
            )
        if self.predictor.within_process and float(self.grid[-1, 1]) < 0:
            raise ValueError(
                f"The grid {times!r} ends at t = {float(self.grid[-1, 1]):.3g} < 0, where this predictor's exact "
                f"transition is not defined. Write the predictor with chain={steps}, or choose another grid, such as "
                "times='uniform'."
            )

    def __call__(
        self,
        score_fn: ScoreFn,
        x_T: Tensor,
        *,
        noise: NoiseFn = torch.randn_like,
        constraint: Constraint | None = None,
        callback: Callback | None = None,
    ) -> SampleResult:
        check_start(x_T)
        score = CountedScore(score_fn)
        grid = self.grid.to(device=x_T.device, dtype=x_T.dtype)
        shown = self.grid[:, 1].tolist()
        x = x_mean = x_T
        for k in range(len(grid)):
            t, t_next = (time.expand(len(x)) for time in grid[k])
            for update, times in ((self.corrector.step, (t,)), (self.predictor.step, (t, t_next))):
                before = x
                x, mean = update(score, x, *times, noise)
                x_mean = x_mean if x is before else mean  # a `none` update keeps the other's mean
                if constraint is not None:
                    x = constraint(x, times[-1], noise)
                    x_mean = constraint(x_mean, times[-1], noise)
            if x.device.type == "cpu" or k % GPU_CHECK_EVERY == 0:
                self.check_finite(x, k, shown[k])
            if callback is not None:
                callback(Progress(k + 1, len(grid), shown[k], x, x_mean, score.calls))
        x = self.finish(score, x, x_mean, noise)
        self.check_finite(x, len(grid), self.t_min)
        return SampleResult(x, score.calls)


@SAMPLERS.register("ode")
class ODESampler(Sampler):
    """The probability-flow ODE from `T` to `t_min` (Song et al. 2021, eq. 13): deterministic, so that `x_T` is a latent
    code of `x`.

    Args:
        solver: an ODE solver spec: `"dopri5(rtol=1e-5, atol=1e-5)"` runs on the device with a step per sample;
            `"scipy(method='RK45')"` is SciPy's.
    """

    def __init__(
        self,
        sde: SDE,
        solver: str = "dopri5(rtol=1e-5, atol=1e-5)",
        *,
        t_min: float | None = None,
        denoise: str = "tweedie",
    ) -> None:
        super().__init__(sde, t_min=t_min, denoise=denoise)
        if self.denoise == "mean":
            raise ValueError(
                "The ODE adds no noise, so denoise='mean' has nothing to take away; choose 'tweedie' or 'none'."
            )
        self.solver = SOLVERS.build(solver)

    def _flow(self, score: ScoreFn, x: Tensor, t0: float, t1: float, callback: Callback | None = None):
        drift = self.sde.reverse(score, eta=0.0).drift
        with torch.no_grad():
            return solve_ode(drift, x, t0, t1, solver=self.solver, callback=callback)

    def __call__(
        self,
        score_fn: ScoreFn,
        x_T: Tensor,
        *,
        noise: NoiseFn = torch.randn_like,
        constraint: Constraint | None = None,
        callback: Callback | None = None,
    ) -> SampleResult:
        check_start(x_T)
        if constraint is not None:
            raise ValueError(
                "An ODE solver cannot apply a constraint between its stages; use the predictor-corrector sampler "
                "(method 'pc')."
            )
        score = CountedScore(score_fn)
        result = self._flow(score, x_T, self.sde.T, self.t_min, _solver_callback(callback, score))
        if not result.success.all():  # possible with on_failure="return"
            failed = (~result.success).nonzero().flatten().tolist()
            raise ODEError(
                f"The ODE was not solved for samples {failed[:8]} of {len(x_T)}; no samples are returned.", result
            )
        x = self.finish(score, result.x, result.x, noise)
        self.check_finite(x, int(torch.as_tensor(result.steps).max()), self.t_min)
        return SampleResult(
            x, score.calls, {"nfe_per_sample": result.nfe, "steps": result.steps, "status": result.status}
        )

    def encode(self, score_fn: ScoreFn, x: Tensor) -> SampleResult:
        """The latent code `x_T` of data `x`: the same ODE run forwards."""
        check_start(x)
        score = CountedScore(score_fn)
        result = self._flow(score, x, self.t_min, self.sde.T)
        return SampleResult(
            result.x, score.calls, {"nfe_per_sample": result.nfe, "steps": result.steps, "status": result.status}
        )


def _solver_callback(callback: Callback | None, score: CountedScore):
    """A sampler's callback as an ODE solver's."""
    if callback is None:
        return None

    def call(progress: ODEProgress) -> None:
        callback(Progress(progress.step, None, float(progress.t.max()), progress.x, progress.x, score.calls))

    return call


def make_sampler(method: str, sde: SDE, **settings) -> Sampler:
    """Build the sampler `method` from those of `settings` that it has: one flat configuration serves all methods."""
    return SAMPLERS.build(method, sde, **settings)
