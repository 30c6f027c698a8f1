"""Exact log-likelihoods by the probability-flow ODE (Song et al., ICLR 2021, section 4.3 and appendix D.2).

The probability-flow ODE `dx/dt = v(x, t)`, `v = f − ½ g² s`, carries data at `t_min` to noise at `T`, and

    log p(x) = log p_T(x_T) + ∫_{t_min}^{T} ∇·v(x_t, t) dt.

The integral is solved along with the path. The drift and its divergence come from one forward pass of the score.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn, ScoreFn
from sde_score.registry import Registry
from sde_score.score import Score, as_score, check_answer
from sde_score.sdes.base import SDE, require_sde
from sde_score.solvers import SOLVERS, Solver, solve_ode
from sde_score.solvers.base import ODECallback
from sde_score.tensors import require_finite

TRACES: Registry[Trace] = Registry("trace estimator", group="sde_score.traces")


class Trace(ABC):
    """How the divergence `tr ∂v/∂x` is taken from a drift that was computed with its graph."""

    @abstractmethod
    def draw(self, x: Tensor, noise: NoiseFn) -> Tensor:
        """The probe vectors of a run, `(K, B, *)`; fixed along the path, so that the ODE stays an ODE."""

    @abstractmethod
    def __call__(self, drift: Tensor, x: Tensor, probes: Tensor, *, create_graph: bool) -> Tensor:
        """Estimates of the divergence, `(B, K)`, one column for each quantity to integrate."""

    def std_error(self, integrals: Tensor) -> Tensor | None:
        """Standard error of the mean of K independent integrals `(B, K)` over the probes, `std/√K`; None for one."""
        count = integrals.shape[1]
        return integrals.std(1) / count**0.5 if count > 1 else None


def _vjps(drift: Tensor, x: Tensor, vectors: Tensor, *, create_graph: bool) -> Tensor:
    """`(∂v/∂x)ᵀ u` for each of the K `vectors` u of shape `(K, B, *)`: backward passes through one graph."""
    if len(vectors) == 1:
        return torch.autograd.grad(drift, x, vectors[0], create_graph=create_graph, retain_graph=True)[0][None]
    options = dict(create_graph=create_graph, retain_graph=True, is_grads_batched=True)
    return torch.autograd.grad(drift, x, vectors, **options)[0]


@TRACES.register("exact")
class ExactTrace(Trace):
    """The exact divergence, `Σ_i ∂v_i/∂x_i`: one backward pass per dimension through one forward pass.

    Args:
        chunk: dimensions taken together in one batched backward pass; more is faster and takes more memory. With 1
            nothing is batched, for networks whose backward pass PyTorch cannot batch.
    """

    def __init__(self, chunk: int = 16) -> None:
        if chunk < 1:
            raise ValueError(f"exact(chunk=...) must be at least 1; got {chunk}.")
        self.chunk = int(chunk)

    def draw(self, x: Tensor, noise: NoiseFn) -> Tensor:
        return torch.zeros((1, *x.shape), dtype=x.dtype, device=x.device)

    def __call__(self, drift: Tensor, x: Tensor, probes: Tensor, *, create_graph: bool) -> Tensor:
        batch, dim = len(x), x[0].numel()
        total = torch.zeros(batch, dtype=x.dtype, device=x.device)
        for start in range(0, dim, self.chunk):
            axes = torch.arange(start, min(start + self.chunk, dim), device=x.device)
            vectors = torch.zeros(len(axes), batch, dim, dtype=x.dtype, device=x.device)
            vectors.scatter_(2, axes[:, None, None].expand(-1, batch, 1), 1.0)
            columns = _vjps(drift, x, vectors.reshape(-1, *x.shape), create_graph=create_graph).reshape(
                len(axes), batch, dim
            )
            total = total + columns.gather(2, axes[:, None, None].expand(-1, batch, 1)).sum((0, 2))
        return total[:, None]

    def std_error(self, integrals: Tensor) -> Tensor:
        return torch.zeros_like(integrals[:, 0])


@TRACES.register("hutchinson")
class HutchinsonTrace(Trace):
    """Hutchinson's unbiased estimate `εᵀ (∂v/∂x) ε`, `E εεᵀ = I` (Hutchinson 1990; Skilling 1989; FFJORD, Grathwohl
    et al. 2019).

    Args:
        probes: independent vectors ε; from two on, the result has a standard error for each sample.
        kind: `"rademacher"` (±1, of smaller variance: the published default) or `"gaussian"`.
    """

    def __init__(self, probes: int = 1, kind: str = "rademacher") -> None:
        if probes < 1:
            raise ValueError(f"hutchinson(probes=...) must be at least 1; got {probes}.")
        if kind not in ("rademacher", "gaussian"):
            raise ValueError(f"hutchinson(kind=...) is 'rademacher' or 'gaussian'; got {kind!r}.")
        self.probes, self.kind = int(probes), kind

    def draw(self, x: Tensor, noise: NoiseFn) -> Tensor:
        vectors = torch.stack([noise(x) for _ in range(self.probes)])
        if self.kind == "gaussian":
            return vectors
        return torch.where(vectors < 0, -torch.ones_like(vectors), torch.ones_like(vectors))

    def __call__(self, drift: Tensor, x: Tensor, probes: Tensor, *, create_graph: bool) -> Tensor:
        products = _vjps(drift, x, probes, create_graph=create_graph)
        return (products * probes).reshape(*probes.shape[:2], -1).sum(2).T


@dataclass
class LikelihoodResult:
    """Log-likelihoods and what they cost.

    Attributes:
        logp: log density of each sample in nats, in the space of `x`, `(B,)`; NaN for a sample whose ODE failed
            (possible only with a solver that has `on_failure="return"`).
        z: the latent code, `x` carried to `T`, `(B, *)`.
        prior_logp: log density of the prior at `z`, `(B,)`.
        divergence: the integral of the divergence, `(B,)`; `logp = prior_logp + divergence`.
        trace_std_error: standard error of `logp` over the probes, `(B,)`; zero for the exact trace, None for a single
            probe.
        nfe: evaluations of the score for each sample, `(B,)`.
        steps: accepted steps, `(B,)`.
        calls: evaluations of the score with the whole batch.
        status: a `sde_score.solvers.Status` for each sample, `(B,)`.
        t_min: the time at which the density is that of `x`.
    """

    logp: Tensor
    z: Tensor
    prior_logp: Tensor
    divergence: Tensor
    trace_std_error: Tensor | None
    nfe: Tensor
    steps: Tensor
    calls: int
    status: Tensor
    t_min: float


def log_likelihood(
    sde: SDE,
    score_fn: ScoreFn,
    x: Tensor,
    *,
    solver: Solver | str = "dopri5(rtol=1e-5, atol=1e-5)",
    trace: Trace | str = "hutchinson(probes=1, kind='rademacher')",
    t_min: float | None = None,
    noise: NoiseFn = torch.randn_like,
    probes: Tensor | None = None,
    differentiable: bool | None = None,
    callback: ODECallback | None = None,
) -> LikelihoodResult:
    """Log density of `x` under the model, in nats, by the probability-flow ODE from `t_min` to `T`.

    It is the density at time `t_min` of the ODE's model, hence that of data with the noise of `t_min` on it. With one
    Hutchinson probe each value is unbiased but noisy; their mean over a data set is what one probe is for
    (`summarize` gives its standard error).

    Args:
        sde: the process.
        score_fn: `(x, t) -> score`; must be differentiable in `x` by autograd.
        x: data in model space, `(B, *)`, float32 or float64.
        solver: a `Solver` or its component spec; `"scipy(method='RK45', per_sample=False)"` is the published
            choice.
        trace: a `Trace` or its component spec: `"hutchinson(probes=8)"`, `"exact"`.
        t_min: start time; `sde.t_min` when None.
        noise: draws the probes. With `SampleNoise(seed, indices)` sample i's probes depend on (seed, i) only.
        probes: probe vectors to use instead, `(B, *)` or `(K, B, *)`.
        differentiable: keep the graph through the whole solution, so that gradients reach `x` and the score's
            parameters (memory grows with the evaluations). By default when `x.requires_grad` and gradients are enabled.
        callback: see `solve_ode`; its states are `(B, D + K)`: the flattened sample, then the integrals.

    Raises:
        ValueError: for a score without a graph, wrong shapes, or times outside the process.
        FloatingPointError: for data that are not finite.
        ODEError: when a sample cannot be solved.
    """
    solver, estimator = SOLVERS.build(solver), TRACES.build(trace)
    t_min = _check_door(sde, x, t_min)
    score = as_score(score_fn, sde)
    if differentiable is None:
        differentiable = x.requires_grad and torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        if not differentiable:
            # tensors made under inference mode cannot enter a graph: take copies
            x, probes = x.detach().clone(), None if probes is None else probes.detach().clone()
        vectors = _as_probes(probes, x) if probes is not None else estimator.draw(x.detach(), noise)
        flow = _JointFlow(sde, score, estimator, vectors, x.shape, differentiable)
        result = solve_ode(flow, flow.start(x), t_min, sde.T, solver=solver, callback=callback)
        z, integrals = flow.split(result.x)
        prior, divergence = sde.prior_logp(z), integrals.mean(1)
        logp = torch.where(result.success, prior + divergence, torch.nan)
    return LikelihoodResult(
        logp=logp,
        z=z,
        prior_logp=prior,
        divergence=divergence,
        trace_std_error=estimator.std_error(integrals),
        nfe=result.nfe,
        steps=result.steps,
        calls=result.calls,
        status=result.status,
        t_min=t_min,
    )


def _check_door(sde: SDE, x: Tensor, t_min: float | None) -> float:
    """Refuse what has no density here; returns t_min."""
    t_min = require_sde(sde).t_min if t_min is None else float(t_min)
    if not 0 <= t_min < sde.T:
        raise ValueError(f"t_min must lie in [0, T) = [0, {sde.T:g}); got {t_min}.")
    if x.ndim < 2:
        raise ValueError(
            f"x needs a batch axis and at least one more: shape (B, *); got {tuple(x.shape)}. Write x[:, None]."
        )
    if not x.is_floating_point():
        raise TypeError(f"x holds {x.dtype}. Dequantise and scale the data first; a density is one of real numbers.")
    require_finite(x.detach(), "The data")
    return t_min


class _JointFlow:
    """The right-hand side of the joint ODE of state and log density, on flat states `(B, D + K)`."""

    def __init__(
        self, sde: SDE, score: Score, trace: Trace, probes: Tensor, shape: torch.Size, differentiable: bool
    ) -> None:
        self.sde, self.score, self.trace, self.probes = sde, score, trace, probes
        self.shape, self.dim, self.differentiable = shape, math.prod(shape[1:]), differentiable
        self.checked = False

    def start(self, x: Tensor) -> Tensor:
        """The data, and integrals of zero."""
        return torch.cat([x.reshape(len(x), self.dim), x.new_zeros(len(x), len(self.probes))], dim=1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """State `(B, *)` and integrals `(B, K)`."""
        return state[:, : self.dim].reshape(self.shape), state[:, self.dim :]

    def _score_with_graph(self, x: Tensor, t: Tensor) -> Tensor:
        score = self.score(x, t)
        if not self.checked:
            check_answer(score, x)
            _check_graph(score)
            self.checked = True
        return score

    def __call__(self, state: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = self.split(state)[0]
            x = x if self.differentiable and x.requires_grad else x.detach().requires_grad_(True)
            drift = self.sde.reverse(self._score_with_graph, eta=0.0).drift(x, t)
            divergence = self.trace(drift, x, self.probes, create_graph=self.differentiable)
        joint = torch.cat([drift.reshape(len(state), self.dim), divergence.to(drift.dtype)], dim=1)
        return joint if self.differentiable else joint.detach()


def _as_probes(probes: Tensor, x: Tensor) -> Tensor:
    """Given probe vectors as `(K, B, *)`."""
    if probes.shape == x.shape:
        probes = probes[None]
    if probes.shape[1:] != x.shape or len(probes) < 1:
        raise ValueError(
            f"probes must have shape (B, *) or (K, B, *) for x of shape {tuple(x.shape)}; got {tuple(probes.shape)}."
        )
    return probes.to(device=x.device, dtype=x.dtype)


def _check_graph(score: Tensor) -> None:
    if not score.requires_grad:
        raise ValueError(
            "The score function returned a tensor without a graph, so its divergence would silently be taken as zero. "
            "Remove torch.no_grad(), inference_mode or .detach() from it (for a constant score add 0 * x)."
        )


# --- bits per dimension ---------------------------------------------------------------------------------------------


def bits_per_dim(
    logp: Tensor,
    *,
    dim: int,
    levels: int | None,
    log_det: Tensor | float | None,
    dequantisation: str | None,
) -> Tensor:
    """Bits per dimension of quantised data from the log density of their dequantised, scaled version.

    A value of one of `levels` grey levels k, dequantised, is `u = (k + v)/levels` in [0, 1), v in [0, 1); the scaler
    maps u to model space, `x = scaler(u)`. A cell has the volume `levels^−D`, hence

        bits/dim = −(log p(x) + log |det dx/du| − D ln levels) / (D ln 2).

    With uniform v its mean is an upper bound on the true code length (Theis, van den Oord & Bethge, ICLR 2016);
    variational dequantisation needs the entropy of its noise added: pass `logp − log q(v | k)`.

    Args:
        logp: log density in model space, nats, `(B,)`.
        dim: dimensions of a sample, D.
        levels: grey levels: 256 for 8-bit images, 17 for scikit-learn's digits.
        log_det: log-determinant of the scaler, from the unit cube to model space, per sample in nats: 0 for data kept
            in [0, 1], `D ln 2` for [−1, 1].
        dequantisation: `"uniform"` or `"variational"`: a declaration, so that nobody compares what is not comparable.

    Raises:
        ValueError: when one of them is not declared. Continuous data have no bits/dim: report nats.
    """
    if levels is None:
        raise ValueError(
            "bits/dim is defined for quantised data only: declare levels (256 for 8-bit images), or report nats."
        )
    if log_det is None:
        raise ValueError(
            "bits/dim needs the scaler's log_det (0 for data kept in [0, 1], dim * math.log(2) for [-1, 1])."
        )
    if dequantisation not in ("uniform", "variational"):
        raise ValueError(
            "Declare how the data were dequantised: dequantisation='uniform' or 'variational'; got "
            f"{dequantisation!r}. Without that noise a density on discrete data has no bound, and the number no "
            "meaning."
        )
    if levels < 2 or dim < 1:
        raise ValueError(f"levels must be at least 2 and dim at least 1; got levels={levels}, dim={dim}.")
    return -(logp + log_det - dim * math.log(levels)) / (dim * math.log(2))


@dataclass(frozen=True)
class Summary:
    """Mean of a data set's values, its standard error, and their number."""

    mean: float
    std_error: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.std_error:.4f} (n = {self.n})"


def summarize(values: Tensor) -> Summary:
    """Mean and standard error over samples, `std/√n`. Raises `FloatingPointError` if a value is not finite: a mean
    must not hide it."""
    values = values.detach().reshape(-1).double()
    if len(values) == 0:
        raise ValueError("There are no values to summarise.")
    require_finite(values[:, None], "The list of values")
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
    return Summary(float(values.mean()), error, len(values))
