"""Conformance checks of ODE solvers, in the manner of `sde_score.testing.checks`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sde_score.solvers import SOLVERS, solve_ode
from sde_score.testing.checks import Check, CheckFailed, CheckResult, _name, _require, _run
from sde_score.testing.problems import ODE_PROBLEMS


def check_solver(
    make: Callable[[float], object] | str, *, order: int | None = None, skip: dict[str, str] | None = None
) -> list[CheckResult]:
    """Check an ODE solver: exact problems in both directions, order of convergence, independence, ends of the
    interval, failures.

    Args:
        make: a component spec or instance; or, to have the order measured, a function from the number of steps to a
            fixed-step solver.
        order: the order claimed, for a fixed-step solver.
        skip: names of checks to leave out, with the reason.
    """
    if isinstance(make, type) or not (isinstance(make, str) or hasattr(make, "integrate")):
        checks: list[Check] = [partial(check_solver_order, make, order)]
        solver = make(64)
    else:
        checks, solver = [], SOLVERS.build(make)
    others = (check_solver_interval, check_solver_independence, check_solver_stops_at_nan)
    checks += [
        partial(check_solver_problems, solver, 0.3 if order == 1 else 0.02),
        *(partial(c, solver) for c in others),
    ]
    return _run(iter(checks), _name(solver), skip)


_START = torch.tensor([[0.3, 0.7], [0.9, 0.2], [0.5, 0.4]], dtype=torch.float64)


def check_solver_order(make: Callable[[int], object], order: int | None) -> None:
    """The error falls with the claimed power of the step: the slope over a factor 4 in steps, on each problem that is
    not solved exactly."""
    for problem in ODE_PROBLEMS:
        errors = []
        for steps in (16, 64):
            x = solve_ode(problem.func, _START, problem.t0, problem.t1, solver=make(steps)).x
            errors.append(float((x - problem.exact(_START, problem.t0, problem.t1)).abs().max()))
        if errors[1] < 1e-12 or order is None:
            continue
        slope = math.log(errors[0] / errors[1], 4)
        _require(
            slope > order - 0.35,
            f"on {problem.name!r} the error falls with power {slope:.2f} of the step; order {order} is claimed. Errors "
            f"{errors}.",
        )


def check_solver_problems(solver, tolerance: float = 0.02) -> None:
    """Exact problems, forwards and backwards, come out right."""
    for problem in ODE_PROBLEMS:
        for t0, t1 in ((problem.t0, problem.t1), (problem.t1, problem.t0)):
            got = solve_ode(problem.func, _START, t0, t1, solver=solver)
            gap = float((got.x - problem.exact(_START, t0, t1)).abs().max())
            _require(gap < tolerance, f"{problem.name!r} from {t0} to {t1}: error {gap:.2g}.")
            _require((got.t == t1).all(), f"{problem.name!r} from {t0} to {t1}: the result says t={got.t.tolist()}.")


def check_solver_interval(solver) -> None:
    """The right-hand side is never asked about times outside the interval (as with a VP process, undefined there),
    and calls are counted."""
    for t0, t1 in ((1e-5, 1.0), (1.0, 1e-5)):
        seen: list[Tensor] = []

        def func(x: Tensor, t: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(t)
            return -x * t[:, None]

        result = solve_ode(func, _START.float(), t0, t1, solver=solver)
        times = torch.stack(seen)
        low, high = (torch.tensor(v, dtype=torch.float32) for v in sorted((t0, t1)))
        _require(
            (times >= low).all() and (times <= high).all(),
            f"from {t0} to {t1} the right-hand side was asked about t={float(times.min()):.6g} to "
            f"{float(times.max()):.6g}.",
        )
        _require(result.calls == len(seen), f"the result counts {result.calls} calls; {len(seen)} were made.")
        _require(
            (result.nfe <= result.calls).all() and (result.nfe > 0).all(),
            f"nfe={result.nfe.tolist()} does not fit {result.calls} calls.",
        )
    still = solve_ode(lambda x, t: x, _START, 0.5, 0.5, solver=solver)
    _require(
        (still.x == _START).all() and still.calls == 0, "from t to t nothing must happen and nothing be evaluated."
    )


def check_solver_independence(solver) -> None:
    """`batch_coupled` tells the truth: a sample's solution does not depend on its companions unless the solver says
    so."""
    rates = torch.tensor([1.0, 30.0, 0.1], dtype=torch.float64)

    def func(x: Tensor, t: Tensor) -> Tensor:
        return -rates[: len(x), None] * x

    together, alone = (
        solve_ode(func, _START, 0.0, 1.0, solver=solver),
        solve_ode(func, _START[:1], 0.0, 1.0, solver=solver),
    )
    gap = float((together.x[:1] - alone.x).abs().max())
    _require(
        gap < 1e-12 or solver.batch_coupled,
        f"a sample's solution changes by {gap:.2g} with its companions, yet batch_coupled is False. Declare it.",
    )


def check_solver_stops_at_nan(solver) -> None:
    """A right-hand side that turns NaN ends in a FloatingPointError, not in a result or in an endless loop."""
    try:
        solve_ode(lambda x, t: torch.where(t[:, None] > 0.5, torch.nan, -x), _START, 0.0, 1.0, solver=solver)
    except FloatingPointError:
        return
    if getattr(solver, "on_failure", "raise") == "raise":
        raise CheckFailed("a NaN in the right-hand side passed in silence.")
