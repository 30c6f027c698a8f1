"""One-step predictors of the reverse process. `eta` scales its noise: 1 for the reverse SDE, 0 for the ODE."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn, ScoreFn
from sde_score.sampling.base import PREDICTORS, Predictor
from sde_score.sdes.base import SDE
from sde_score.tensors import expand_like


def check_eta(eta: float) -> float:
    """`eta`, if it lies in [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0 (probability-flow ODE) and 1 (reverse SDE); got {eta}.")
    return float(eta)


@PREDICTORS.register("euler_maruyama")
class EulerMaruyama(Predictor):
    """Euler-Maruyama on the reverse SDE: `x_mean = x + f_rev Δ`, `x = x_mean + η G √|Δ| z`, `Δ = t_next − t` (Song et
    al. 2021, appendix E).

    Works for every SDE. With `eta = 0` it is Euler's rule on the probability-flow ODE.
    """

    def __init__(self, sde: SDE, eta: float = 1.0) -> None:
        super().__init__(sde)
        self.eta = check_eta(eta)

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, t_next: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        reverse = self.sde.reverse(score_fn, eta=self.eta)
        dt = expand_like(t_next - t, x)
        x_mean = x + reverse.drift(x, t) * dt
        if self.eta == 0:
            return x_mean, x_mean
        return x_mean + reverse.apply_diffusion(x, t, noise(x)) * torch.sqrt(-dt), x_mean


@PREDICTORS.register("reverse_diffusion")
class ReverseDiffusion(Predictor):
    """The discretised forward step run backwards: for `x_t = x_s + F + G z`, `x_mean = x − F + ½(1 + η²) G² s`,
    `x = x_mean + η G z`.

    Song et al. 2021, eq. 46. `F = (a − 1) x` and `G` come from the exact transition `N(a x_s, G²)` of any linear SDE,
    so the step fits the grid, whatever it is. (The tables of the published chains belong to the sampler `published`.)
    """

    def __init__(self, sde: SDE, eta: float = 1.0) -> None:
        super().__init__(sde)
        self.eta = check_eta(eta)
        sde.require_diagonal_noise(f"{type(self).__name__}")

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, t_next: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        a, scale = (expand_like(c, x) for c in self.sde.transition(t_next, t))
        x_mean = x - (a - 1) * x + 0.5 * (1 + self.eta**2) * scale**2 * score_fn(x, t)
        if self.eta == 0:
            return x_mean, x_mean
        return x_mean + self.eta * scale * noise(x), x_mean


@PREDICTORS.register("ancestral_sampling")
class AncestralSampling(Predictor):
    """The Gaussian `p(x_s | x_t, x_0)` with Tweedie's `x_0`: the ancestral sampler of DDPM and SMLD, for any linear SDE
    and grid.

        x_mean = m_s x̂_0 + √(std_s² − η² v) ε̂,   x = x_mean + η √v z,   v = var(t|s) std_s²/std_t².

    With `eta = 1` the mean equals `(x + var(t|s) s)/a` (Ho et al. 2020; Song et al. 2021, eqs. 4 and 47); `eta = 0` is
    DDIM (Song, Meng & Ermon 2021, eq. 12).
    """

    def __init__(self, sde: SDE, eta: float = 1.0) -> None:
        super().__init__(sde)
        self.eta = check_eta(eta)
        sde.require_diagonal_noise(f"{type(self).__name__}")

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, t_next: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        a, step_std = (expand_like(c, x) for c in self.sde.transition(t_next, t))
        std_t = expand_like(self.sde.marginal_coeffs(t)[1], x)
        std_s = expand_like(self.sde.marginal_coeffs(t_next)[1], x)
        variance = (self.eta * step_std * std_s / std_t) ** 2
        eps = -std_t * score_fn(x, t)
        # coefficient of ε̂: √(std_s² − η² v) − std_t/a, written so that close times do not cancel
        direct = torch.sqrt((std_s**2 - variance).clamp(min=0))
        change = -(step_std**2 / a**2 + variance) / (direct + std_t / a)
        x_mean = x / a + change * eps
        if self.eta == 0:
            return x_mean, x_mean
        return x_mean + torch.sqrt(variance) * noise(x), x_mean


@PREDICTORS.register("none")
class NonePredictor(Predictor):
    """No prediction: the corrector alone walks down the noise levels (annealed Langevin dynamics)."""

    moves = False

    def step(self, score_fn: ScoreFn, x: Tensor, t: Tensor, t_next: Tensor, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        return x, x
