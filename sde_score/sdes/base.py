"""The abstract SDE and its time reversal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn, ScoreFn
from sde_score.registry import Registry
from sde_score.tensors import expand_like, require_finite

SDES: Registry[SDE] = Registry("SDE", group="sde_score.sdes")


def require_sde(sde: object) -> SDE:
    """`sde`, if it is an SDE; otherwise `TypeError` saying what to write."""
    if isinstance(sde, SDE):
        return sde
    if isinstance(sde, type) and issubclass(sde, SDE):
        raise TypeError(f"{sde.__name__} is a class; give an instance: {sde.__name__}().")
    raise TypeError(f"Expected an SDE such as VPSDE() or SDES.build('vp'); got {type(sde).__name__}: {sde!r}.")


class SDE(ABC):
    """An Itô SDE `dx = f(x, t) dt + G(x, t) dw` on `[0, T]`, data at `t = 0` and noise at `t = T`.

    Everywhere `x` has shape `(B, *)` with any number of axes and `t` shape `(B,)`. A subclass gives `drift`,
    `diffusion` and the prior; samplers, the probability-flow ODE and likelihoods follow. Where drift and marginals are
    affine in `x`, derive from `LinearSDE` instead, which asks for two functions of time only.

    Args:
        T: end time, where the prior stands for the law of `x`.
        t_min: the smallest time used in training, sampling and likelihoods; scores are badly scaled or infinite below
            it.
    """

    noise_type: str = "diagonal"
    """"diagonal" (scalars included) or "matrix"; set by itself for a class that overrides `apply_diffusion`."""
    additive_noise: bool = False
    """Is G independent of x? Then the Itô and the Stratonovich reading of the SDE are the same process."""
    can_denoise: bool = False
    """Does `denoise` work, that is, is the law of x_t given x_0 known?"""

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if "apply_diffusion" in cls.__dict__ and "noise_type" not in cls.__dict__:
            cls.noise_type = "matrix"

    def __init__(self, *, T: float = 1.0, t_min: float = 1e-5) -> None:
        if not 0 <= t_min < T or not math.isfinite(T):
            raise ValueError(f"{type(self).__name__}: t_min must lie in [0, T); got t_min={t_min}, T={T}.")
        self.T = float(T)
        self.t_min = float(t_min)

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(x, t), of the shape of `x`."""

    @abstractmethod
    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """G(x, t) when it is a scalar or a diagonal: a tensor that broadcasts against `x`.

        For matrix noise override `apply_diffusion` and `apply_diffusion_sq`: Euler-Maruyama, the correctors, the
        probability-flow ODE and likelihoods call nothing else, and what needs a diagonal refuses.
        """

    @abstractmethod
    def prior_sampling(
        self,
        shape: tuple[int, ...],
        *,
        noise: NoiseFn = torch.randn_like,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw `x_T` of the given `(B, *)` shape from the prior."""

    @abstractmethod
    def prior_logp(self, x: Tensor) -> Tensor:
        """Log density of the prior at `x`, in nats, summed over all but the first axis: `(B,)`."""

    def apply_diffusion(self, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """G(x, t) v."""
        return self.diffusion(x, t) * v

    def apply_diffusion_sq(self, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """G(x, t) G(x, t)ᵀ v."""
        return self.diffusion(x, t) ** 2 * v

    def diffusion_sq_divergence(self, x: Tensor, t: Tensor) -> Tensor | float:
        """∇·(G Gᵀ): zero unless G depends on `x`; such an SDE overrides it (it enters the reverse drift, Anderson
        1982).
        """
        return 0.0

    def marginal_prob(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of `x_t` given `x_0`, when that law is known and Gaussian."""
        raise NotImplementedError(
            f"{type(self).__name__} does not know the law of x_t given x_0, which denoising score matching and "
            "Tweedie's formula need. If its drift is linear in x, derive it from LinearSDE; otherwise train with a "
            "sliced or implicit objective and sample with denoise='mean'."
        )

    def marginal_coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean coefficient and standard deviation of `x_t` given `x_0`, where they are functions of time alone."""
        raise NotImplementedError(self._not_linear("mean and std of x_t as functions of time"))

    def log_snr(self, t: Tensor) -> Tensor:
        """Log of the signal-to-noise ratio at `t`, `(B,)`."""
        raise NotImplementedError(self._not_linear("a signal-to-noise ratio"))

    def _not_linear(self, what: str) -> str:
        return (
            f"{type(self).__name__} is not a LinearSDE and has not {what}. With a known marginal_prob(x0, t) it trains "
            "by --config.model.parameterization=\"eps(c_noise='t', scale_input=False)\" "
            "--config.training.objective=dsm, and samples with --config.sampling.predictor=euler_maruyama "
            "--config.sampling.denoise=mean --config.sampling.times=uniform."
        )

    def require_diagonal_noise(self, what: str) -> None:
        """Raise `ValueError` when `what` cannot serve an SDE with matrix noise."""
        if self.noise_type == "matrix":
            raise ValueError(
                f"{what} is written for scalar and diagonal noise, and {type(self).__name__} has a matrix. Use the "
                "predictor 'euler_maruyama' or the method 'ode'."
            )

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Law of `x_t` given `x_s`, when it is `N(a x_s, std² I)`: the coefficient `a` and `std`."""
        raise NotImplementedError(
            f"{type(self).__name__} does not know its transition from s to t, which reverse_diffusion and "
            "ancestral_sampling are made of. Use the predictor 'euler_maruyama', or derive the SDE from LinearSDE if "
            "its drift is linear in x."
        )

    def posterior_mean(self, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """`E[x_0 | x_t = x]` from the score at `x`, when the law of `x_t` given `x_0` is known."""
        self.marginal_prob(x, t)  # explains itself if it is not
        raise NotImplementedError(
            f"{type(self).__name__} has a marginal law but no posterior_mean(); sample with denoise='mean' or 'none'."
        )

    def denoise(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> Tensor:
        """Posterior mean of the data given `x` at `t`, with one call of the score."""
        return self.posterior_mean(x, t, score_fn(x, t))

    def simulate(
        self, x0: Tensor, t: Tensor, noise: NoiseFn = torch.randn_like, *, steps: int = 200
    ) -> Tensor:
        """Draw `x_t` given `x_0`, each sample at its own time.

        Exact, `x_t = mean + std z`, where `marginal_prob` is known; otherwise by `steps` equal Euler-Maruyama steps
        from 0 to `t`, whose law is right to first order in `t/steps`.

        Args:
            x0: data, `(B, *)`.
            t: times in [0, T], `(B,)`.
            noise: draws the standard normals.
            steps: of the simulation.

        Raises:
            FloatingPointError: when a simulated path leaves the finite numbers.
        """
        try:
            mean, std = self.marginal_prob(x0, t)
        except NotImplementedError:
            return self._simulated(x0, t, noise, steps)
        return mean + std * noise(x0)

    def _simulated(self, x: Tensor, t: Tensor, noise: NoiseFn, steps: int) -> Tensor:
        if steps < 1:
            raise ValueError(f"A simulation needs at least one step; got steps={steps}.")
        dt = expand_like(t / steps, x)
        for k in range(steps):
            now = t * (k / steps)
            x = x + self.drift(x, now) * dt + self.apply_diffusion(x, now, noise(x)) * torch.sqrt(dt)
        require_finite(x, f"A path of {type(self).__name__} simulated with {steps} Euler-Maruyama steps")
        return x

    def reverse(self, score_fn: ScoreFn, *, eta: float = 1.0) -> ReverseSDE:
        """The reverse-time process for a score: `eta = 1` the reverse SDE, `eta = 0` the probability-flow ODE, and all
        between.
        """
        return ReverseSDE(self, score_fn, eta=eta)

    def chain(self, n: int) -> Chain:
        """The discrete-time chain of `n` steps that the published system uses for this SDE (Euler-Maruyama unless it
        has its own).
        """
        return Chain(self, n)

    def low_noise_time(self) -> float:
        """A time at which little noise is left, for pictures: a tenth of T where nothing better is known."""
        return 0.1 * self.T

    def prior_advice(self, reach: float) -> str:
        """What to change when the prior does not stand for the data at T; `reach` as in `sde_score.sdes.PriorGap`."""
        return "Centre and scale the data, or let more noise in before T: a larger T, or larger coefficients."

    def check_time(self, t: Tensor) -> None:
        """Raise `ValueError` when a time lies outside `[0, T]` (by more than rounding). Costs a synchronisation on a
        GPU: call it at doors.
        """
        if t.numel() == 0:
            return
        first, last = (value.item() for value in torch.aminmax(t))  # both NaN if any is
        rounding = max(1e-6, torch.finfo(t.dtype).eps if t.is_floating_point() else 0.0)
        if not (first >= -1e-6 * self.T and last <= self.T * (1 + rounding)):
            raise ValueError(f"{type(self).__name__} lives on [0, {self.T:g}]; got times from {first:g} to {last:g}.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(T={self.T:g}, t_min={self.t_min:g})"


class ReverseSDE:
    """A forward SDE run backwards: `dx = [f − ½(1 + η²)(G Gᵀ s + ∇·G Gᵀ)] dt + η G dw̄`, solved from `T` down to
    `t_min`.

    Every `η` in [0, 1] has the same marginals: 1 is the reverse SDE of Anderson (1982), 0 the probability-flow ODE
    (Song et al., "Score-Based Generative Modeling through SDEs", ICLR 2021, eqs. 6 and 13).
    """

    def __init__(self, sde: SDE, score_fn: ScoreFn, *, eta: float = 1.0) -> None:
        if not 0 <= eta:
            raise ValueError(f"eta must be at least 0 (0: probability-flow ODE, 1: reverse SDE); got {eta}.")
        self.sde = sde
        self.score_fn = score_fn
        self.eta = float(eta)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Drift of the reverse process in forward time (a step backwards has `dt < 0`)."""
        correction = self.sde.apply_diffusion_sq(x, t, self.score_fn(x, t)) + self.sde.diffusion_sq_divergence(x, t)
        return self.sde.drift(x, t) - 0.5 * (1 + self.eta**2) * correction

    def apply_diffusion(self, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """η G(x, t) v."""
        return self.eta * self.sde.apply_diffusion(x, t, v)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """η G(x, t), for scalar and diagonal noise."""
        return self.eta * self.sde.diffusion(x, t)


class Chain:
    """A forward SDE as a Markov chain of `n` steps, `x_{i+1} = x_i + F(x_i, t_i) + G(t_i) z`, by the Euler-Maruyama
    rule with `dt = T/n`.

    The published samplers and discrete-time models are written for such chains: states are numbered by
    `index(t) = trunc(t (n−1)/T)`. SDEs with a chain of their own (SMLD for VE, DDPM for VP) return a subclass of this.
    """

    def __init__(self, sde: SDE, n: int) -> None:
        if n < 1:
            raise ValueError(f"A chain needs at least one step; got n={n}.")
        self.sde = sde
        self.n = int(n)

    def index(self, t: Tensor) -> Tensor:
        """The state number of a time: truncated, as published."""
        return (t * (self.n - 1) / self.sde.T).long()

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`F(x, t)` and `G(t)` of the step taken at time `t`; `G` broadcasts against `x`."""
        self.sde.require_diagonal_noise("A discrete chain")
        dt = self.sde.T / self.n
        return self.sde.drift(x, t) * dt, expand_like(torch.as_tensor(self.sde.diffusion(x, t)) * dt**0.5, x)

    def posterior(self, score: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the state before `x`: the rule of ancestral sampling."""
        raise ValueError(
            f"{type(self.sde).__name__} has no published discrete chain with a posterior; use ancestral_sampling "
            "without 'chain'."
        )

    def langevin_factor(self, t: Tensor) -> Tensor:
        """The factor α in the step size of the published Langevin correctors."""
        return torch.ones_like(t)

    def marginal(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Mean coefficient and standard deviation of state `index` given the data, `(B,)` each: the law of discrete
        training.
        """
        raise ValueError(f"{type(self.sde).__name__} has no published discrete chain; train it in continuous time.")
