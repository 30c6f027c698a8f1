"""SDEs whose drift is linear in `x`: two functions of time determine everything."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache, reduce

import numpy as np
import torch
from torch import Tensor

from sde_score.protocols import NoiseFn, ScoreFn
from sde_score.sdes.base import SDE, ReverseSDE
from sde_score.tensors import expand_like, sum_except_batch, with_derivative

NODES = 32
PANEL_TOLERANCE = 1e-12  # between one set of nodes and two, relative
FIRST_PANELS, MOST_PANELS = 32, 512
WARN_ABOVE = 1e-6


@lru_cache(maxsize=4)
def _legendre(nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre nodes `x_i` and weights on [0, 1], and the matrix of the integrals from each node to 1, float64.

    `matrix @ f(x)` are the `∫ f` over `[x_i, 1]` of the polynomial through the `f(x_j)`: its Legendre coefficients are
    `(2k + 1)/2 Σ_j w_j P_k(x_j) f(x_j)`, and `∫ P_k` over `[x, 1]` is `(P_{k-1}(x) - P_{k+1}(x))/(2k + 1)`.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    p = np.polynomial.legendre.legvander(points, nodes)
    k = np.arange(1, nodes)
    integrals = np.column_stack([1 - points, (p[:, k - 1] - p[:, k + 1]) / (2 * k + 1)])
    matrix = integrals @ (p[:, :nodes] * (np.arange(nodes) + 0.5)).T * weights
    return tuple(torch.from_numpy(a / 2) for a in (points + 1, weights, matrix))


def _same_rank(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Give the coefficient with fewer axes those that it lacks."""
    return (expand_like(a, b), b) if a.ndim < b.ndim else (a, expand_like(b, a))


def _mean_over_diagonal(coefficient: Tensor) -> Tensor:
    return coefficient if coefficient.ndim == 1 else coefficient.flatten(1).mean(1)


def _wide(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


Transition = tuple[Tensor, Tensor]
"""The coefficient and the variance of an affine Gaussian step."""


def compose(first: Transition, second: Transition) -> Transition:
    """The step that two make together."""
    return first[0] * second[0], first[1] * second[0] ** 2 + second[1]


def smooth_panels(
    transition: Callable[[Tensor, Tensor], Transition], T: float, dtype: torch.dtype, device: torch.device
) -> tuple[list[float], float]:
    """Cut [0, T] where `transition(s, t) -> (a, variance)` over a whole panel differs from that over its halves.

    Returns the ends of the panels, and the largest difference left (relative). Halving stops at panels too short to
    matter, which end up around jumps and kinks; neighbours that are smooth together are joined again, but never across
    such a place, which nodes can miss: a jump leaves two panels.
    """

    def gap(whole: Transition, parts: Transition) -> Tensor:
        """The larger of both relative differences, `(B,)`; 0 where it is not finite: nothing to be gained there."""
        gaps = [((w - p).abs() / p.abs().clamp(min=1e-300)).reshape(len(w), -1).max(1).values for w, p in
                zip(whole, parts)]  # fmt: skip
        return torch.nan_to_num(torch.maximum(*gaps), nan=0.0, posinf=0.0)

    # a first look close enough to see a narrow pulse
    ends = torch.linspace(0, T, FIRST_PANELS + 1, dtype=dtype, device=device)
    pending = torch.stack([ends[:-1], ends[1:]], 1)
    leaves, breaks, worst = [], [], 0.0
    while len(pending):
        low, high = pending.T
        middle = 0.5 * (low + high)
        error = gap(transition(low, high), compose(transition(low, middle), transition(middle, high)))
        # a short panel weighs by its share of the whole
        short = error * (high - low) / T < 1e-3 * PANEL_TOLERANCE
        done = (error < PANEL_TOLERANCE) | short
        if len(leaves) + 2 * len(pending) > MOST_PANELS:
            worst = max(worst, float((error * ~done).max()))
            done = torch.ones_like(done)
        leaves += pending[done].tolist()
        breaks += pending[short & (error >= PANEL_TOLERANCE)].mean(1).tolist()
        low, middle, high = (edge[~done] for edge in (low, middle, high))
        pending = torch.cat([torch.stack([low, middle], 1), torch.stack([middle, high], 1)])
    leaves.sort()
    edges = torch.tensor(leaves, dtype=dtype, device=device)
    pieces = transition(edges[:, 0], edges[:, 1])
    if not breaks:
        everything = reduce(compose, (tuple(c[k : k + 1] for c in pieces) for k in range(len(leaves))))
        if float(gap(transition(ends[:1], ends[-1:]), everything)) <= PANEL_TOLERANCE:
            return [0.0, T], worst
    kept, begin, joined = [0.0], edges[:1, 0], None
    for k, (low, high) in enumerate(leaves):
        rough = [b for b in breaks if low < b < high]
        piece = tuple(c[k : k + 1] for c in pieces)
        longer = piece if joined is None else compose(joined, piece)
        whole = transition(begin, edges[k : k + 1, 1])
        if joined is not None and not rough and float(gap(whole, longer)) > max(PANEL_TOLERANCE, worst):
            kept.append(low)
            begin, longer = edges[k : k + 1, 0], piece
        joined = longer
        if rough:
            kept += rough
            begin, joined = edges.new_tensor(rough[-1:]), None
    return [*kept, T], worst


class LinearSDE(SDE):
    """`dx = f(t) x dt + g(t) dw`: a subclass gives `drift_coeff(t)` and `diffusion_coeff(t)`, the rest is derived.

    With `m(t) = exp ∫₀ᵗ f`, the law of `x_t` given `x_0` is `N(m(t) x_0, std(t)² I)`,

        std(t)² = m(t)² (std_0² + ∫₀ᵗ g(s)²/m(s)² ds),

    where `std_0` (0 unless the subclass sets it) is noise already in the data at time 0, as in the VE SDE. Both
    integrals are taken by Gauss-Legendre quadrature with 32 nodes scaled to the interval, in float64: exact to rounding
    for smooth coefficients, also near `t = 0`. Where they are not smooth, the interval is first cut, once, at their
    jumps and kinks until the quadrature's own error estimate is met; a warning tells the error where it cannot be.
    Where a closed form is known, override `marginal_coeffs` and `transition` (`sde_score.testing.check_sde` compares).

    A coefficient is a scalar for each time, `(B,)`, or diagonal: `(B, C, ...)`, broadcasting against `x` from the left.
    """

    std_0: float = 0.0
    _panel_ends: list[float] | None = None
    additive_noise = True
    can_denoise = True

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        for short, name in (("f", "drift_coeff"), ("g", "diffusion_coeff")):
            if short in cls.__dict__ and name not in cls.__dict__:
                raise TypeError(
                    f"{cls.__name__} defines {short}(t); a LinearSDE calls it {name}(t). Rename the method."
                )

    @abstractmethod
    def drift_coeff(self, t: Tensor) -> Tensor:
        """f(t), elementwise in `t`."""

    @abstractmethod
    def diffusion_coeff(self, t: Tensor) -> Tensor:
        """g(t), elementwise in `t`."""

    def _coeff(self, name: str, t: Tensor) -> Tensor:
        """A coefficient as a tensor with the batch axis of `t`, whatever the subclass returned (a number, a scalar
        tensor ...).
        """
        value = torch.as_tensor(getattr(self, name)(t), dtype=t.dtype, device=t.device)
        if value.ndim == 0:
            return value.expand(t.shape)
        if value.shape[0] != t.shape[0]:
            raise ValueError(
                f"{type(self).__name__}.{name}(t) returned shape {tuple(value.shape)} for t of shape {tuple(t.shape)}: "
                "its first axis must be the batch (for a constant diagonal write `c.expand(len(t), *c.shape)`)."
            )
        return value

    # --- the SDE interface

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return expand_like(self._coeff("drift_coeff", t), x) * x

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        return expand_like(self._coeff("diffusion_coeff", t), x)

    def marginal_prob(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean `m(t) x_0` and standard deviation (broadcastable to `x_0`) of `x_t` given `x_0`."""
        mean_coeff, std = self.marginal_coeffs(t)
        return expand_like(mean_coeff, x0) * x0, expand_like(std, x0)

    @property
    def prior_std(self) -> Tensor | float:
        """Standard deviation of the prior `N(0, prior_std²)`; `std(T)` unless a subclass knows better."""
        _, std = self.marginal_coeffs(torch.full((1,), self.T, dtype=torch.float64))
        return std.item() if std.numel() == 1 else std

    def _prior_std_like(self, x: Tensor) -> Tensor:
        std = torch.as_tensor(self.prior_std, dtype=x.dtype, device=x.device)
        return std if std.ndim == 0 else expand_like(std, x)

    def prior_sampling(
        self,
        shape: tuple[int, ...],
        *,
        noise: NoiseFn = torch.randn_like,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        empty = torch.empty(shape, device=device, dtype=dtype)
        return noise(empty) * self._prior_std_like(empty)

    def prior_logp(self, x: Tensor) -> Tensor:
        """Log density of `N(0, prior_std² I)` at `x`, in nats: `(B,)`."""
        std = self._prior_std_like(x)
        return sum_except_batch(-0.5 * (x / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi))

    # --- derived quantities

    def _transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`exp ∫ₛᵗ f` and the variance gathered between `s` and `t` of shape `(B,)`, in float64, panel by panel."""
        ends = torch.tensor(self._panels(s), dtype=s.dtype, device=s.device)
        if len(ends) == 2:
            return self._gauss(s, t)
        low, high = (torch.clamp(v[:, None], ends[:-1], ends[1:]).reshape(-1) for v in (s, t))
        means, variances = (c.reshape(len(s), len(ends) - 1, *c.shape[1:]) for c in self._gauss(low, high))
        whole = means[:, 0], variances[:, 0]
        for k in range(1, means.shape[1]):
            whole = compose(whole, (means[:, k], variances[:, k]))
        return whole

    def _panels(self, like: Tensor) -> list[float]:
        """Ends of the panels of [0, T] in each of which one set of nodes suffices: found once, where coefficients have
        jumps or kinks, and [0, T] itself for smooth ones.
        """
        if self._panel_ends is None:
            # constants of a subclass may live on the device of its data; `meta` has no values to look at
            device = torch.device("cpu") if like.device.type == "meta" else like.device
            self._panel_ends, error = smooth_panels(self._gauss, self.T, like.dtype, device)
            if error > WARN_ABOVE:
                warnings.warn(
                    f"{type(self).__name__}: f or g is too rough to be integrated; the derived marginals have a "
                    f"relative error of about {error:.1g}. Override marginal_coeffs and transition with closed forms.",
                    stacklevel=2,
                )
        return self._panel_ends

    def _gauss(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`_transition` by one set of Gauss-Legendre nodes."""
        points, weights, tails = (p.to(s) for p in _legendre(NODES))
        times = s[:, None] + (t - s)[:, None] * points
        f, g = (self._coeff(name, times.reshape(-1)) for name in ("drift_coeff", "diffusion_coeff"))
        f = f.reshape(*times.shape, *f.shape[1:])
        length = expand_like(t - s, f[:, 0])
        log_mean = torch.tensordot(weights, f, dims=([0], [1])) * length
        to_end = torch.tensordot(tails, f, dims=([1], [1])).movedim(0, 1) * length[:, None]  # ∫ f from each node to t
        to_end, g = _same_rank(to_end.flatten(0, 1), g)
        rate = (g * torch.exp(to_end)) ** 2
        rate = rate.reshape(*times.shape, *rate.shape[1:])
        variance = torch.tensordot(weights, rate, dims=([0], [1])) * expand_like(t - s, rate[:, 0])
        log_mean, variance = _same_rank(log_mean, variance)
        return torch.exp(log_mean), variance

    def _quadrature(self, s: Tensor, t: Tensor, std_s: float) -> tuple[Tensor, Tensor]:
        """Mean coefficient and standard deviation at `t` of a path with standard deviation `std_s` at `s`, in the
        precision of `t`.
        """
        self.require_diagonal_noise("The derivation of marginals and transitions")
        if t.ndim != 1:
            raise ValueError(f"Times have shape (B,); got {tuple(t.shape)}.")
        batch = len(t)
        if batch > 1 and t.stride(0) == 0 and s.stride(0) == 0:  # one time for all samples, expanded: compute it once
            s, t = s[:1], t[:1]
        wide = _wide(t.device)
        mean, variance = self._transition(s.to(wide), t.to(wide))
        std = torch.sqrt(mean**2 * std_s**2 + variance)
        return tuple(c.to(t.dtype).expand(batch, *c.shape[1:]) for c in torch.broadcast_tensors(mean, std))

    def marginal_coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`m(t)` and `std(t)`, in the precision of `t`."""
        return self._quadrature(torch.zeros_like(t[:1]).expand_as(t), t, self.std_0)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Law of `x_t` given `x_s`, `s <= t`: the coefficient `a` and the standard deviation of `N(a x_s, std² I)`."""
        return self._quadrature(s, t, 0.0)

    def log_snr(self, t: Tensor) -> Tensor:
        """`log m(t)²/std(t)²`, `(B,)`: the signal-to-noise ratio of unit-variance data; falls with `t`.

        For diagonal coefficients the mean over the diagonal, which falls too.
        """
        mean_coeff, std = self.marginal_coeffs(t)
        return _mean_over_diagonal(2 * (torch.log(mean_coeff) - torch.log(std)))

    def log_snr_rate(self, t: Tensor) -> Tensor:
        """`−d(log SNR)/dt = g(t)²/std(t)²`, `(B,)` (the mean over a diagonal)."""
        g, std = _same_rank(self._coeff("diffusion_coeff", t), self.marginal_coeffs(t)[1])
        return _mean_over_diagonal((g / std) ** 2)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time in `[0, T]` with the given log-SNR (scalar coefficients), by bisection to rounding; clamped to the
        ends.
        """
        wide = _wide(log_snr.device)
        target = log_snr.to(wide)
        low, high = torch.zeros_like(target), torch.full_like(target, self.T)
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = self.log_snr(middle.reshape(-1)).reshape(middle.shape) > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (0.5 * (low + high)).to(log_snr.dtype)

    def low_noise_time(self) -> float:
        """Where data of unit variance stand a factor e² above the noise: log-SNR 4."""
        return float(self.time_of_log_snr(torch.tensor(4.0, dtype=torch.float64)))

    def posterior_mean(self, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """`E[x_0 | x_t = x] = (x + std² s)/m` (Tweedie's formula; Efron 2011)."""
        mean_coeff, std = (expand_like(c, x) for c in self.marginal_coeffs(t))
        return (x + std**2 * score) / mean_coeff

    def reverse(self, score_fn: ScoreFn, *, eta: float = 1.0) -> SemiLinearReverse:
        """As `SDE.reverse`, with the linear part and the score's part of the drift apart."""
        return SemiLinearReverse(self, score_fn, eta=eta)


class SemiLinearReverse(ReverseSDE):
    """The reverse process of a linear SDE, `dx = [f(t) x + N(x, t)] dt + η g dw̄`, `N = −½(1 + η²) g² s(x, t)`.

    What exponential integrators are made of: the linear part is solved exactly by `propagator`, and only `nonlinear`
    asks the score. Coefficients are scalar or diagonal and broadcast against `x`.
    """

    sde: LinearSDE

    def linear_coeff(self, x: Tensor, t: Tensor) -> Tensor:
        """f(t)."""
        return expand_like(self.sde._coeff("drift_coeff", t), x)

    def nonlinear(self, x: Tensor, t: Tensor) -> Tensor:
        """N(x, t)."""
        return -0.5 * (1 + self.eta**2) * self.sde.apply_diffusion_sq(x, t, self.score_fn(x, t))

    def propagator(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """`exp ∫ₛᵗ f = m(t)/m(s)`, for `t` before or after `s`."""
        return expand_like(self.sde.marginal_coeffs(t)[0] / self.sde.marginal_coeffs(s)[0], x)


class GaussianPathSDE(LinearSDE):
    """The linear SDE with marginals `N(α(t) x_0, σ(t)² I)`: a subclass gives `alpha(t)` and `sigma(t)`.

    Then `f = α'/α` and `g² = dσ²/dt − 2 f σ²`, with derivatives by automatic differentiation (Kingma et al.,
    "Variational Diffusion Models", 2021, eq. 2; Karras et al. 2022, appendix B). `alpha` must be positive on `[0, T]`
    and `alpha(0) = 1`.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Mean coefficient, elementwise in `t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation, elementwise in `t`."""

    _checked = False

    def _derivative(self, func, t: Tensor) -> tuple[Tensor, Tensor]:
        if not self._checked:
            self._checked = True
            self._check_path()
        t = t.contiguous()  # forward differentiation refuses the expanded times of samplers
        return with_derivative(lambda s: torch.as_tensor(func(s), dtype=s.dtype).expand_as(s), t)

    def _check_path(self) -> None:
        """Refuse, once, a path that no SDE has."""
        t = torch.linspace(0, self.T, 65, dtype=torch.float64)
        alpha, sigma = (torch.as_tensor(f(t), dtype=t.dtype).expand_as(t) for f in (self.alpha, self.sigma))
        name = type(self).__name__
        if abs(float(alpha[0]) - 1) > 1e-6:
            raise ValueError(f"{name}: alpha(0) must be 1, the data themselves; it is {float(alpha[0]):g}.")
        if not (alpha > 0).all():
            where = float(t[~(alpha > 0)][0])
            raise ValueError(
                f"{name}: alpha(t) must be positive on [0, T], but not at t = {where:g}. End earlier: "
                f"T={0.999 * where:g}."
            )
        log_snr = 2 * (torch.log(alpha) - torch.log(sigma))
        if not (log_snr[1:].diff() <= 1e-9).all():
            where = float(t[1:-1][log_snr[1:].diff() > 1e-9][0])
            raise ValueError(
                f"{name}: alpha(t)/sigma(t) must fall with t, but rises at t = {where:g}; no real g(t) does that."
            )

    def drift_coeff(self, t: Tensor) -> Tensor:
        alpha, slope = self._derivative(self.alpha, t)
        return slope / alpha

    def diffusion_coeff(self, t: Tensor) -> Tensor:
        variance, slope = self._derivative(lambda s: self.sigma(s) ** 2, t)
        return torch.sqrt(torch.clamp(slope - 2 * self.drift_coeff(t) * variance, min=0))

    def marginal_coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._coeff("alpha", t), self._coeff("sigma", t)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # σ_t² − a² σ_s² = σ_t² (1 − SNR_t/SNR_s), which keeps its precision where a quadrature near a pole of f would
        # not
        sigma, alpha = (self._coeff(name, t) for name in ("sigma", "alpha"))
        variance = -torch.expm1(self.log_snr(t) - self.log_snr(s)) * sigma**2
        return alpha / self._coeff("alpha", s), torch.sqrt(torch.where(s == t, 0.0, variance).clamp(min=0))
