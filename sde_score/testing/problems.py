"""Problems with known answers: laws with exact density, score and samples at every noise level, and ODEs with exact
solutions.

With an exact score whatever remains between a sampler's output and the truth is the sampler's own error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_score.protocols import ScoreFn
from sde_score.sdes.linear import LinearSDE
from sde_score.tensors import expand_like


class GaussianMixture:
    """`p(x) = Σ_k w_k N(x; μ_k, Σ_k)`, and with it every law `p_t` of a linear SDE started from it: `Σ_k w_k N(x; m
    μ_k, m² Σ_k + std²)`.

    Args:
        weights: `(K,)`, normalised here.
        means: `(K, *)`; the trailing axes are the shape of a sample.
        stds: standard deviations of isotropic or diagonal components: a number, `(K,)`, or `(K, *)`.
        covs: or full covariances over the flattened sample, `(K, D, D)`.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence,
        stds: Tensor | Sequence | float | None = None,
        covs: Tensor | None = None,
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        weights = torch.as_tensor(weights, dtype=torch.float64)
        count = len(self.means)
        if self.means.ndim < 2:
            raise ValueError(
                f"means has shape (K, *) with at least one axis for the sample; got {tuple(self.means.shape)}."
            )
        if weights.shape != (count,) or (weights < 0).any() or not weights.sum() > 0:
            raise ValueError(f"weights must be {count} non-negative numbers, one per mean; got {weights.tolist()}.")
        if (stds is None) == (covs is None):
            raise ValueError("Give either stds or covs.")
        self.weights = weights / weights.sum()
        self.shape = tuple(self.means.shape[1:])
        self.dim = math.prod(self.shape)
        if covs is not None:
            covs = torch.as_tensor(covs, dtype=torch.float64)
            if covs.shape != (count, self.dim, self.dim):
                raise ValueError(f"covs must have shape {(count, self.dim, self.dim)}; got {tuple(covs.shape)}.")
            values, self.axes = torch.linalg.eigh(covs)  # variances along the eigenvectors, the columns of axes
            if (values < -1e-10 * values.abs().max()).any():
                raise ValueError(
                    f"covs must be positive semi-definite; the smallest eigenvalue is {float(values.min()):.3g}."
                )
            self.variances = values.clamp(min=0)
        else:
            stds = torch.as_tensor(stds, dtype=torch.float64)
            stds = stds.expand(count) if stds.ndim == 0 else stds
            self.axes = None
            self.variances = expand_like(stds, self.means).expand_as(self.means).reshape(count, self.dim) ** 2

    # --- moments and samples ----------------------------------------------------------------------------------------

    def mean(self) -> Tensor:
        """Mean, of the shape of a sample."""
        return torch.tensordot(self.weights, self.means, 1)

    def covs(self) -> Tensor:
        """Covariances of the components, `(K, D, D)`."""
        if self.axes is None:
            return torch.diag_embed(self.variances)
        return self.axes @ (self.variances[..., None] * self.axes.mT)

    def cov(self) -> Tensor:
        """Covariance of the mixture over the flattened sample, `(D, D)`."""
        centred = (self.means - self.mean()).reshape(len(self.means), -1)
        return torch.tensordot(self.weights, self.covs() + centred[:, :, None] * centred[:, None, :], 1)

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """`n` samples, `(n, *)`."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, dtype=torch.float64, generator=generator) * self.variances[component].sqrt()
        if self.axes is not None:
            z = (self.axes[component] @ z[:, :, None])[:, :, 0]
        return (self.means[component] + z.reshape(n, *self.shape)).to(dtype=dtype, device=device)

    # --- density and score at a noise level -------------------------------------------------------------------------

    def _components(self, x: Tensor, mean_coeff: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """`log w_k N(x; m μ_k, m² Σ_k + std²)`, `(B, K)`, and the score of each component, `(B, K, D)`."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"This law is on samples of shape {self.shape}; got x of shape {tuple(x.shape)}.")
        to = dict(dtype=x.dtype, device=x.device)
        batch = len(x)

        def rows(coefficient: Tensor) -> Tensor:  # (B,) or (B, C, ...) -> (B, 1, 1 or D)
            if coefficient[0].numel() == 1:
                return coefficient.reshape(-1, 1, 1)
            if self.axes is not None:
                raise ValueError("A diagonal SDE needs a law with diagonal components: give stds, not covs.")
            return expand_like(coefficient, x).expand_as(x).reshape(batch, 1, self.dim)

        mean_coeff, std = rows(mean_coeff.to(**to)), rows(std.to(**to))
        residual = x.reshape(batch, 1, self.dim) - mean_coeff * self.means.reshape(len(self.means), self.dim).to(**to)
        variance = mean_coeff**2 * self.variances.to(**to) + std**2
        if self.axes is not None:
            axes = self.axes.to(**to)
            residual = torch.einsum("kij,bki->bkj", axes, residual)
        whitened = residual / variance
        logp = -0.5 * (residual * whitened + torch.log(2 * math.pi * variance)).sum(2) + torch.log(
            self.weights.to(**to)
        )
        score = -whitened if self.axes is None else -torch.einsum("kij,bkj->bki", axes, whitened)
        return logp, score

    def _level(self, sde: LinearSDE | None, t: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        if sde is None:
            return torch.ones_like(x[:, :1].reshape(len(x), -1)[:, 0]), torch.zeros_like(x.reshape(len(x), -1)[:, 0])
        return sde.marginal_coeffs(t)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of the data law, nats, `(B,)`."""
        return torch.logsumexp(self._components(x, *self._level(None, None, x))[0], dim=1)

    def log_prob_t(self, sde: LinearSDE, x: Tensor, t: Tensor) -> Tensor:
        """Log density at time `t`, nats, `(B,)`."""
        return torch.logsumexp(self._components(x, *self._level(sde, t, x))[0], dim=1)

    def responsibilities(self, x: Tensor, sde: LinearSDE | None = None, t: Tensor | None = None) -> Tensor:
        """Probability that `x` comes from each component, at time `t` of `sde` or on clean data, `(B, K)`."""
        return torch.softmax(self._components(x, *self._level(sde, t, x))[0], dim=1)

    def score_fn(self, sde: LinearSDE) -> ScoreFn:
        """The exact score `∇ log p_t(x)` as a function of `(x, t)`."""

        def score(x: Tensor, t: Tensor) -> Tensor:
            logp, scores = self._components(x, *sde.marginal_coeffs(t))
            return (torch.softmax(logp, dim=1)[:, :, None] * scores).sum(1).reshape(x.shape)

        return score

    def sample_t(
        self, sde: LinearSDE, n: int, t: float, *, generator: torch.Generator | None = None, dtype=torch.float32
    ) -> Tensor:
        """`n` samples at time `t`, `(n, *)`."""
        x0 = self.sample(n, generator=generator, dtype=torch.float64)
        mean, std = sde.marginal_prob(x0, torch.full((n,), float(t), dtype=torch.float64))
        return (mean + std * torch.randn(x0.shape, dtype=torch.float64, generator=generator)).to(dtype)

    # --- posteriors -------------------------------------------------------------------------------------------------

    def posterior_mean(self, sde: LinearSDE, x: Tensor, t: Tensor) -> Tensor:
        """`E[x_0 | x_t = x]`, component by component (not by Tweedie's formula: an independent derivation)."""
        mean_coeff, std = self._level(sde, t, x)
        if mean_coeff[0].numel() > 1 or std[0].numel() > 1:
            raise ValueError("posterior_mean is written for scalar coefficients.")
        m, s = mean_coeff.to(x.dtype).reshape(-1, 1, 1), std.to(x.dtype).reshape(-1, 1, 1)
        means = self.means.reshape(1, len(self.means), self.dim).to(x)
        gain_scale = self.variances.to(x) * m / (m**2 * self.variances.to(x) + s**2)
        residual = x.reshape(len(x), 1, self.dim) - m * means
        if self.axes is not None:
            axes = self.axes.to(x)
            residual = torch.einsum("kij,bki->bkj", axes, residual)
            moved = torch.einsum("kij,bkj->bki", axes, gain_scale * residual)
        else:
            moved = gain_scale * residual
        weights = self.responsibilities(x, sde, t)
        return (weights[:, :, None] * (means + moved)).sum(1).reshape(x.shape)

    def condition(self, matrix: Tensor, y: Tensor, noise_std: float) -> GaussianMixture:
        """The posterior law of `x` given `y = A x + noise_std · n`: again a mixture, of full covariances.

        Args:
            matrix: A, `(M, D)` over the flattened sample.
            y: one observation, `(M,)`.
            noise_std: standard deviation of the observation's noise, positive.
        """
        a, y = torch.as_tensor(matrix, dtype=torch.float64), torch.as_tensor(y, dtype=torch.float64)
        if a.ndim != 2 or a.shape[1] != self.dim or y.shape != (a.shape[0],) or not noise_std > 0:
            raise ValueError(
                f"condition needs matrix (M, {self.dim}), y (M,) and noise_std > 0; got {tuple(a.shape)}, "
                f"{tuple(y.shape)}, {noise_std}."
            )
        log_weights, means, covs = [], [], []
        for weight, mean, cov in zip(self.weights, self.means.reshape(-1, self.dim), self.covs()):
            evidence = a @ cov @ a.T + noise_std**2 * torch.eye(len(y), dtype=torch.float64)
            gain = torch.linalg.solve(evidence, a @ cov).T
            law = torch.distributions.MultivariateNormal(a @ mean, covariance_matrix=evidence)
            log_weights.append(torch.log(weight) + law.log_prob(y))
            means.append(mean + gain @ (y - a @ mean))
            left = torch.eye(self.dim, dtype=torch.float64) - gain @ a
            covs.append(left @ cov @ left.T + noise_std**2 * gain @ gain.T)  # Joseph's form stays symmetric
        means = torch.stack(means).reshape(-1, *self.shape)
        return GaussianMixture(torch.softmax(torch.stack(log_weights), 0), means, covs=torch.stack(covs))


class Gaussian(GaussianMixture):
    """`N(mean, var)`, with exact probability flow as well.

    Args:
        mean: of the shape of a sample (a number is a sample of shape (1,)).
        var: variance, a number or of the shape of a sample.
    """

    def __init__(self, mean: Tensor | Sequence | float = 0.0, var: Tensor | Sequence | float = 1.0) -> None:
        mean = torch.as_tensor(mean, dtype=torch.float64)
        mean = mean.reshape(1) if mean.ndim == 0 else mean
        var = torch.as_tensor(var, dtype=torch.float64)
        if (var < 0).any():
            raise ValueError(f"var must not be negative; got {var}.")
        super().__init__([1.0], mean[None], stds=var.sqrt().expand_as(mean)[None])

    def flow(self, sde: LinearSDE, x: Tensor, t0: float, t1: float) -> Tensor:
        """The probability-flow ODE from `t0` to `t1`, exactly: `m_1 μ + √(V_1/V_0) (x − m_0 μ)`, `V = m² var +
        std²`."""
        mean, var = self.means[0].to(x), self.variances[0].reshape(self.shape).to(x)
        ends = []
        for t in (t0, t1):
            m, s = (
                expand_like(c, x)
                for c in sde.marginal_coeffs(torch.full((len(x),), float(t), dtype=x.dtype, device=x.device))
            )
            ends.append((m * mean, m**2 * var + s**2))
        (mean_0, var_0), (mean_1, var_1) = ends
        return mean_1 + torch.sqrt(var_1 / var_0) * (x - mean_0)


class OrnsteinUhlenbeck(LinearSDE):
    """`dx = −θ x dt + σ dw`: `m = e^{−θt}`, `std² = σ² (1 − e^{−2θt})/(2θ)`. Gives f and g only: all else is derived
    by the library."""

    def __init__(self, theta: float = 1.0, sigma: float = 2**0.5, T: float = 5.0, t_min: float = 1e-4) -> None:
        super().__init__(T=T, t_min=t_min)
        self.theta, self.sigma = float(theta), float(sigma)

    def drift_coeff(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -self.theta)

    def diffusion_coeff(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma)

    def exact_coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The closed form, to compare `marginal_coeffs` with."""
        return torch.exp(-self.theta * t), self.sigma * torch.sqrt(-torch.expm1(-2 * self.theta * t) / (2 * self.theta))


@dataclass(frozen=True)
class ODEProblem:
    """An ODE with a known solution: `exact(x0, t0, t1)` is the state at `t1` of the path through `x0` at `t0`."""

    name: str
    func: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor, float, float], Tensor]
    t0: float
    t1: float


def _rotation(x: Tensor, t0: float, t1: float) -> Tensor:
    c, s = math.cos(t1 - t0), math.sin(t1 - t0)
    return torch.stack([c * x[:, 0] + s * x[:, 1], -s * x[:, 0] + c * x[:, 1]], dim=1)


ODE_PROBLEMS = (
    ODEProblem("decay", lambda x, t: -x, lambda x, t0, t1: x * math.exp(t0 - t1), 0.0, 2.0),
    ODEProblem(
        "modulated",
        lambda x, t: x * torch.cos(expand_like(t, x)),
        lambda x, t0, t1: x * math.exp(math.sin(t1) - math.sin(t0)),
        0.0,
        3.0,
    ),
    ODEProblem("oscillator", lambda x, t: torch.stack([x[:, 1], -x[:, 0]], dim=1), _rotation, 0.0, 2.0),
    ODEProblem(
        "quadrature", lambda x, t: expand_like(t, x) ** 3 + 0 * x, lambda x, t0, t1: x + (t1**4 - t0**4) / 4, 0.0, 1.5
    ),
    ODEProblem("logistic", lambda x, t: x * (1 - x), lambda x, t0, t1: x / (x + (1 - x) * math.exp(t0 - t1)), 0.0, 2.0),
)
"""Test ODEs; states are `(B, 2)`, those of `logistic` best in (0, 1)."""
