"""Conformance checks of SDEs, in the manner of `sde_score.testing.checks`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sde_score.sdes.base import SDE
from sde_score.sdes.linear import LinearSDE
from sde_score.solvers import solve_ode
from sde_score.tensors import expand_like, sum_except_batch
from sde_score.testing.checks import SIGMAS, Check, CheckFailed, CheckResult, _name, _require, _run
from sde_score.testing.problems import Gaussian

SHAPES = ((3,), (2, 5), (3, 4, 4), (2, 3, 2, 2))


def check_sde(sde: SDE, *, skip: dict[str, str] | None = None) -> list[CheckResult]:
    """Prove an SDE right as far as checks can: times, shapes, marginals, transitions, prior, log-SNR, precision,
    simulation, reversal.

    Args:
        sde: the instance to check. A `LinearSDE` gets all checks; for another, those that do not need its marginals.
        skip: names of checks to leave out, with the reason: `{"check_prior": "the prior is approximate by design"}`.

    Raises:
        CheckFailed: with every failure and what it hints at.
    """
    return _run(sde_checks(sde), f"{_name(sde)}", skip)


def sde_checks(sde: SDE) -> Iterator[Check]:
    """The checks that apply to `sde`, each callable without arguments; for `pytest.mark.parametrize`."""
    checks: list[Check] = [check_times, check_shapes, check_meta_device, check_prior_density]
    if isinstance(sde, LinearSDE):
        checks += [
            check_coefficients, check_marginal_start, check_marginal_ode, check_marginals_by_quadrature,
            check_transition_composes, check_transition_and_marginal, check_prior, check_log_snr, check_float32,
            check_forward_simulation, check_chain, check_reverse_ode, check_reverse_sde,
        ]  # fmt: skip
    for check in checks:
        yield partial(check, sde)


def _times(sde: SDE, n: int = 25, start: float | None = None) -> Tensor:
    """Times from `t_min` to T, half of them spaced evenly and half in ratio, so that both ends are looked at.
    float64."""
    low = max(sde.t_min if start is None else start, 1e-6 * sde.T)
    even = torch.linspace(low, sde.T, n - n // 2, dtype=torch.float64)
    ratio = torch.logspace(math.log10(low), math.log10(sde.T), n // 2 + 2, dtype=torch.float64)[1:-1]
    return torch.sort(torch.cat([even, ratio])).values.clamp(low, sde.T)


def _diagonal_shape(sde: SDE) -> tuple[int, ...]:
    """Shape of the coefficients of one time: () for a scalar SDE, (C, ...) for a diagonal one."""
    if not isinstance(sde, LinearSDE):
        return ()
    return tuple(sde.marginal_coeffs(torch.full((2,), sde.T, dtype=torch.float64))[1].shape[1:])


def _shapes(sde: SDE) -> list[tuple[int, ...]]:
    """Sample shapes to try; for a diagonal SDE those its coefficients fit, with axes of length one widened."""
    diagonal = _diagonal_shape(sde)
    if not diagonal:
        return list(SHAPES)
    widened = tuple(4 if n == 1 and k else n for k, n in enumerate(diagonal))
    return [widened, (*widened, 3)]


def _coeffs(sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """m, std, f, g at `t`, all broadcast to `(B, P)`, P the number of diagonal entries."""
    values = [*sde.marginal_coeffs(t), sde._coeff("drift_coeff", t), sde._coeff("diffusion_coeff", t)]
    rank = max(v.ndim for v in values)
    values = torch.broadcast_tensors(*(v.reshape(v.shape + (1,) * (rank - v.ndim)) for v in values))
    return tuple(v.reshape(len(t), -1) for v in values)


def _worst(error: Tensor, t: Tensor) -> tuple[float, float]:
    """The largest entry of `error` (B, P), and its time."""
    row = error.max(1).values
    index = int(torch.where(torch.isnan(row), torch.inf, row).argmax())
    return float(row[index]), float(t[index])


def check_times(sde: SDE) -> None:
    """`0 <= t_min < T`, both finite."""
    T, t_min = float(sde.T), float(sde.t_min)
    _require(
        math.isfinite(T) and math.isfinite(t_min) and 0 <= t_min < T, f"needs 0 <= t_min < T; has t_min={t_min}, T={T}."
    )


def check_shapes(sde: SDE) -> None:
    """Drift, diffusion, prior and marginals have the shapes they must have for samples of one to four axes, and stay
    finite."""
    for shape in _shapes(sde):
        for batch in (1, 3):
            x = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            t = torch.linspace(0.5, 0.9, batch, dtype=torch.float64) * sde.T
            where = f"for x of shape {tuple(x.shape)}"
            drift = sde.drift(x, t)
            _require(
                drift.shape == x.shape, f"drift(x, t) has shape {tuple(drift.shape)} {where}; it must be that of x."
            )
            try:
                moved = sde.apply_diffusion(x, t, torch.ones_like(x))
            except RuntimeError:
                moved = None
            _require(
                moved is not None and moved.shape == x.shape,
                f"diffusion(x, t) does not broadcast against x {where}. Return expand_like(g, x), not g of shape (B,).",
            )
            _require(
                torch.isfinite(drift).all() and torch.isfinite(moved).all(),
                f"drift or diffusion is not finite {where}.",
            )
            prior = sde.prior_sampling(tuple(x.shape), dtype=torch.float64)
            _require(prior.shape == x.shape, f"prior_sampling({tuple(x.shape)}) returns shape {tuple(prior.shape)}.")
            logp = sde.prior_logp(x)
            _require(
                logp.shape == (batch,),
                f"prior_logp(x) has shape {tuple(logp.shape)} {where}; it must be (B,): sum over all other axes.",
            )
            if isinstance(sde, LinearSDE):
                mean, std = sde.marginal_prob(x, t)
                _require(mean.shape == x.shape, f"marginal_prob mean has shape {tuple(mean.shape)} {where}.")
                _require(
                    std.ndim == x.ndim and torch.broadcast_shapes(std.shape, x.shape) == x.shape,
                    f"marginal_prob std has shape {tuple(std.shape)}, which does not broadcast {where}.",
                )


def check_meta_device(sde: SDE) -> None:
    """On the `meta` device everything stays there: no constant is pinned to the CPU, as would crash on an
    accelerator."""
    shape = (3, *_shapes(sde)[0])
    x, t = torch.empty(shape, device="meta"), torch.empty(3, device="meta")
    functions = {
        "drift": lambda: sde.drift(x, t),
        "diffusion": lambda: sde.apply_diffusion(x, t, x),
        "prior_logp": lambda: sde.prior_logp(x),
    }
    if isinstance(sde, LinearSDE):
        functions["marginal_prob"] = lambda: sde.marginal_prob(x, t)[1]
        functions["transition"] = lambda: sde.transition(t, t)[1]
    for name, function in functions.items():
        try:
            device = function().device.type
        except (RuntimeError, NotImplementedError) as error:
            raise CheckFailed(
                f"{name} fails on another device than the CPU ({str(error).splitlines()[0]}). Make constants from t or "
                "x: torch.as_tensor(c, device=t.device, dtype=t.dtype); and use no .item(), float(t) or numpy."
            ) from None
        _require(
            device == "meta",
            f"{name} returned a tensor on {device} for data on another device: it builds its result from a constant.",
        )


def check_prior_density(sde: SDE) -> None:
    """`prior_logp` is the density of what `prior_sampling` draws: E[x · ∇log p(x)] = −1 in each dimension (Stein's
    identity, true of every smooth density); for a linear SDE it is that of N(0, prior_std²), normalisation included."""
    shape = _shapes(sde)[0]
    n = 4000
    noise = _Noise(1)
    x = sde.prior_sampling((n, *shape), noise=noise, dtype=torch.float64).detach().requires_grad_(True)
    score = torch.autograd.grad(sde.prior_logp(x).sum(), x)[0].detach()
    x = x.detach()
    stein = (x * score).reshape(n, -1)
    error = (stein.mean(0) + 1).abs() / (stein.std(0) / n**0.5 + 1e-12)
    _require(
        error.max() < SIGMAS,
        f"prior_sampling and prior_logp disagree: E[x · ∇log p(x)] = {float(stein.mean()):.4g} instead of −1. Its "
        f"draws have standard deviation {float(x.std()):.4g}; a ratio of {-float(stein.mean()):.3g} between the "
        "variances.",
    )
    if isinstance(sde, LinearSDE):
        std = torch.as_tensor(sde.prior_std, dtype=torch.float64)
        std = std if std.ndim == 0 else expand_like(std, x)
        exact = sum_except_batch(torch.distributions.Normal(torch.zeros_like(x), std.expand_as(x)).log_prob(x))
        gap = sde.prior_logp(x) - exact
        _require(
            gap.abs().max() < 1e-6 * max(1.0, float(exact.abs().max())),
            f"prior_logp is off by {float(gap.mean()):.5g} nats on samples of {x[0].numel()} dimensions "
            f"({float(gap.mean()) / x[0].numel():.4g} per dimension) from N(0, prior_std²): look for a missing log "
            "std, a missing 2π, or a constant that forgets the number of dimensions.",
        )


def check_coefficients(sde: LinearSDE) -> None:
    """f and g are finite and elementwise in t; g is not negative."""
    t = _times(sde)
    _, _, f, g = _coeffs(sde, t)
    _require(
        torch.isfinite(f).all() and torch.isfinite(g).all(),
        "drift_coeff or diffusion_coeff is not finite between t_min and T.",
    )
    gap, at = _worst(-g, t)
    _require(
        gap <= 0, f"diffusion_coeff is negative at t={at:.4g}: wrong sign. g(t) stands for √(g²) and is at least 0."
    )
    for name in ("drift_coeff", "diffusion_coeff"):
        whole = sde._coeff(name, t)
        alone = torch.cat([sde._coeff(name, t[i : i + 1]) for i in range(len(t))])
        _require(
            torch.allclose(whole, alone, rtol=1e-9, atol=1e-12),
            f"{name}(t) of one time depends on the other times in the batch.",
        )


def check_marginal_start(sde: LinearSDE) -> None:
    """At t = 0 the mean coefficient is 1 and the standard deviation is `std_0` (0 unless the class says otherwise)."""
    m, std, _, _ = (
        _coeffs(sde, torch.zeros(2, dtype=torch.float64)) if _finite_at_zero(sde) else (*_at_start(sde), None, None)
    )
    _require(
        (m - 1).abs().max() < 1e-6,
        f"the mean coefficient at t=0 is {float(m[0, 0]):.6g}; it must be 1: the data are there at t=0.",
    )
    _require(
        (std - sde.std_0).abs().max() < 1e-6 * max(1.0, sde.std_0),
        f"std at t=0 is {float(std[0, 0]):.4g}, but std_0 = {sde.std_0:g}. If there is noise at t=0 by design, set "
        "std_0 on the class.",
    )


def _finite_at_zero(sde: LinearSDE) -> bool:
    zero = torch.zeros(2, dtype=torch.float64)
    return all(
        bool(torch.isfinite(c).all()) for c in (sde._coeff("drift_coeff", zero), sde._coeff("diffusion_coeff", zero))
    )


def _at_start(sde: LinearSDE) -> tuple[Tensor, Tensor]:
    return tuple(c.reshape(2, -1) for c in sde.marginal_coeffs(torch.zeros(2, dtype=torch.float64)))


def _slopes(sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor, float]:
    """d m/dt and d std²/dt, `(B, P)`, and the accuracy to expect: by automatic differentiation, or by differences
    where that fails."""

    def curves(t: Tensor) -> tuple[Tensor, Tensor]:
        m, std, _, _ = _coeffs(sde, t)
        return m, std**2

    try:
        _, slopes = torch.func.jvp(curves, (t,), (torch.ones_like(t),))
        if all(bool(torch.isfinite(s).all()) and bool(s.abs().sum() > 0) for s in slopes[1:]):
            return *slopes, 1e-6
    except (RuntimeError, NotImplementedError, TypeError):
        pass  # the user's closed form may leave autograd
    h = 1e-4 * torch.minimum(t, sde.T - t).clamp(min=1e-4 * sde.t_min)
    up, down = curves(t + h), curves(t - h)
    return *((a - b) / (2 * h[:, None]) for a, b in zip(up, down)), 1e-4


def check_marginal_ode(sde: LinearSDE) -> None:
    """The marginals solve `dm/dt = f m` and `d std²/dt = 2 f std² + g²` (Särkkä & Solin 2019, section 6.2)."""
    t = _times(sde)[1:-1]
    m, std, f, g = _coeffs(sde, t)
    dm, dv, tolerance = _slopes(sde, t)
    var = std**2
    # f · m may pass through zero; measure against the natural rate of change
    rate = f.abs() + g**2 / var + 1e-3 / sde.T
    gap, at = _worst((dm - f * m).abs() / (rate * m.abs()), t)
    if not gap < tolerance:
        guess = _nearest(
            {
                "wrong sign of the drift (dm/dt = −f m holds)": (dm, -f * m),
                "a factor 2 (dm/dt = ½ f m holds): the mean decays with ∫f, not with half of it": (dm, 0.5 * f * m),
                "a factor ½ (dm/dt = 2 f m holds), as when f lacks the ½ of −½ β": (dm, 2 * f * m),
            }
        )
        raise CheckFailed(f"dm/dt is not f m: relative error {gap:.2g} at t={at:.4g}.{guess}")
    gap, at = _worst((dv - (2 * f * var + g**2)).abs() / ((2 * f * var).abs() + g**2 + 1e-3 * var / sde.T), t)
    if not gap < tolerance:
        guess = _nearest(
            {
                "a factor 2 in g² (2 g² is what the std implies)": (dv, 2 * f * var + 2 * g**2),
                "a factor ½ in g² (½ g² is what the std implies)": (dv, 2 * f * var + 0.5 * g**2),
                "g where g² is meant (the diffusion coefficient is the root)": (dv, 2 * f * var + g),
                "a variance where a standard deviation is meant, in the marginal": (
                    _derivative_of_root(dv, var),
                    2 * f * std + g**2,
                ),
                "a missing factor 2 in 2 f std²": (dv, f * var + g**2),
                "wrong sign of the drift": (dv, -2 * f * var + g**2),
                "wrong sign of g²": (dv, 2 * f * var - g**2),
            }
        )
        raise CheckFailed(f"d std²/dt is not 2 f std² + g²: relative error {gap:.2g} at t={at:.4g}.{guess}")


def _derivative_of_root(dv: Tensor, var: Tensor) -> Tensor:
    return dv / (2 * var.sqrt())


def _nearest(hypotheses: dict[str, tuple[Tensor, Tensor]]) -> str:
    """The hypothesis under which both sides agree, as a hint; nothing when none does."""
    for hint, (left, right) in hypotheses.items():
        if ((left - right).abs() <= 1e-3 * (left.abs() + right.abs())).all():
            return f" It looks like {hint}."
    return " Compare marginal_coeffs with drift_coeff and diffusion_coeff, or leave marginal_coeffs out: it is derived."


def _panels(a: Tensor, b: Tensor, panels: int = 40, nodes: int = 12) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a composite Gauss rule on [a, b], its panels halving towards both ends: `(B, N)` each."""
    import numpy as np

    half = 0.5 ** torch.arange(panels // 2, 0, -1, dtype=torch.float64)  # ..., 1/4, 1/2
    edges = torch.cat(
        [torch.zeros(1, dtype=torch.float64), half, 1 - half.flip(0)[1:], torch.ones(1, dtype=torch.float64)]
    )
    points, weights = (torch.from_numpy(p) for p in np.polynomial.legendre.leggauss(nodes))
    width = edges[1:] - edges[:-1]
    unit = (edges[:-1, None] + width[:, None] * (points + 1) / 2).reshape(-1)
    weight = (width[:, None] * weights / 2).reshape(-1)
    return a[:, None] + (b - a)[:, None] * unit, (b - a)[:, None] * weight


def _integrated(sde: LinearSDE, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean coefficient and variance gathered from `s` to `t`, `(B, P)`, from f and g by a quadrature of our own."""

    def log_mean(a: Tensor, b: Tensor) -> Tensor:
        nodes, weights = _panels(a, b)
        f = sde._coeff("drift_coeff", nodes.reshape(-1)).reshape(*nodes.shape, -1)
        return (weights[..., None] * f).sum(1)

    nodes, weights = _panels(s, t)
    g = sde._coeff("diffusion_coeff", nodes.reshape(-1)).reshape(*nodes.shape, -1)
    to_end = log_mean(nodes.reshape(-1), t.repeat_interleave(nodes.shape[1])).reshape(*nodes.shape, -1)
    return torch.exp(log_mean(s, t)), (weights[..., None] * (g * torch.exp(to_end)) ** 2).sum(1)


def check_marginals_by_quadrature(sde: LinearSDE) -> None:
    """`marginal_coeffs` and `transition` agree with the integrals of f and g by an independent quadrature."""
    t = _times(sde, 9)
    a, gathered = _integrated(sde, torch.zeros_like(t), t)
    m, std, _, _ = _coeffs(sde, t)
    expected = torch.sqrt(a**2 * sde.std_0**2 + gathered)
    for name, got, want in (("mean coefficient", m, a), ("std", std, expected)):
        gap, at = _worst((got / want - 1).abs().expand(len(t), -1), t)
        ratio = float((got / want).median())
        _require(
            gap < 1e-4,
            f"the {name} of marginal_coeffs differs from the integral of f and g by {gap:.2g} (relative) at "
            f"t={at:.4g}; typical ratio {ratio:.4g}. Close to √2, 2 or ½: a missing factor. If f or g jumps, the "
            "derived marginals lose accuracy: override marginal_coeffs and transition.",
        )
    s = 0.5 * t
    a, gathered = _integrated(sde, s, t)
    got_a, got_std = (c.reshape(len(t), -1) for c in sde.transition(s, t))
    for name, got, want in (("coefficient", got_a, a), ("std", got_std, gathered.sqrt())):
        gap, at = _worst((got / want - 1).abs().expand(len(t), -1), t)
        _require(
            gap < 1e-4,
            f"the {name} of transition(t/2, t) differs from the integral of f and g by {gap:.2g} (relative) at "
            f"t={at:.4g}.",
        )


def check_transition_composes(sde: LinearSDE) -> None:
    """From s to u in one go or by way of t is the same; from t to t nothing happens."""
    u = _times(sde, 11)
    s, t = 0.2 * u, 0.7 * u
    (a1, std1), (a2, std2), (a, std) = (
        tuple(c.reshape(len(u), -1) for c in sde.transition(*pair)) for pair in ((s, t), (t, u), (s, u))
    )
    gap, at = _worst((a1 * a2 / a - 1).abs(), u)
    _require(
        gap < 1e-6,
        f"transition coefficients do not multiply: a(s,t) a(t,u) differs from a(s,u) by {gap:.2g} (relative) for "
        f"u={at:.4g}.",
    )
    gap, at = _worst(((a2 * std1) ** 2 + std2**2).sqrt() / std - 1, u)
    _require(
        abs(gap) < 1e-6,
        f"transition variances do not add up: a(t,u)² var(s,t) + var(t,u) is not var(s,u), {gap:.2g} (relative) for "
        f"u={at:.4g}.",
    )
    a, std = sde.transition(t, t)
    _require(
        (a - 1).abs().max() < 1e-9 and std.abs().max() < 1e-6,
        "transition(t, t) must be (1, 0): in no time nothing happens.",
    )


def check_transition_and_marginal(sde: LinearSDE) -> None:
    """The marginal at s carried to t by the transition is the marginal at t."""
    t = _times(sde, 11)
    s = 0.5 * t
    m_s, std_s, _, _ = _coeffs(sde, s)
    m_t, std_t, _, _ = _coeffs(sde, t)
    a, std = (c.reshape(len(t), -1) for c in sde.transition(s, t))
    gap, at = _worst((a * m_s / m_t - 1).abs(), t)
    _require(
        gap < 1e-6,
        f"transition and marginal_coeffs disagree on the mean: a m(s) differs from m(t) by {gap:.2g} (relative), "
        f"t={at:.4g}.",
    )
    gap, at = _worst((((a * std_s) ** 2 + std**2).sqrt() / std_t - 1).abs(), t)
    _require(
        gap < 1e-6,
        f"transition and marginal_coeffs disagree on the noise: a² std_s² + var differs from std_t² by {gap:.2g} "
        f"(relative std), t={at:.4g}.",
    )


def check_prior(sde: LinearSDE, tolerance: float = 0.02) -> None:
    """The prior is the law at T: its standard deviation is std(T), and hardly anything of the data is left there."""
    m, std, _, _ = _coeffs(sde, torch.full((1,), sde.T, dtype=torch.float64))
    prior = torch.as_tensor(sde.prior_std, dtype=torch.float64).reshape(1, -1)
    ratio = prior / std
    worst = float(ratio.reshape(-1)[(ratio - 1).abs().reshape(-1).argmax()])
    _require(
        abs(worst - 1) < tolerance,
        f"wrong prior: prior_std is {worst:.4g} times std(T) = {float(std.reshape(-1)[0]):.4g}. Leave prior_std out to "
        "have it derived.",
    )
    left = float((m / std).max())
    _require(
        left < 0.3,
        f"at T the data still count: m(T)/std(T) = {left:.3g}. The prior N(0, std²) is then far from the law at T; "
        "make T or the noise larger.",
    )


def check_log_snr(sde: LinearSDE) -> None:
    """`log_snr` is log m²/std², falls with t, and `time_of_log_snr` inverts it."""
    t = _times(sde)
    m, std, _, _ = _coeffs(sde, t)
    lam = sde.log_snr(t).reshape(len(t), -1)
    exact = 2 * torch.log(m / std).reshape(len(t), -1).mean(1)  # the mean over a diagonal
    _require(
        ((lam[:, 0] - exact).abs() < 1e-6).all(),
        "log_snr(t) is not log(m(t)²/std(t)²): a factor 2 means a missing square.",
    )
    rising = lam[1:] >= lam[:-1]
    where = f" (at t={float(t[1:][rising.any(1)][0]):.4g})" if rising.any() else ""
    _require(not rising.any(), f"log_snr does not fall with t{where}: noise must grow against the signal.")
    if lam.shape[1] == 1:
        back = sde.time_of_log_snr(lam[:, 0])
        gap, at = _worst((back / t - 1).abs()[:, None], t)
        _require(gap < 1e-5, f"time_of_log_snr(log_snr(t)) differs from t by {gap:.2g} (relative) at t={at:.4g}.")


def check_float32(sde: LinearSDE) -> None:
    """float32 in, float32 out, and near the float64 value from t_min on: 1 − exp(·) in place of −expm1(·) loses 0.6 %
    there."""
    t = _times(sde).float()
    # the rounding of t itself is not the formulas' fault: compare at the same times
    wide, narrow = _named_coeffs(sde, t.double()), _named_coeffs(sde, t)
    for name, value in narrow.items():
        _require(
            value.dtype == torch.float32,
            f"{name} turns float32 times into {value.dtype}: make constants of the dtype of t.",
        )
        _require(torch.isfinite(value).all(), f"{name} is not finite in float32.")
        reference = wide[name]
        size = reference.abs().clamp(min=1e-6 * float(reference.abs().max()) + 1e-30)
        gap, at = _worst(((value.double() - reference).abs() / size).reshape(len(t), -1), t)
        _require(
            gap < 2e-3 * (1 if name != "mean coefficient" else 0.1),
            f"{name} in float32 is off by {gap:.2g} (relative) at t={at:.3g}: cancellation; write -torch.expm1(y) for "
            "1 - torch.exp(y).",
        )


def _named_coeffs(sde: LinearSDE, t: Tensor) -> dict[str, Tensor]:
    m, std = sde.marginal_coeffs(t)
    x = torch.ones((len(t), *(_diagonal_shape(sde) or (1,))), dtype=t.dtype)
    return {"mean coefficient": m, "std": std, "drift": sde.drift(x, t), "diffusion": sde.diffusion(x, t)}


class _Noise:
    """A NoiseFn of its own, so that checks repeat and the global generator is left alone."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=self.generator)

    def uniform(self, x: Tensor) -> Tensor:
        return torch.rand(x.shape, dtype=x.dtype, generator=self.generator)


def _simulation_times(sde: LinearSDE, steps: int) -> list[float]:
    """Times from t_min to T on which the coefficients act evenly: steps of equal ∫ (2|f| + g²/(var + var_0)) dt."""
    fine = torch.linspace(sde.t_min, sde.T, 4001, dtype=torch.float64)
    _, std, f, g = _coeffs(sde, fine)
    rate = (2 * f.abs() + g**2 / (std**2 + 0.25) + 1e-3 / sde.T).max(1).values
    total = torch.cat(
        [torch.zeros(1, dtype=torch.float64), torch.cumsum(0.5 * (rate[1:] + rate[:-1]) * (fine[1:] - fine[:-1]), 0)]
    )
    wanted = torch.linspace(0, float(total[-1]), steps + 1, dtype=torch.float64)
    index = torch.searchsorted(total, wanted).clamp(1, len(fine) - 1)
    share = (wanted - total[index - 1]) / (total[index] - total[index - 1])
    times = fine[index - 1] + share.clamp(0, 1) * (fine[index] - fine[index - 1])
    return [sde.t_min, *times[1:-1].tolist(), sde.T]


def check_forward_simulation(sde: LinearSDE, samples: int = 4000, steps: int = 300) -> None:
    """Paths simulated with `drift` and `diffusion` have the marginal law, in the middle and at the end.

    Stochastic Heun (weak order 2 for additive noise); the mean and the variance of `samples` paths are compared at 5
    standard errors plus 2 % for the steps: a correct SDE fails with probability 2e-6 for a fresh seed.
    """
    shape = _diagonal_shape(sde) or (1,)
    noise = _Noise(2)
    x0 = torch.full((samples, *shape), 1.5, dtype=torch.float64)
    times = _simulation_times(sde, steps)
    start = torch.full((samples,), times[0], dtype=torch.float64)
    mean, std = sde.marginal_prob(x0, start)
    x = mean + std * noise(x0)
    for k, (s, t) in enumerate(zip(times, times[1:]), 1):
        s, t = (torch.full((samples,), v, dtype=torch.float64) for v in (s, t))
        h = expand_like(t - s, x)
        z = torch.sqrt(h) * noise(x)
        drift, kick = sde.drift(x, s), sde.apply_diffusion(x, s, z)
        ahead = x + drift * h + kick
        x = x + 0.5 * (drift + sde.drift(ahead, t)) * h + 0.5 * (kick + sde.apply_diffusion(ahead, t, z))
        if k in (steps // 2, steps):
            mean, std = (c.expand_as(x)[0] for c in sde.marginal_prob(x0, t))
            mean_gap = (x.mean(0) - mean).abs() - 0.02 * (std + mean.abs())
            _require(
                (mean_gap < SIGMAS * std / samples**0.5).all(),
                f"simulated with drift and diffusion, the mean at t={float(t[0]):.3g} is {float(x.mean()):.4g} instead "
                f"of {float(mean.mean()):.4g} (from marginal_prob): wrong sign of the drift, or a missing factor.",
            )
            ratio = x.std(0) / std
            _require(
                ((ratio - 1).abs() < SIGMAS / (2 * samples) ** 0.5 + 0.02).all(),
                f"simulated with drift and diffusion, the standard deviation at t={float(t[0]):.3g} is "
                f"{float(ratio.mean()):.4g} times that of marginal_prob. 1.41 or 0.71: a missing factor 2 in g².",
            )


def check_chain(sde: LinearSDE) -> None:
    """The discrete chain of n steps tends to the process as n grows: no constant in it belongs to one number of
    steps."""
    shape = _diagonal_shape(sde) or (1,)
    m, std, _, _ = _coeffs(sde, torch.full((1,), sde.T, dtype=torch.float64))
    gaps = []
    for n in (500, 2000):
        chain = sde.chain(n)
        mean = torch.ones((1, *shape), dtype=torch.float64)
        variance = torch.full_like(mean, float(sde.std_0) ** 2)
        for i in range(n):
            # half an index more keeps the truncation in chain.index from rounding down
            t = torch.full((1,), min((i + 0.5) / max(n - 1, 1), 1.0) * sde.T, dtype=torch.float64)
            shift, scale = chain.forward(mean, t)
            variance = ((mean + shift) / mean) ** 2 * variance + scale.double() ** 2
            mean = mean + shift
        mean_gap = (mean.reshape(-1).log() - m.reshape(-1).log()).abs() / (1 + m.reshape(-1).log().abs())
        gaps.append(float(torch.maximum(mean_gap, (variance.sqrt().reshape(-1) / std.reshape(-1) - 1).abs()).max()))
    _require(
        gaps[1] < 0.1 and gaps[1] <= max(0.5 * gaps[0], 0.01),
        f"the law at T of chain(n) differs from that of the process by {gaps[0]:.2g} for n=500 and {gaps[1]:.2g} for "
        "n=2000 (relative): it does not tend to it. Look for a constant that belongs to one number of steps.",
    )


def check_reverse_ode(sde: LinearSDE, tolerance: float = 0.03) -> None:
    """The probability-flow ODE with the exact score of a Gaussian takes the prior to the data law.

    Deterministic: the map is affine, so a few points show its mean and scale. The tolerance, in units of the data's
        standard deviation,
    leaves room for a prior that is only nearly the law at T.
    """
    shape = _diagonal_shape(sde) or (1,)
    law = Gaussian(torch.full(shape, 0.4, dtype=torch.float64), 0.25)
    prior_std = torch.as_tensor(sde.prior_std, dtype=torch.float64)
    units = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    scale = prior_std if prior_std.ndim == 0 else prior_std.reshape(1, *shape)
    x = expand_like(units, torch.empty(3, *shape)) * scale * torch.ones(1, *shape, dtype=torch.float64)
    drift = sde.reverse(law.score_fn(sde), eta=0.0).drift
    x = solve_ode(drift, x, sde.T, sde.t_min, solver="dopri5(rtol=1e-6, atol=1e-8, max_nfe=12_000)").x
    m, std = sde.marginal_prob(
        torch.ones(3, *shape, dtype=torch.float64), torch.full((3,), sde.t_min, dtype=torch.float64)
    )
    want_mean, want_std = (m * 0.4)[1], (m**2 * 0.25 + std**2).sqrt()[1]
    got_mean, got_std = x[1], 0.5 * (x[2] - x[0])
    ratio = got_std / want_std
    _require(
        ((ratio - 1).abs() < tolerance).all(),
        f"the probability-flow ODE with an exact score returns {float(ratio.reshape(-1)[0]):.4g} times the data's "
        "standard deviation: wrong prior_std, wrong g², or a missing ½ in ½ g².",
    )
    # what of the mean is left at T is absent from the prior, and comes out missing
    end = sde.marginal_prob(
        torch.full((1, *shape), 0.4, dtype=torch.float64), torch.full((1,), sde.T, dtype=torch.float64)
    )
    left = (end[0].abs() / end[1]).max()
    gap = ((got_mean - want_mean).abs() / want_std).max()
    _require(
        gap < tolerance + left,
        f"the probability-flow ODE with an exact score misses the mean by {float(gap):.3g} of the standard deviation: "
        "wrong drift, or wrong prior.",
    )


def check_reverse_sde(sde: LinearSDE) -> None:
    """`reverse(score, eta)` has the drift f − ½ (1 + η²) g² s and the noise η g (Song et al. 2021, eq. 6; Karras et
    al. 2022, eq. 6)."""
    x = torch.randn(5, *_shapes(sde)[0], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    t = torch.linspace(0.3, 0.9, 5, dtype=torch.float64) * sde.T
    score = torch.sin
    g = expand_like(sde._coeff("diffusion_coeff", t), x)
    f = expand_like(sde._coeff("drift_coeff", t), x)
    for eta in (0.0, 0.5, 1.0):
        reverse = sde.reverse(lambda x, t: score(x), eta=eta)
        want = f * x - 0.5 * (1 + eta**2) * g**2 * score(x)
        gap = float(((reverse.drift(x, t) - want).abs() / (want.abs() + g**2)).max())
        _require(
            gap < 1e-6,
            f"the drift of reverse(score, eta={eta:g}) is not f x − ½ (1 + η²) g² s: relative error {gap:.2g}. Look at "
            "drift and diffusion.",
        )
        kick = reverse.apply_diffusion(x, t, torch.ones_like(x))
        _require(torch.allclose(kick, eta * g.expand_as(x)), f"the noise of reverse(score, eta={eta:g}) is not η g.")
