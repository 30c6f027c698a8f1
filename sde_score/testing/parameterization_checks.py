"""Conformance checks of parameterisations, in the manner of `sde_score.testing.checks`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sde_score.sdes.base import SDE
from sde_score.tensors import expand_like
from sde_score.testing.checks import Check, CheckResult, _name, _require, _run
from sde_score.testing.probes import require_alone, require_device, require_dtype, require_untouched, times_like, worst
from sde_score.testing.step_checks import ExactScore, sample_shape

Target = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`(x0, eps, m, std)` -> what the network is to predict."""

TARGETS: dict[str, Target] = {
    "eps": lambda x0, eps, m, std: eps,
    "x0": lambda x0, eps, m, std: x0,
    "v": lambda x0, eps, m, std: (m * eps - std * x0) / torch.sqrt(m**2 + std**2),
    "score": lambda x0, eps, m, std: -eps / std,
}


def check_parameterization(
    parameterization, sde: SDE | None = None, *, target: str | Target | None = None, skip: dict[str, str] | None = None
) -> list[CheckResult]:
    """Check a parameterisation: shapes, devices, precision, independence within the batch, conditions, what the network
    is told of the noise level, the score as −ε̂/std, and that a perfect network gives the exact ε̂.

    Args:
        parameterization: an instance, or its class with the `sde` to make it for.
        sde: the SDE; that of the instance if it is left out.
        target: what the network is to predict: `"eps"`, `"x0"`, `"v"`, `"score"`, or a function of `(x0, eps, m, std)`.
            The class may say so itself in an attribute `target`; without either, exactness is not checked.
        skip: names of checks to leave out, with the reason.
    """
    checks = parameterization_checks(parameterization, sde, target=target)
    return _run(iter(checks), _name(checks[0].args[0]), skip)


def parameterization_checks(
    parameterization, sde: SDE | None = None, *, target: str | Target | None = None
) -> list[Check]:
    """The checks of a parameterisation, each callable without arguments."""
    subject = parameterization(sde) if isinstance(parameterization, type) else parameterization
    target = getattr(subject, "target", None) if target is None else target
    checks: list[Check] = [
        partial(check, subject)
        for check in (
            check_parameterization_shapes, check_parameterization_arguments, check_parameterization_device,
            check_parameterization_dtype, check_parameterization_independence, check_parameterization_conditions,
            check_noise_level, check_parameterization_score,
        )
    ]  # fmt: skip
    if target is not None:
        checks.append(partial(check_perfect_network, subject, TARGETS[target] if isinstance(target, str) else target))
    return checks


def network(x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
    """Any smooth function of what a network is given."""
    return torch.sin(x) + expand_like(torch.tanh(c_noise.to(x.dtype)), x)


def _state(subject, n: int = 4) -> tuple[Tensor, Tensor]:
    sde = subject.sde
    x = torch.randn(n, *sample_shape(sde), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, times_like(sde, n)


def check_parameterization_shapes(subject) -> None:
    """`c_noise(t)` is `(B,)`; ε̂ and score are finite and like x."""
    x, t = _state(subject)
    level = subject.c_noise(t)
    _require(level.shape == t.shape, f"c_noise(t) has shape {tuple(level.shape)}; it must be (B,), as t.")
    for name, function in (("eps", subject.eps), ("score", subject.score)):
        value = function(network, x, t)
        _require(value.shape == x.shape, f"{name} has shape {tuple(value.shape)} for x of shape {tuple(x.shape)}.")
        _require(torch.isfinite(value).all(), f"{name} is not finite.")


def _functions(subject) -> dict[str, Callable]:
    return {
        "c_noise": lambda x, t: subject.c_noise(t),
        "eps": lambda x, t: subject.eps(network, x, t),
        "score": lambda x, t: subject.score(network, x, t),
    }


def check_parameterization_arguments(subject) -> None:
    """x and t are the caller's."""
    for name, function in _functions(subject).items():
        require_untouched(name, function, *_state(subject))


def check_parameterization_device(subject) -> None:
    """No constant is pinned to the CPU."""
    for name, function in _functions(subject).items():
        require_device(name, function, (3, *sample_shape(subject.sde)), (3,))


def check_parameterization_dtype(subject) -> None:
    """Answers have the dtype of the arguments; a noise level may be a whole number."""
    for name, function in _functions(subject).items():
        if name == "c_noise" and not subject.c_noise(_state(subject)[1]).is_floating_point():
            continue
        require_dtype(name, function, *_state(subject))


def check_parameterization_independence(subject) -> None:
    """A sample's answer does not depend on its companions."""
    for name, function in _functions(subject).items():
        require_alone(name, function, *_state(subject))


def check_parameterization_conditions(subject) -> None:
    """The network is asked, its answer counts, and what is given as `**cond` reaches it."""
    x, t = _state(subject)
    seen: set[str] = set()

    def listening(x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        seen.update(cond)
        return network(x, c_noise)

    for name, function in (("eps", subject.eps), ("score", subject.score)):
        seen.clear()
        value = function(listening, x, t, y=torch.zeros(len(x)))
        _require("y" in seen, f"{name} drops its **cond: y=... does not reach the network.")
        other = function(lambda x, c_noise, **cond: network(x, c_noise) + 1, x, t)
        _require(
            bool((value != other).all()), f"{name} does not change with the output of the network: it is ignored."
        )


def check_noise_level(subject) -> None:
    """`c_noise` is finite from t_min to T and moves one way, so that no two noise levels look the same."""
    sde = subject.sde
    low, T = max(float(sde.t_min), 1e-6 * float(sde.T)), float(sde.T)
    u = torch.linspace(0, 1, 40, dtype=torch.float64)
    t = torch.unique(torch.cat([low + (T - low) * u, low * (T / low) ** u]).clamp(low, T))
    level = subject.c_noise(t)
    bad = ~torch.isfinite(level.double())
    _require(not bad.any(), f"c_noise(t) is not finite at t={float(t[bad][0]) if bad.any() else 0:.4g}.")
    steps = level.double().diff()
    one_way = (steps >= 0).all() or (steps <= 0).all()
    moves = bool((steps != 0).all()) if level.is_floating_point() else bool((steps != 0).any())
    _require(
        bool(one_way) and moves,
        "c_noise(t) is not monotone: two noise levels look the same to the network, which cannot be right at both.",
    )


def check_parameterization_score(subject) -> None:
    """score = −ε̂/std, with the std of the SDE at t."""
    x, t = _state(subject, 8)
    eps, score = subject.eps(network, x, t), subject.score(network, x, t)
    want = -eps / subject.sde.marginal_prob(x, t)[1]
    gap, at = worst(((score - want).abs() / (want.abs() + 1e-3 * want.abs().max())).reshape(len(t), -1), t)
    _require(
        gap < 1e-5,
        f"the score is not −ε̂/std(t): relative error {gap:.2g} at t={at:.4g}. Objectives train one and samplers use "
        "the other.",
    )


def check_perfect_network(subject, target: Target) -> None:
    """A network that answers exactly what it is to predict gives the exact ε̂ of Gaussian data, at every noise level."""
    sde, exact = subject.sde, ExactScore(subject.sde)
    low = max(10 * float(sde.t_min), 1e-3 * float(sde.T))
    t = torch.cat([torch.tensor([low], dtype=torch.float64), times_like(sde, 7, 0.05, 0.98)])
    z = torch.randn(len(t), *sample_shape(sde), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = exact.draw(torch.zeros_like(z), t, lambda _: z)
    m, std = (expand_like(c, x) for c in sde.marginal_coeffs(t))
    eps = -std * exact(x, t)
    answer = target((x - std * eps) / m, eps, m, std)
    got = subject.eps(lambda x, c_noise, **cond: answer, x, t)
    gap, at = worst((got - eps).abs().reshape(len(t), -1), t)
    _require(
        gap < 1e-5,
        f"a perfect network does not give the exact noise: ε̂ is off by {gap:.3g} at t={at:.4g}. The formula of eps "
        "does not invert the target that the network is to predict.",
    )
