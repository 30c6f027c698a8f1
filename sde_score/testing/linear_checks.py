"""Conformance checks of linear SDEs: coefficients, marginals, transitions, log-SNR, precision, chain, reversal."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde_score.sdes.linear import LinearSDE
from sde_score.solvers import solve_ode
from sde_score.tensors import expand_like
from sde_score.testing.checks import CheckFailed, _require
from sde_score.testing.probes import diagonal_shape, shapes_of, states_of, time_slopes, times_like, worst
from sde_score.testing.problems import Gaussian
from sde_score.testing.quadrature import Panels, integrated


def _times(sde: LinearSDE, n: int = 25, start: float | None = None) -> Tensor:
    """Times from `t_min` to T, half of them spaced evenly and half in ratio, so that both ends are looked at.
    float64."""
    low = max(sde.t_min if start is None else start, 1e-6 * sde.T)
    even = torch.linspace(low, sde.T, n - n // 2, dtype=torch.float64)
    ratio = torch.logspace(math.log10(low), math.log10(sde.T), n // 2 + 2, dtype=torch.float64)[1:-1]
    return torch.sort(torch.cat([even, ratio])).values.clamp(low, sde.T)


def _coeffs(sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """m, std, f, g at `t`, all broadcast to `(B, P)`, P the number of diagonal entries."""
    values = [*sde.marginal_coeffs(t), sde._coeff("drift_coeff", t), sde._coeff("diffusion_coeff", t)]
    rank = max(v.ndim for v in values)
    values = torch.broadcast_tensors(*(v.reshape(v.shape + (1,) * (rank - v.ndim)) for v in values))
    return tuple(v.reshape(len(t), -1) for v in values)


def check_coefficients(sde: LinearSDE) -> None:
    """f and g are finite and elementwise in t; g is not negative."""
    t = _times(sde)
    _, _, f, g = _coeffs(sde, t)
    _require(
        torch.isfinite(f).all() and torch.isfinite(g).all(),
        "drift_coeff or diffusion_coeff is not finite between t_min and T.",
    )
    gap, at = worst(-g, t)
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


def _slopes(sde: LinearSDE, t: Tensor) -> list[list[Tensor]]:
    """d m/dt and d std²/dt, `(B, P)` each, by automatic differentiation and by differences."""

    def curves(t: Tensor) -> tuple[Tensor, Tensor]:
        m, std, _, _ = _coeffs(sde, t)
        return m, std**2

    return time_slopes(curves, t, float(sde.T))


def check_marginal_ode(sde: LinearSDE) -> None:
    """The marginals solve `dm/dt = f m` and `d std²/dt = 2 f std² + g²` (Särkkä & Solin 2019, section 6.2)."""
    t = _odd_times(sde)
    m, std, f, g = _coeffs(sde, t)
    slopes = _slopes(sde, t)
    var = std**2
    # f · m may pass through zero; measure against the natural rate of change
    rate = f.abs() + g**2 / var + 1e-3 / sde.T
    gap, at, (dm, _) = _best(slopes, lambda pair: worst((pair[0] - f * m).abs() / (rate * m.abs()), t))
    if not gap < 1e-5:
        guess = _nearest(
            {
                "wrong sign of the drift (dm/dt = −f m holds)": (dm, -f * m),
                "a factor 2 (dm/dt = ½ f m holds): the mean decays with ∫f, not with half of it": (dm, 0.5 * f * m),
                "a factor ½ (dm/dt = 2 f m holds), as when f lacks the ½ of −½ β": (dm, 2 * f * m),
            }
        )
        raise CheckFailed(f"dm/dt is not f m: relative error {gap:.2g} at t={at:.4g}.{guess}")
    size = (2 * f * var).abs() + g**2 + 1e-3 * var / sde.T
    gap, at, (_, dv) = _best(slopes, lambda pair: worst((pair[1] - (2 * f * var + g**2)).abs() / size, t))
    if not gap < 1e-5:
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


def _odd_times(sde: LinearSDE) -> Tensor:
    """Times inside the interval, off the round numbers where coefficients like to jump."""
    t = _times(sde)
    return t[:-1] + 0.381966 * t.diff()


def _best(slopes: list[list[Tensor]], measure: Callable) -> tuple[float, float, list[Tensor]]:
    """The pair of derivatives that fits best, with the error and its time: both are of the same curves."""
    found = [(*measure(pair), pair) for pair in slopes]
    return min(found, key=lambda entry: entry[0] if entry[0] == entry[0] else float("inf"))


def _derivative_of_root(dv: Tensor, var: Tensor) -> Tensor:
    return dv / (2 * var.sqrt())


def _nearest(hypotheses: dict[str, tuple[Tensor, Tensor]]) -> str:
    """The hypothesis under which both sides agree, as a hint; nothing when none does."""
    for hint, (left, right) in hypotheses.items():
        if ((left - right).abs() <= 1e-3 * (left.abs() + right.abs())).all():
            return f" It looks like {hint}."
    return " Compare marginal_coeffs with drift_coeff and diffusion_coeff, or leave marginal_coeffs out: it is derived."


FRACTIONS = (0.05, 0.25, 0.5, 0.9)
"""Where a transition begins, in parts of its end."""


def check_marginals_by_quadrature(sde: LinearSDE) -> None:
    """`marginal_coeffs` and `transition` agree with the integrals of f and g by an independent quadrature that halves
    its panels where the coefficients are not smooth."""
    t = _times(sde, 9)
    panels = Panels(sde, torch.cat([t, *(part * t for part in FRACTIONS)]))
    a, gathered = integrated(panels, torch.zeros_like(t), t)
    m, std, _, _ = _coeffs(sde, t)
    expected = torch.sqrt(a**2 * sde.std_0**2 + gathered)
    for name, got, want in (("mean coefficient", m, a), ("std", std, expected)):
        gap, at = worst((got / want - 1).abs().expand(len(t), -1), t)
        ratio = float((got / want).median())
        _require(
            gap < 1e-4,
            f"the {name} of marginal_coeffs differs from the integral of f and g by {gap:.2g} (relative) at "
            f"t={at:.4g}; typical ratio {ratio:.4g}. Close to √2, 2 or ½: a missing factor. If f or g jumps, the "
            "derived marginals lose accuracy: override marginal_coeffs and transition.",
        )
    for part in FRACTIONS:
        s = part * t
        a, gathered = integrated(panels, s, t)
        got_a, got_std = (c.reshape(len(t), -1) for c in sde.transition(s, t))
        for name, got, want in (("coefficient", got_a, a), ("std", got_std, gathered.sqrt())):
            gap, at = worst((got / want - 1).abs().expand(len(t), -1), t)
            _require(
                gap < 1e-4,
                f"the {name} of transition({part:g} t, t) differs from the integral of f and g by {gap:.2g} (relative) "
                f"at t={at:.4g}.",
            )


def check_transition_composes(sde: LinearSDE) -> None:
    """From s to u in one go or by way of t is the same; from t to t nothing happens."""
    u = _times(sde, 11)
    s, t = 0.2 * u, 0.7 * u
    (a1, std1), (a2, std2), (a, std) = (
        tuple(c.reshape(len(u), -1) for c in sde.transition(*pair)) for pair in ((s, t), (t, u), (s, u))
    )
    gap, at = worst((a1 * a2 / a - 1).abs(), u)
    _require(
        gap < 1e-6,
        f"transition coefficients do not multiply: a(s,t) a(t,u) differs from a(s,u) by {gap:.2g} (relative) for "
        f"u={at:.4g}.",
    )
    gap, at = worst(((a2 * std1) ** 2 + std2**2).sqrt() / std - 1, u)
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
    gap, at = worst((a * m_s / m_t - 1).abs(), t)
    _require(
        gap < 1e-6,
        f"transition and marginal_coeffs disagree on the mean: a m(s) differs from m(t) by {gap:.2g} (relative), "
        f"t={at:.4g}.",
    )
    gap, at = worst((((a * std_s) ** 2 + std**2).sqrt() / std_t - 1).abs(), t)
    _require(
        gap < 1e-6,
        f"transition and marginal_coeffs disagree on the noise: a² std_s² + var differs from std_t² by {gap:.2g} "
        f"(relative std), t={at:.4g}.",
    )


def check_log_snr(sde: LinearSDE) -> None:
    """`log_snr` is log m²/std², falls with t at the rate `log_snr_rate`, and `time_of_log_snr` inverts it."""
    t = _times(sde)
    m, std, _, _ = _coeffs(sde, t)
    lam = sde.log_snr(t).reshape(len(t), -1)
    exact = 2 * torch.log(m / std).reshape(len(t), -1).mean(1)  # the mean over a diagonal
    _require(
        ((lam[:, 0] - exact).abs() < 1e-6).all(),
        "log_snr(t) is not log(m(t)²/std(t)²), the mean over a diagonal: a factor 2 means a missing square.",
    )
    rising = lam[1:] >= lam[:-1]
    where = f" (at t={float(t[1:][rising.any(1)][0]):.4g})" if rising.any() else ""
    _require(not rising.any(), f"log_snr does not fall with t{where}: noise must grow against the signal.")
    if lam.shape[1] == 1:
        back = sde.time_of_log_snr(lam[:, 0])
        gap, at = worst((back / t - 1).abs()[:, None], t)
        _require(gap < 1e-5, f"time_of_log_snr(log_snr(t)) differs from t by {gap:.2g} (relative) at t={at:.4g}.")
    t = _odd_times(sde)
    rate = sde.log_snr_rate(t)
    slopes = time_slopes(lambda t: (sde.log_snr(t),), t, float(sde.T))
    gap, at, _ = _best(slopes, lambda one: worst(((one[0] + rate).abs() / (one[0].abs() + 1e-3 / sde.T))[:, None], t))
    _require(
        gap < 1e-5,
        f"log_snr_rate(t) is not −d(log_snr)/dt = g²/std²: relative error {gap:.2g} at t={at:.4g}. Importance sampling "
        "of times is made of it.",
    )


def check_methods(sde: LinearSDE) -> None:
    """`drift` and `diffusion`, which samplers call, are f(t) x and g(t)."""
    x = states_of(sde, shapes_of(sde)[0], 5)
    t = times_like(sde, 5)
    f, g = (expand_like(sde._coeff(name, t), x) for name in ("drift_coeff", "diffusion_coeff"))
    for name, got, want in (
        ("drift(x, t) is not drift_coeff(t) x", sde.drift(x, t), f * x),
        ("diffusion(x, t) is not diffusion_coeff(t), the root of g²", sde.diffusion(x, t).expand_as(x), g.expand_as(x)),
    ):
        gap = float((got - want).abs().max() / (want.abs().max() + 1e-30))
        hint = " It looks like a wrong sign." if torch.allclose(got, -want) and gap > 1e-6 else ""
        _require(gap < 1e-6, f"{name}: relative error {gap:.2g}.{hint}")


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
        gap, at = worst(((value.double() - reference).abs() / size).reshape(len(t), -1), t)
        _require(
            gap < 2e-3 * (1 if name != "mean coefficient" else 0.1),
            f"{name} in float32 is off by {gap:.2g} (relative) at t={at:.3g}: cancellation; write -torch.expm1(y) for "
            "1 - torch.exp(y).",
        )


def _named_coeffs(sde: LinearSDE, t: Tensor) -> dict[str, Tensor]:
    m, std = sde.marginal_coeffs(t)
    x = torch.ones((len(t), *(diagonal_shape(sde) or (1,))), dtype=t.dtype)
    return {"mean coefficient": m, "std": std, "drift": sde.drift(x, t), "diffusion": sde.diffusion(x, t)}


def check_chain(sde: LinearSDE, part: float = 0.7) -> None:
    """The discrete chain of n steps tends to the process as n grows: no constant in it belongs to one number of steps.
    Looked at before T, since a drift may be infinite there."""
    shape = diagonal_shape(sde) or (1,)
    gaps = []
    for n in (500, 2000):  # not 1000, the number that is likeliest to be built in
        chain, states = sde.chain(n), round(part * n)
        m, std, _, _ = _coeffs(sde, torch.full((1,), sde.T * states / n, dtype=torch.float64))
        mean = torch.ones((1, *shape), dtype=torch.float64)
        variance = torch.full_like(mean, float(sde.std_0) ** 2)
        for i in range(states):
            # half an index more keeps the truncation in chain.index from rounding down
            t = torch.full((1,), min((i + 0.5) / max(n - 1, 1), 1.0) * sde.T, dtype=torch.float64)
            shift, scale = chain.forward(mean, t)
            variance = ((mean + shift) / mean) ** 2 * variance + scale.double() ** 2
            mean = mean + shift
        mean_gap = (mean.reshape(-1).log() - m.reshape(-1).log()).abs() / (1 + m.reshape(-1).log().abs())
        gaps.append(float(torch.maximum(mean_gap, (variance.sqrt().reshape(-1) / std.reshape(-1) - 1).abs()).max()))
    _require(
        gaps[1] < 0.1 and gaps[1] <= max(0.5 * gaps[0], 0.01),
        f"the law at {part:g} T of chain(n) differs from that of the process by {gaps[0]:.2g} for n=500 and "
        f"{gaps[1]:.2g} for n=2000 (relative): it does not tend to it. Look for a constant that belongs to one number "
        "of steps.",
    )


def check_reverse_ode(sde: LinearSDE, tolerance: float = 0.03) -> None:
    """The probability-flow ODE with the exact score of a Gaussian takes the prior to the data law.

    Deterministic: the map is affine, so a few points show its mean and scale. The tolerance, in units of the data's
        standard deviation,
    leaves room for a prior that is only nearly the law at T.
    """
    shape = diagonal_shape(sde) or (1,)
    law = Gaussian(torch.full(shape, 0.4, dtype=torch.float64), 0.25)
    prior_std = torch.as_tensor(sde.prior_std, dtype=torch.float64)
    units = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    scale = prior_std if prior_std.ndim == 0 else prior_std.reshape(1, *shape)
    x = expand_like(units, torch.empty(3, *shape)) * scale * torch.ones(1, *shape, dtype=torch.float64)
    drift = sde.reverse(law.score_fn(sde), eta=0.0).drift
    x = solve_ode(drift, x, sde.T, sde.t_min, solver="dopri5(rtol=1e-4, atol=1e-6, max_nfe=3000)").x
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


LINEAR_CHECKS = (
    check_coefficients, check_methods, check_marginal_start, check_marginal_ode, check_marginals_by_quadrature,
    check_transition_composes, check_transition_and_marginal, check_log_snr, check_float32, check_chain,
    check_reverse_ode,
)  # fmt: skip
