"""Conformance checks of ODE solvers, in the manner of `sde_score.testing.checks`."""

from __future__ import annotations

import inspect
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
    """Check an ODE solver: exact problems in both directions, order of convergence or tolerances, precision,
    independence, gradient, callback, ends of the interval, failures.

    Args:
        make: a component spec or instance; or, to have the order measured, a function from the number of steps to a
            fixed-step solver.
        order: the order claimed, for a fixed-step solver.
        skip: names of checks to leave out, with the reason.
    """
    checks = solver_checks(make, order=order)
    return _run(iter(checks), _name(checks[0].keywords["solver"]), skip)


def solver_checks(make: Callable[[float], object] | str, *, order: int | None = None) -> list[Check]:
    """The checks of a solver, each callable without arguments."""
    by_steps = isinstance(make, type) or not (isinstance(make, str) or hasattr(make, "integrate"))
    solver = make(64) if by_steps else SOLVERS.build(make)
    checks: list[Check] = [partial(check_solver_arguments, solver=solver)]
    if by_steps:
        checks.append(partial(check_solver_order, make, order))
    if _with_tolerances(solver) is not None:
        checks.append(partial(check_solver_tolerances, solver=solver))
    rough = order == 1 or (order is None and _with_tolerances(solver) is None)
    checks.append(partial(check_solver_problems, solver=solver, tolerance=0.3 if rough else 0.02))
    others = (
        check_solver_precision, check_solver_interval, check_solver_independence, check_solver_gradient,
        check_solver_callback, check_solver_stops_at_nan,
    )  # fmt: skip
    return [*checks, *(partial(c, solver=solver) for c in others)]


_START = torch.tensor([[0.3, 0.7], [0.9, 0.2], [0.5, 0.4]], dtype=torch.float64)


def check_solver_arguments(solver) -> None:
    """The start is the caller's."""
    x = _START.clone()
    solve_ode(lambda x, t: -x, x, 0.0, 1.0, solver=solver)
    _require(torch.equal(x, _START), "the solver changes the start x in place: the caller goes on with it.")


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
            f"{errors} for 16 and 64 steps.",
        )


def _with_tolerances(solver) -> Callable[[float], object] | None:
    """A function from a tolerance to a solver of the same class, if its constructor takes `rtol` and `atol`."""
    try:
        parameters = inspect.signature(type(solver)).parameters
    except (TypeError, ValueError):
        return None
    if not {"rtol", "atol"} <= set(parameters):
        return None
    kept = {
        name: getattr(solver, name)
        for name, p in parameters.items()
        if name not in ("rtol", "atol") and hasattr(solver, name) and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    return lambda rtol, atol: type(solver)(rtol=rtol, atol=atol, **kept)


def check_solver_tolerances(solver) -> None:
    """`rtol` and `atol` are heeded, each alone: tightening one by 10³ where the other is out of play makes the error
    at least 20 times smaller, and small itself."""
    make = _with_tolerances(solver)
    for name, settings, scale in (
        ("rtol", [(1e-2, 1e-12), (1e-5, 1e-12)], 1e3),
        ("atol", [(1e-12, 1e-2), (1e-12, 1e-5)], 1.0),
    ):

        def func(x: Tensor, t: Tensor) -> Tensor:
            return x * torch.cos(4 * t)[:, None]

        errors = []
        for rtol, atol in settings:
            x = solve_ode(func, scale * _START, 0.0, 1.5, solver=make(rtol, atol)).x
            errors.append(float((x / scale - _START * math.exp(math.sin(6.0) / 4)).abs().max()))
        _require(
            errors[1] < 1e-3 and errors[1] < 0.05 * errors[0] + 1e-9,
            f"{name} is not heeded: with {name}=1e-2 the error is {errors[0]:.2g}, with {name}=1e-5 {errors[1]:.2g} "
            "(the other tolerance being out of play).",
        )


def check_solver_problems(solver, tolerance: float = 0.02) -> None:
    """Exact problems, forwards and backwards, come out right."""
    for problem in ODE_PROBLEMS:
        for t0, t1 in ((problem.t0, problem.t1), (problem.t1, problem.t0)):
            got = solve_ode(problem.func, _START, t0, t1, solver=solver)
            gap = float((got.x - problem.exact(_START, t0, t1)).abs().max())
            _require(gap < tolerance, f"{problem.name!r} from {t0} to {t1}: error {gap:.2g}.")
            _require((got.t == t1).all(), f"{problem.name!r} from {t0} to {t1}: the result says t={got.t.tolist()}.")


def check_solver_precision(solver) -> None:
    """The state keeps its dtype, and float64 its precision: a start that float32 cannot tell from 1 stays apart."""
    for dtype in (torch.float32, torch.float64):
        x = solve_ode(lambda x, t: -x, _START.to(dtype), 0.0, 1.0, solver=solver).x
        _require(x.dtype == dtype, f"the solution of a {dtype} problem is {x.dtype}.")
    near = torch.tensor([[1.0], [1.0 + 1e-10]], dtype=torch.float64)
    x = solve_ode(lambda x, t: 0 * x, near, 0.0, 1.0, solver=solver).x
    _require(
        float((x - near).abs().max()) < 1e-13,
        "a float64 problem loses precision: the state passes through float32 inside the solver.",
    )


def check_solver_interval(solver) -> None:
    """The right-hand side is never asked about times outside the interval (as with a VP process, undefined there), it
    is asked about both halves, and calls are counted."""
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
            (result.nfe <= result.calls).all() and (result.nfe > 0).all() and int(result.nfe.max()) == result.calls,
            f"nfe={result.nfe.tolist()} does not fit {result.calls} calls: the slowest sample needs all of them.",
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


def check_solver_gradient(solver) -> None:
    """The gradient of the solution in its start is right, or refused with a `ValueError`; never lost in silence."""
    x = _START.clone().requires_grad_(True)
    try:
        end = solve_ode(lambda x, t: -x * x, x, 0.0, 1.0, solver=solver).x
    except ValueError:
        return
    got = torch.zeros_like(x)
    if end.requires_grad:
        (got,) = torch.autograd.grad(end.sum(), x)
    gap = float((got - 1 / (1 + _START) ** 2).abs().max())
    _require(
        gap < 0.1,
        f"the gradient of the solution in its start is wrong by {gap:.2g}: autograd does not pass through the solver. "
        "Keep the graph, or raise a ValueError when x.requires_grad.",
    )


def check_solver_callback(solver) -> None:
    """The callback hears of the steps, whose number and time go forwards."""
    heard = []
    result = solve_ode(lambda x, t: -x, _START, 0.0, 1.0, solver=solver, callback=heard.append)
    _require(len(heard) > 0, "the callback is never called: progress and trajectories would see nothing.")
    forwards = all(q.step >= p.step and bool((q.t >= p.t).all()) for p, q in zip(heard, heard[1:]))
    _require(
        forwards and bool((heard[0].t >= 0).all()) and bool((heard[-1].t <= 1).all()),
        f"the callback hears of steps {[p.step for p in heard][:5]} ... at times {float(heard[0].t.min()):.3g} to "
        f"{float(heard[-1].t.max()):.3g} of a run from 0 to 1; both must go forwards.",
    )
    if bool((heard[-1].t == 1.0).all()):
        _require(torch.allclose(heard[-1].x, result.x), "at the end the callback sees another state than the solution.")


def check_solver_stops_at_nan(solver) -> None:
    """A right-hand side that turns NaN ends in a FloatingPointError, not in a result or in an endless loop."""
    try:
        solve_ode(lambda x, t: torch.where(t[:, None] > 0.5, torch.nan, -x), _START, 0.0, 1.0, solver=solver)
    except FloatingPointError:
        return
    if getattr(solver, "on_failure", "raise") == "raise":
        raise CheckFailed("a NaN in the right-hand side passed in silence.")
