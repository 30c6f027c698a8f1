"""Samplers: predictor-corrector, and the probability-flow ODE."""

from __future__ import annotations

from torch import Tensor

from sde_score.protocols import ScoreFn
from sde_score.sampling.base import (
    CORRECTORS,
    PREDICTORS,
    SAMPLERS,
    Context,
    Corrector,
    End,
    Predictor,
    Sampler,
    SampleResult,
    check_start,
    graph_of_the_run,
)
from sde_score.sampling.times import make_times
from sde_score.score import CountedScore, Score, as_score
from sde_score.sdes.base import SDE
from sde_score.solvers import SOLVERS, ODEError, ODEProgress, ODEResult, solve_ode

GPU_CHECK_EVERY = 50  # looking for NaNs costs a synchronisation on a GPU


@SAMPLERS.register("pc")
class PCSampler(Sampler):
    """Predictor-corrector sampling: at each time of the grid the corrector, then the predictor (Song et al. 2021,
    algorithm 1).

    Args:
        predictor, corrector: component specs or instances.
        steps: predictor steps.
        times: time grid, e.g. `"uniform"`, `"log_snr"`, `"karras(rho=7)"`.
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
        if not (self.predictor.moves or self.corrector.moves):
            raise ValueError(
                "Predictor 'none' with corrector 'none' moves nothing: the samples would be the prior's. Choose at "
                "least one."
            )
        self.grid = make_times(times, sde, steps=steps, t_min=self.t_min)

    def run(self, x: Tensor, context: Context) -> End:
        score, noise = context.score, context.noise
        grid = self.grid.to(device=x.device, dtype=x.dtype)
        shown = self.grid[:, 1].tolist()
        context.steps = len(grid)
        predict = self.predictor.start(score, grid, noise)
        x_mean = x
        for k in range(len(grid)):
            if self.corrector.moves:
                t = grid[k, 0].expand(len(x))
                x, x_mean = self.corrector.step(score, x, t, noise)
                x = context.constrained(x, t, k)
            if self.predictor.moves:
                x, x_mean = predict(x, k)
                x = context.constrained(x, grid[k, 1], k + 1)
            if x.device.type == "cpu" or k % GPU_CHECK_EVERY == 0:
                self.check_finite(x, k, shown[k])
            context.tell(k + 1, shown[k], x, x_mean)
        return End(x, x_mean, len(grid))


@SAMPLERS.register("ode")
class ODESampler(Sampler):
    """The probability-flow ODE from `T` to `t_min` (Song et al. 2021, eq. 13): deterministic, so that `x_T` is a latent
    code of `x`.

    Args:
        solver: an ODE solver spec: `"dopri5(rtol=1e-5, atol=1e-5)"` runs on the device with a step per sample;
            `"scipy(method='RK45')"` is SciPy's.
        t_min, denoise: see `Sampler`; an ODE adds no noise, so `denoise="mean"` has nothing to take away.

    Raises `ODEError` when a sample cannot be solved. A constraint needs steps that all samples take together: a solver
    with a fixed number of them.
    """

    has_mean = False

    def __init__(
        self,
        sde: SDE,
        solver: str = "dopri5(rtol=1e-5, atol=1e-5)",
        *,
        t_min: float | None = None,
        denoise: str = "tweedie",
    ) -> None:
        super().__init__(sde, t_min=t_min, denoise=denoise)
        self.solver = SOLVERS.build(solver)

    def check_constraint(self) -> None:
        if not self.solver.common_steps:
            raise ValueError(
                "A constraint is applied between steps that all samples take together, and "
                f"{type(self.solver).__name__} gives each its own. Choose a solver with fixed steps, such as "
                "'heun(steps=50)', or the method 'pc'."
            )

    def _flow(self, score: ScoreFn, x: Tensor, t0: float, t1: float, **hooks) -> ODEResult:
        return solve_ode(self.sde.reverse(score, eta=0.0).drift, x, t0, t1, solver=self.solver, **hooks)

    def run(self, x: Tensor, context: Context) -> End:
        context.steps = getattr(self.solver, "steps", None)

        def tell(progress: ODEProgress) -> None:
            context.tell(progress.step, float(progress.t.max()), progress.x, progress.x)

        hooks = {"callback": tell if context.callback is not None else None}
        if context.constraint is not None:
            hooks["project"] = context.constrained
        result = self._flow(context.score, x, self.sde.T, self.t_min, **hooks)
        if not result.success.all():  # possible with on_failure="return"
            failed = (~result.success).nonzero().flatten().tolist()
            raise ODEError(
                f"The ODE was not solved for samples {failed[:8]} of {len(x)}; no samples are returned.", result
            )
        return End(result.x, None, int(result.steps.max()), _cost(result))

    def encode(self, score_fn: ScoreFn, x: Tensor, *, differentiable: bool = False) -> SampleResult:
        """The latent code `x_T` of data `x`: the same ODE run forwards."""
        check_start(x)
        if len(x) == 0:
            return SampleResult(x.clone(), 0)
        score: Score = CountedScore(as_score(score_fn, self.sde))
        with graph_of_the_run(differentiable):
            result = self._flow(score, x.clone() if x.is_inference() else x, self.t_min, self.sde.T)
        return SampleResult(result.x, score.calls, _cost(result))


def _cost(result: ODEResult) -> dict[str, Tensor]:
    return {"nfe_per_sample": result.nfe, "steps": result.steps, "status": result.status}


def make_sampler(method: str, sde: SDE, **settings: str | bool | int | float | None) -> Sampler:
    """Build the sampler `method` from those of `settings` that it has: one flat configuration serves all methods."""
    return SAMPLERS.build(method, sde, **settings)
