"""The published samplers as one thing: their grid, their discrete chain, their numbering of states and their last step.

At each of N times from T to t_min, the corrector and then the predictor; both number states by `index(t) = trunc(t
(N − 1)/T)` and take the tables of the N-step chain (SMLD for VE, DDPM for VP, Euler-Maruyama otherwise), whatever the
distance to the next time. Source: Song et al. 2021 (arXiv:2011.13456), algorithms 2 to 5, and the published code's
conventions. For samples rather than parity take the samplers `pc` and `ode`, whose steps fit any grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn, ScoreFn
from sde_score.registry import Registry
from sde_score.sampling.base import SAMPLERS, Context, Corrector, End, Predictor, Sampler
from sde_score.sampling.correctors import NoneCorrector, check_langevin, langevin_steps, signal_to_noise_step
from sde_score.sampling.predictors import NonePredictor, check_eta
from sde_score.sampling.samplers import GPU_CHECK_EVERY, ODESampler
from sde_score.score import Score
from sde_score.sdes.base import SDE
from sde_score.tensors import expand_like

PUBLISHED_PREDICTORS = Registry("published predictor")
PUBLISHED_CORRECTORS = Registry("published corrector")


class ChainPredictor(Predictor):
    """A predictor that takes one step down the chain at time `t`, wherever the grid goes next."""

    def __init__(self, sde: SDE, n: int, eta: float = 1.0) -> None:
        super().__init__(sde)
        self.n, self.eta = n, check_eta(eta)


@PUBLISHED_PREDICTORS.register("euler_maruyama")
class ChainEulerMaruyama(ChainPredictor):
    """`x_mean = x − f_rev T/N`, `x = x_mean + g √(T/N) z`."""

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, t_next: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        reverse, dt = self.sde.reverse(score_fn, eta=self.eta), self.sde.T / self.n
        x_mean = x - reverse.drift(x, t) * dt
        return x_mean + reverse.apply_diffusion(x, t, noise(x)) * dt**0.5, x_mean


@PUBLISHED_PREDICTORS.register("reverse_diffusion")
class ChainReverseDiffusion(ChainPredictor):
    """`x_mean = x − F + ½(1 + η²) G² s`, `x = x_mean + η G z`, F and G from the chain (Song et al. 2021, eq. 46)."""

    def __init__(self, sde: SDE, n: int, eta: float = 1.0) -> None:
        super().__init__(sde, n, eta)
        self.chain = sde.chain(n)

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, t_next: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        shift, scale = self.chain.forward(x, t)
        x_mean = x - shift + 0.5 * (1 + self.eta**2) * scale**2 * score_fn(x, t)
        return x_mean if self.eta == 0 else x_mean + self.eta * scale * noise(x), x_mean


@PUBLISHED_PREDICTORS.register("ancestral_sampling")
class ChainAncestralSampling(ChainPredictor):
    """The chain's own posterior (Song et al. 2021, eqs. 4 and 47)."""

    def __init__(self, sde: SDE, n: int) -> None:
        super().__init__(sde, n)
        self.chain = sde.chain(n)

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, t_next: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        x_mean, scale = self.chain.posterior(score_fn(x, t), x, t)
        return x_mean + scale * noise(x), x_mean


@PUBLISHED_PREDICTORS.register("none")
class ChainNone(NonePredictor):
    """No prediction."""

    def __init__(self, sde: SDE, n: int) -> None:
        super().__init__(sde)


@PUBLISHED_CORRECTORS.register("langevin")
class ChainLangevin(Corrector):
    """Langevin steps `e = 2 α_i (snr ‖z‖/‖s‖)²`, norms as means over the batch; α_i of the chain, 1 for SMLD."""

    batch_coupled = True

    def __init__(self, sde: SDE, n: int, snr: float = 0.16, n_steps: int = 1) -> None:
        super().__init__(sde)
        self.chain = sde.chain(n)
        self.snr, self.n_steps = check_langevin(snr, n_steps)

    def step_size(self, score: Tensor, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The step size e, broadcastable to `x`."""
        return expand_like(self.chain.langevin_factor(t), x) * signal_to_noise_step(score, z, self.snr)

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        return langevin_steps(self.step_size, score_fn, x, t, noise, self.n_steps)


@PUBLISHED_CORRECTORS.register("ald")
class ChainAnnealedLangevin(ChainLangevin):
    """Langevin steps `e = 2 α_i (snr std(t))²`."""

    batch_coupled = False

    def step_size(self, score: Tensor, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return 2 * expand_like(self.chain.langevin_factor(t), x) * (self.snr * self.sde.marginal_prob(x, t)[1]) ** 2


@PUBLISHED_CORRECTORS.register("none")
class ChainNoCorrection(NoneCorrector):
    """No correction."""

    def __init__(self, sde: SDE, n: int) -> None:
        super().__init__(sde)


@SAMPLERS.register("published")
class PublishedSampler(Sampler):
    """The published predictor-corrector sampler, to its last bit of convention: N float32 times from T to t_min, a
    chain of as many steps, states numbered by truncation, the mean of the last predictor step as the result.

    Args:
        predictor: `"reverse_diffusion"`, `"euler_maruyama"` (both with `eta`, 0 for the probability flow),
            `"ancestral_sampling"` or `"none"`.
        corrector: `"langevin(snr=0.16, n_steps=1)"` (norms over the batch: samples influence one another), `"ald"` or
            `"none"`.
        steps: N, of grid and chain.
        t_min: published: 1e-5 for VE, 1e-3 for VP and sub-VP.
        denoise: `"mean"` as published; after predictor `"none"` there it has no effect (here: choose `"tweedie"`).

    Raises `ValueError` for a chain that does not exist: too few steps for DDPM, ancestral sampling for sub-VP.
    """

    def __init__(
        self,
        sde: SDE,
        predictor: str = "reverse_diffusion",
        corrector: str = "none",
        *,
        steps: int = 1000,
        t_min: float | None = None,
        denoise: str = "mean",
    ) -> None:
        super().__init__(sde, t_min=t_min, denoise=denoise)
        if steps < 2:
            raise ValueError(f"The published grid has at least two times; got steps={steps}.")
        self.predictor = PUBLISHED_PREDICTORS.build(predictor, sde, int(steps))
        self.corrector = PUBLISHED_CORRECTORS.build(corrector, sde, int(steps))
        if not (self.predictor.moves or self.corrector.moves):
            raise ValueError("Predictor 'none' with corrector 'none' moves nothing. Choose at least one.")
        self.grid = torch.linspace(sde.T, self.t_min, int(steps), dtype=torch.float32)

    def run(self, x: Tensor, context: Context) -> End:
        score, noise = context.score, context.noise
        grid, shown = self.grid.to(device=x.device, dtype=x.dtype), self.grid.tolist()
        context.steps = len(grid)
        x_mean = x
        for k in range(len(grid)):
            t = grid[k].expand(len(x))
            if self.corrector.moves:
                x, x_mean = self.corrector.step(score, x, t, noise)
                x = context.constrained(x, t, k)
            if self.predictor.moves:
                x, x_mean = self.predictor.step(score, x, t, t, noise)
                x = context.constrained(x, grid[min(k + 1, len(grid) - 1)], k + 1)
            elif self.denoise == "mean":
                x_mean = x
            if x.device.type == "cpu" or k % GPU_CHECK_EVERY == 0:
                self.check_finite(x, k, shown[k])
            context.tell(k + 1, shown[k], x, x_mean)
        return End(x, x_mean, len(grid))


@SAMPLERS.register("published_ode")
class PublishedODESampler(ODESampler):
    """The published ODE sampler: SciPy's RK45 over the whole batch as one system, then one reverse-diffusion step of
    the chain at t_min, of which the mean is kept.

    Args:
        solver: see `ODESampler`.
        n: steps of the chain that the last step belongs to.
        t_min: published: 1e-5 for VE, 1e-3 for VP and sub-VP.
        denoise: `"mean"` (published), `"none"` or `"tweedie"`.
    """

    has_mean = True

    def __init__(
        self,
        sde: SDE,
        solver: str = "scipy(method='RK45', rtol=1e-5, atol=1e-5, per_sample=False)",
        *,
        n: int = 1000,
        t_min: float | None = None,
        denoise: str = "mean",
    ) -> None:
        super().__init__(sde, solver, t_min=t_min, denoise=denoise)
        self.last = ChainReverseDiffusion(sde, n)

    def finish(self, score: Score, end: End) -> Tensor:
        if self.denoise != "mean":
            return super().finish(score, end)
        t = end.x.new_full((1,), self.t_min).expand(len(end.x))
        return self.last.step(score, end.x, t, t, torch.zeros_like)[1]
