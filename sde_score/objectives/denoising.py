"""Denoising score matching, in continuous time and on the published discrete chains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sde_score.objectives.base import OBJECTIVES, REDUCTIONS, Objective
from sde_score.objectives.times import TIME_SAMPLERS
from sde_score.protocols import NoiseFn
from sde_score.registry import suggest
from sde_score.sdes.base import SDE
from sde_score.tensors import draw_uniform, expand_like


@OBJECTIVES.register("dsm")
class DenoisingScoreMatching(Objective):
    """Continuous denoising score matching: `E_t E_x0 E_z  w(t) ‖ε̂(x_t, t) − z‖²`, `x_t = mean + std z` (Song et al.
    2021, eq. 7; Vincent 2011).

    With `score = −ε̂/std` the weightings are

        weighting     w(t)                 λ(t)
        sigma2        1                    std², the published default
        likelihood    g²/std²              g², which bounds the negative log-likelihood
        edm           (σ² + σ_d²)/σ_d²     w std², for σ = std/m (Karras et al. 2022, table 1)

    `likelihood` goes with `times="importance"`, `edm` with `times="log_normal"`.

    Args:
        weighting: one of the above.
        times: a time sampler: `"uniform"`, `"stratified"`, `"importance"`, `"mixed(share=0.5)"`,
            `"log_normal(mean=-1.2, std=1.2)"`.
        reduce: over the data's dimensions: `"mean"`, `"sum"` or `"half_sum"` (published: one half of the sum, or the
            mean).
        sigma_data: σ_d of the weighting `edm`.
    """

    WEIGHTINGS = ("sigma2", "likelihood", "edm")

    def __init__(
        self, sde: SDE, weighting: str = "sigma2", times: str = "uniform", reduce: str = "mean", sigma_data: float = 0.5
    ) -> None:
        super().__init__(sde)
        if weighting not in self.WEIGHTINGS:
            raise ValueError(f"Unknown weighting {weighting!r} of dsm.{suggest(weighting, self.WEIGHTINGS)}")
        if reduce not in REDUCTIONS:
            raise ValueError(f"Unknown reduction {reduce!r} of dsm.{suggest(reduce, REDUCTIONS)}")
        self.weighting, self.reduce, self.sigma_data = weighting, REDUCTIONS[reduce], float(sigma_data)
        self.times = TIME_SAMPLERS.build(times, sde)

    def weight(self, x: Tensor, t: Tensor) -> Tensor:
        """w(t), broadcastable to `x`."""
        if self.weighting == "sigma2":
            return x.new_ones(())
        if self.weighting == "likelihood":
            self.sde.require_diagonal_noise("The weighting 'likelihood'")
            return (self.sde.diffusion(x, t) / self.sde.marginal_prob(x, t)[1]) ** 2
        mean_coeff, std = (expand_like(c, x) for c in self.sde.marginal_coeffs(t))
        return (std / mean_coeff / self.sigma_data) ** 2 + 1

    def __call__(self, model: nn.Module, x0: Tensor, *, noise: NoiseFn, **cond: Tensor) -> Tensor:
        self.check_data(x0)
        t, factor = self.times.draw(noise, x0.new_empty(len(x0)))
        return factor * self.loss_at(model, x0, t, noise(x0), **cond)

    def loss_at(self, model: nn.Module, x0: Tensor, t: Tensor, z: Tensor, **cond: Tensor) -> Tensor:
        """The weighted loss per sample at given times and noise: what validation by noise level asks for."""
        mean, std = self.sde.marginal_prob(x0, t)
        error = self.score_of(model).eps(mean + std * z, t, **cond) - z
        return self.reduce(self.weight(x0, t) * error**2)


@OBJECTIVES.register("discrete_dsm")
class DiscreteDenoisingScoreMatching(Objective):
    """Denoising score matching on the `n` states of the SDE's published chain: SMLD for VE, DDPM for VP (Song et al.
    2021, eqs. 1 and 3).

    `E_i ‖ε̂(x_i, i) − z‖²` with uniform state `i`. For training networks that know noise levels by number; needs the
    parameterisation `smld` or `ddpm` with the same `n`.
    """

    def __init__(self, sde: SDE, n: int = 1000, reduce: str = "mean") -> None:
        super().__init__(sde)
        if reduce not in REDUCTIONS:
            raise ValueError(f"Unknown reduction {reduce!r} of discrete_dsm.{suggest(reduce, REDUCTIONS)}")
        self.n, self.chain, self.reduce = int(n), sde.chain(n), REDUCTIONS[reduce]
        self.chain.marginal(torch.zeros(1, dtype=torch.long))  # refuses here an SDE without such a chain

    def __call__(self, model: nn.Module, x0: Tensor, *, noise: NoiseFn, **cond: Tensor) -> Tensor:
        self.check_data(x0)
        if not hasattr(model, "eps_at_index"):
            raise TypeError(
                "discrete_dsm asks a model for its noise at a numbered state (eps_at_index), which "
                f"{type(model).__name__} has not; train a ScoreModel with the parameterisation 'smld' or 'ddpm', or by "
                "the objective 'dsm'."
            )
        index = (draw_uniform(noise, x0.new_empty(len(x0))) * self.n).long().clamp(max=self.n - 1)
        return self.loss_at_index(model, x0, index, noise(x0), **cond)

    def loss_at_index(self, model: nn.Module, x0: Tensor, index: Tensor, z: Tensor, **cond: Tensor) -> Tensor:
        """The loss per sample at given states and noise."""
        mean_coeff, std = (expand_like(c.to(x0.dtype), x0) for c in self.chain.marginal(index))
        return self.reduce((model.eps_at_index(mean_coeff * x0 + std * z, index, **cond) - z) ** 2)
