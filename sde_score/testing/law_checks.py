"""Conformance checks of the law of any SDE: moment equations, simulation, and what enters the reverse process."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_score.sdes.base import SDE
from sde_score.tensors import expand_like
from sde_score.testing.checks import SIGMAS, CheckFailed, _require
from sde_score.testing.probes import (
    Noise,
    Shape,
    basis,
    diagonal_shape,
    knows_marginals,
    noise_matrix,
    shapes_of,
    states_of,
    time_slopes,
    times_like,
    worst,
)


def _small_shape(sde: SDE, shape: Shape | None) -> Shape:
    """A shape of few dimensions, for checks that need every one of them."""
    return tuple(shape) if shape is not None else diagonal_shape(sde) or shapes_of(sde)[0]


def check_noise_square(sde: SDE, shape: Shape | None = None) -> None:
    """`apply_diffusion` is `diffusion` times v unless the noise is a matrix; `apply_diffusion_sq` is G Gᵀ v;
    `diffusion_sq_divergence` is ∇·(G Gᵀ), row by row, and zero for additive noise."""
    sample = _small_shape(sde, shape)
    x, t = states_of(sde, sample, 4), times_like(sde, 4)
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    G = noise_matrix(sde, x, t)
    size = float(G.abs().max()) + 1e-30
    if sde.noise_type != "matrix":
        gap = float((sde.apply_diffusion(x, t, v) - sde.diffusion(x, t) * v).abs().max()) / size
        _require(
            gap < 1e-6,
            f"apply_diffusion(x, t, v) is not diffusion(x, t) · v (relative error {gap:.2g}), though noise_type is "
            f"{sde.noise_type!r}.",
        )
    want = (G @ (G.mT @ v.reshape(len(x), -1, 1))).reshape(x.shape)
    gap = float((sde.apply_diffusion_sq(x, t, v) - want).abs().max()) / size**2
    _require(
        gap < 1e-6,
        f"apply_diffusion_sq(x, t, v) is not G Gᵀ v, with G as apply_diffusion applies it (relative error {gap:.2g}): "
        "a missing square, the transpose Gᵀ G, or one of the two methods not overridden. The probability flow with ½ G "
        "Gᵀ s is made of it.",
    )
    if sde.additive_noise:
        elsewhere = noise_matrix(sde, states_of(sde, sample, 4, seed=1), t)
        gap = float((G - elsewhere).abs().max()) / size
        _require(
            gap < 1e-9,
            f"additive_noise is True, but the diffusion changes with x (by {gap:.2g}, relative): solvers would read "
            "the Itô SDE as a Stratonovich one. Set additive_noise = False.",
        )
    divergence = torch.zeros_like(x)
    spread = states_of(sde, sample, 200).std(0)
    for e in basis(x):
        h = 1e-5 * torch.maximum(x.abs(), 0.1 * spread) * e
        width = h.reshape(len(x), -1).sum(1)
        up, down = (sde.apply_diffusion_sq(x + s * h, t, e.expand_as(x)) for s in (1, -1))
        divergence = divergence + (up - down) / expand_like(2 * width, x)
    got = torch.as_tensor(sde.diffusion_sq_divergence(x, t), dtype=x.dtype).expand_as(x)
    gap = float((got - divergence).abs().max()) / (float(divergence.abs().max()) + 1e-3 * size**2 / float(spread.max()))
    _require(
        gap < 1e-3,
        f"diffusion_sq_divergence is not ∇·(G Gᵀ), component i being Σ_j ∂_j (G Gᵀ)_ij: relative error {gap:.2g}, e.g. "
        f"{float(got.reshape(-1)[0]):.4g} instead of {float(divergence.reshape(-1)[0]):.4g}. It enters the reverse "
        "drift wherever G depends on x.",
    )


def check_reverse_sde(sde: SDE, shape: Shape | None = None) -> None:
    """`reverse(score, eta)` has the drift f − ½ (1 + η²) (G Gᵀ s + ∇·G Gᵀ) and the noise η G (Anderson 1982; Song et
    al. 2021, eq. 6; Karras et al. 2022, eq. 6)."""
    sample = shapes_of(sde, shape)[0]
    x, t = states_of(sde, sample, 5, seed=3), times_like(sde, 5)
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(4))
    square = sde.apply_diffusion_sq(x, t, torch.sin(x)) + sde.diffusion_sq_divergence(x, t)
    f, noise = sde.drift(x, t), sde.apply_diffusion(x, t, v)
    for eta in (0.0, 0.5, 1.0):
        reverse = sde.reverse(lambda x, t: torch.sin(x), eta=eta)
        want = f - 0.5 * (1 + eta**2) * square
        gap = float(((reverse.drift(x, t) - want).abs() / (want.abs() + square.abs().max() + 1e-30)).max())
        _require(
            gap < 1e-6,
            f"the drift of reverse(score, eta={eta:g}) is not f − ½ (1 + η²) (G Gᵀ s + ∇·G Gᵀ): relative error "
            f"{gap:.2g}.",
        )
        kick = reverse.apply_diffusion(x, t, v)
        _require(
            torch.allclose(kick, eta * noise), f"the noise of reverse(score, eta={eta:g}) is not η G: eta is ignored?"
        )


def check_denoise(sde: SDE, shape: Shape | None = None) -> None:
    """`denoise` with an exact score is the posterior mean of Gaussian data, from small noise to large."""
    sample = _small_shape(sde, shape)
    if not (sde.can_denoise and knows_marginals(sde, sample)):
        return
    mu, var = 0.4, 0.25
    low = max(float(sde.t_min), 1e-4 * float(sde.T))
    t = torch.cat([torch.tensor([low], dtype=torch.float64), times_like(sde, 7, 0.05, 0.99)])
    zero = torch.zeros(len(t), *sample, dtype=torch.float64)
    offset, std = sde.marginal_prob(zero, t)
    slope = sde.marginal_prob(zero + 1, t)[0] - offset  # the mean is offset + slope · x_0
    total = slope**2 * var + std**2
    z = torch.randn(zero.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    x = offset + slope * mu + total.sqrt() * z

    def score(x: Tensor, t: Tensor) -> Tensor:
        return -(x - offset - slope * mu) / total

    got = sde.denoise(score, x, t)
    want = mu + slope * var / total * (x - offset - slope * mu)
    gap, at = worst((got - want).abs().reshape(len(t), -1), t)
    _require(
        gap < 1e-4,
        f"denoise with the exact score of a Gaussian misses the posterior mean E[x_0 | x_t] by {gap:.3g} at "
        f"t={at:.4g}. Tweedie's formula: (x + std² s)/m where the mean is m x_0.",
    )


# --- moment equations -----------------------------------------------------------------------------------------------


def _odd_times(sde: SDE, n: int) -> Tensor:
    """Times inside (t_min, T), even and in ratio, off the round numbers where coefficients like to jump."""
    low = max(float(sde.t_min), 1e-6 * float(sde.T))
    u = (torch.arange(n, dtype=torch.float64) + 0.381966) / n
    even = low + (float(sde.T) - low) * u
    ratio = low * (float(sde.T) / low) ** u
    return torch.sort(torch.cat([even, ratio])).values


def check_moments(sde: SDE, shape: Shape | None = None) -> None:
    """Mean and covariance by `marginal_prob` obey the moment equations of the Fokker-Planck equation,

        d E[x]/dt = E[f],    d Cov[x]/dt = E[f (x − E x)ᵀ] + E[(x − E x) fᵀ] + E[G Gᵀ]

    (Särkkä & Solin 2019, eqs. 5.50 and 5.51), and start from the data. Expectations by a cubature rule of degree 3,
    exact for a drift that is affine in x, as a Gaussian law from every start demands.
    """
    sample = _small_shape(sde, shape)
    if not knows_marginals(sde, sample):
        return
    times = _odd_times(sde, 8)
    n, T = len(times), float(sde.T)
    start = torch.randn(3, *sample, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    x0, t = start.repeat_interleave(n, 0), times.repeat(3)

    def curves(t: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = sde.marginal_prob(x0, t)
        return mean, torch.as_tensor(std).expand_as(mean) ** 2

    _require_start(sde, start)
    mean, var = curves(t)
    dim = mean[0].numel()
    unit = dim**0.5 * torch.cat([basis(mean), -basis(mean)])  # cubature points of the standard normal law
    points = mean[:, None] + var.sqrt()[:, None] * unit
    flat, when = points.flatten(0, 1), t.repeat_interleave(2 * dim)
    f = sde.drift(flat, when).reshape(len(t), 2 * dim, dim)
    G = noise_matrix(sde, flat, when)
    square = (G @ G.mT).reshape(len(t), 2 * dim, dim, dim).mean(1)
    away = (points - mean[:, None]).reshape(len(t), 2 * dim, dim)
    cross = torch.einsum("bki,bkj->bij", f, away) / (2 * dim)
    want_mean, want_cov = f.mean(1), cross + cross.mT + square
    v = var.reshape(len(t), dim)
    g2 = square.diagonal(dim1=1, dim2=2)

    slopes = [[s.reshape(len(t), dim) for s in pair] for pair in time_slopes(curves, t, T)]
    size = want_mean.abs() + (2 * cross.diagonal(dim1=1, dim2=2).abs() + g2) / v.sqrt() + 1e-3 * v.sqrt() / T
    gap, at = min((worst((dm - want_mean).abs() / (size + dm.abs()), t) for dm, _ in slopes), key=_nan_last)
    if not gap < 1e-4:
        dm = slopes[0][0]
        hint = ""
        if ((dm + want_mean).abs() <= 1e-3 * size).all():
            hint = " It looks like wrong sign of the drift (d mean/dt = −E[f] holds)."
        raise CheckFailed(
            "the mean by marginal_prob does not move with the drift: d E[x]/dt is not E[drift(x, t)], relative error "
            f"{gap:.2g} at t={at:.4g}.{hint}"
        )
    size = want_cov.diagonal(dim1=1, dim2=2).abs() + 2 * cross.diagonal(dim1=1, dim2=2).abs() + g2 + 1e-3 * v / T
    gap, at = min(
        (worst((dv - want_cov.diagonal(dim1=1, dim2=2)).abs() / size, t) for _, dv in slopes), key=_nan_last
    )
    if not gap < 1e-4:
        ratio = (slopes[0][1] - 2 * cross.diagonal(dim1=1, dim2=2)) / g2
        raise CheckFailed(
            "the variance by marginal_prob does not grow with drift and diffusion: d Var[x]/dt is not 2 Cov[x, f] + "
            f"E[G Gᵀ], relative error {gap:.2g} at t={at:.4g}. What is left for G Gᵀ is {float(ratio.median()):.4g} "
            "times that of diffusion: 2 or ½ is a missing factor in g², other values a variance for a standard "
            "deviation, or a wrong rate."
        )
    off = want_cov - torch.diag_embed(want_cov.diagonal(dim1=1, dim2=2))
    gap, at = worst(off.abs().flatten(1) / (size.max(1).values[:, None]), t)
    _require(
        gap < 1e-4,
        f"drift and diffusion correlate the dimensions (by {gap:.2g}, relative, at t={at:.4g}), but marginal_prob says "
        "that they are independent given x_0. Leave marginal_prob out.",
    )


def _nan_last(pair: tuple[float, float]) -> float:
    return pair[0] if pair[0] == pair[0] else float("inf")


def _require_start(sde: SDE, x0: Tensor) -> None:
    zero, end = (torch.full((len(x0),), v, dtype=torch.float64) for v in (0.0, float(sde.T)))
    mean, std = sde.marginal_prob(x0, zero)
    if not (torch.isfinite(mean).all() and torch.isfinite(torch.as_tensor(std)).all()):
        return
    gap = float((mean - x0).abs().max())
    _require(
        gap < 1e-6 * (1 + float(x0.abs().max())),
        f"the mean of marginal_prob(x0, t=0) is not x0 (off by {gap:.3g}; a mean coefficient must be 1): the data are "
        "there at t=0.",
    )
    first, last = (torch.as_tensor(sde.marginal_prob(x0, t)[1]).max() for t in (zero, end))
    _require(
        first < 0.5 * last,
        f"the std of marginal_prob at t=0 is {float(first):.4g}, against {float(last):.4g} at T: there is too much "
        "noise in the data.",
    )


# --- simulation -----------------------------------------------------------------------------------------------------

WINDOW = 30.0
"""Relaxation times that a simulation covers: what lies further back is forgotten."""


def _activity(sde: SDE, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Times, how fast a step must be there (per unit of time), and how fast the drift forgets."""
    low, T = max(float(sde.t_min), 1e-7 * float(sde.T)), float(sde.T)
    u = torch.linspace(0, 1, 400, dtype=torch.float64)
    grid = torch.unique(torch.cat([low + (T - low) * u, low * (T / low) ** u]).clamp(low, T))
    states = 8
    x, other = (states_of(sde, shape, states, seed).repeat(len(grid), *(1,) * len(shape)) for seed in (7, 8))
    t = grid.repeat_interleave(states)
    step = 1e-4 * (other - x)

    def norm(value: Tensor) -> Tensor:
        return value.reshape(len(grid), states, -1).norm(dim=2)

    forgets = (norm(sde.drift(x + step, t) - sde.drift(x, t)) / norm(step)).max(1).values
    strength = norm(sde.apply_diffusion(x, t, torch.ones_like(x))).mean(1)
    log_g2 = 2 * torch.log(strength + 1e-12 * strength.max() + 1e-300)
    change = torch.cat([log_g2.diff().abs() / grid.diff(), torch.zeros(1, dtype=torch.float64)])
    return grid, 2 * forgets + change + 1.0 / T, forgets


def _integral(grid: Tensor, rate: Tensor) -> Tensor:
    pieces = 0.5 * (rate[1:] + rate[:-1]) * grid.diff()
    return torch.cat([torch.zeros(1, dtype=torch.float64), pieces.cumsum(0)])


def _invert(total: Tensor, grid: Tensor, wanted: Tensor) -> Tensor:
    index = torch.searchsorted(total, wanted).clamp(1, len(grid) - 1)
    share = (wanted - total[index - 1]) / (total[index] - total[index - 1]).clamp(min=1e-300)
    return grid[index - 1] + share.clamp(0, 1) * grid.diff()[index - 1]


def _windows(sde: SDE, shape: Shape, steps: int, all_windows: bool) -> list[list[float]]:
    """Grids of times on which drift and noise act evenly: the whole of [t_min, T], or its first and last part where
    the process relaxes many times over."""
    grid, rate, forgets = _activity(sde, shape)
    total, forgotten = _integral(grid, rate), _integral(grid, forgets)
    spans = [(grid[0], grid[-1])]
    if forgotten[-1] > 1.5 * WINDOW:
        ends = _invert(forgotten, grid, torch.stack([forgotten.new_tensor(WINDOW), forgotten[-1] - WINDOW]))
        spans = [(ends[1], grid[-1])] + ([(grid[0], ends[0])] if all_windows else [])
    windows = []
    for low, high in spans:
        marks = torch.stack([total[torch.searchsorted(grid, v).clamp(max=len(grid) - 1)] for v in (low, high)])
        wanted = torch.linspace(float(marks[0]), float(marks[1]), steps + 1, dtype=torch.float64)
        windows.append([float(low), *_invert(total, grid, wanted)[1:-1].tolist(), float(high)])
    return windows


def _step(sde: SDE, x: Tensor, s: float, t: float, noise: Noise) -> Tensor:
    """One step from `s` to `t`: Heun's rule for the drift; the noise of the middle time at x, as Itô has it (weak order
    2 for additive noise, 1 otherwise)."""
    early, late, middle = (torch.full((len(x),), v, dtype=x.dtype) for v in (s, t, 0.5 * (s + t)))
    h = t - s
    drift = sde.drift(x, early)
    kick = h**0.5 * sde.apply_diffusion(x, middle, noise(x))
    return x + 0.5 * h * (drift + sde.drift(x + h * drift + kick, late)) + kick


def check_forward_simulation(sde: SDE, shape: Shape | None = None, samples: int = 4000, steps: int = 300) -> None:
    """Paths simulated with `drift` and `apply_diffusion` have the law of `marginal_prob` in the middle and at the end;
    where that is unknown, paths from the middle of the prior end in the prior.

    Mean and variance of `samples` paths are compared at 5 standard errors plus 2 % for the steps, and distribution
    functions likewise: a correct SDE fails with probability 2e-6 for a fresh seed.
    """
    sample = _small_shape(sde, shape)
    noise = Noise(2)
    if not knows_marginals(sde, sample):
        _require_prior_reached(sde, sample, samples, steps, noise)
        return
    x0 = torch.full((samples, *sample), 1.5, dtype=torch.float64)
    for times in _windows(sde, sample, steps, all_windows=True):
        mean, std = sde.marginal_prob(x0, torch.full((samples,), times[0], dtype=torch.float64))
        x = mean + std * noise(x0)
        for k, (s, t) in enumerate(zip(times, times[1:]), 1):
            x = _step(sde, x, s, t, noise)
            if k in (len(times) // 2, len(times) - 1):
                _require_law(sde, x, x0, t)


def _require_law(sde: SDE, x: Tensor, x0: Tensor, t: float) -> None:
    when = torch.full((len(x),), t, dtype=torch.float64)
    mean, std = (torch.as_tensor(c).expand_as(x)[0] for c in sde.marginal_prob(x0, when))
    gap = (x.mean(0) - mean).abs() - 0.02 * (std + mean.abs())
    _require(
        (gap < SIGMAS * std / len(x) ** 0.5).all(),
        f"simulated with drift and diffusion, the mean at t={t:.3g} is {float(x.mean()):.4g} instead of "
        f"{float(mean.mean()):.4g} (from marginal_prob): wrong sign of the drift, or a missing factor.",
    )
    ratio = x.std(0) / std
    _require(
        ((ratio - 1).abs() < SIGMAS / (2 * len(x)) ** 0.5 + 0.02).all(),
        f"simulated with drift and diffusion, the standard deviation at t={t:.3g} is {float(ratio.mean()):.4g} times "
        "that of marginal_prob. 1.41 or 0.71: a missing factor 2 in g².",
    )


def _require_prior_reached(sde: SDE, sample: Shape, samples: int, steps: int, noise: Noise) -> None:
    times = _windows(sde, sample, steps, all_windows=False)[0]
    many = 10 * samples
    prior = states_of(sde, sample, many, seed=9).reshape(many, -1)
    x = prior.median(0).values.reshape(1, *sample).repeat(samples, *(1,) * len(sample))
    for s, t in zip(times, times[1:]):
        x = _step(sde, x, s, t, noise)
        _require(
            torch.isfinite(x).all(),
            f"simulated with drift and diffusion, the process is not finite at t={t:.4g}: wrong sign of the drift, or "
            "noise too large?",
        )
    q = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    marks = torch.quantile(prior, q, dim=0)
    shares = (x.reshape(samples, 1, -1) <= marks).double().mean(0)
    allowed = SIGMAS * torch.sqrt(q * (1 - q) * (1 / samples + 1 / many)) + 0.02
    gap, at = worst((shares - q[:, None]).abs() - allowed[:, None], q)
    _require(
        gap < 0,
        f"the prior is not where drift and diffusion lead: at T a share of {float(shares[q == at].mean()):.3g} of the "
        f"paths lies below the {at:g}-quantile of the prior. The mean there is {float(x.mean()):.4g} (prior "
        f"{float(prior.mean()):.4g}), the standard deviation {float(x.std()):.4g} (prior {float(prior.std()):.4g}). "
        "Look at the sign and the size of the drift (an Itô correction left out?), at the diffusion, and at T.",
    )
