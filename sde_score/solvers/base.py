"""The interface of ODE solvers, their result, and `solve_ode`.

Throughout, `x` has shape `(B, *)` and `t` shape `(B,)`; each sample of the batch is an ODE of its own,
`dx/dt = func(x, t)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from sde_score.registry import Registry
from sde_score.tensors import norm_except_batch, require_finite

SOLVERS: Registry[Solver] = Registry("solver", group="sde_score.solvers")

ODEFunc = Callable[[Tensor, Tensor], Tensor]
"""`(x: (B, *), t: (B,)) -> dx/dt`, of the shape of `x`."""


class Status(IntEnum):
    """How the solution of one sample ended."""

    DONE = 0
    NOT_FINITE = 1
    STEP_TOO_SMALL = 2
    TOO_MANY_EVALUATIONS = 3


@dataclass
class ODEResult:
    """The solution and what it cost.

    Attributes:
        x: state at the end, `(B, *)`; of a sample that failed, its last good state.
        t: time reached, `(B,)`.
        status: a `Status` for each sample, `(B,)`.
        nfe: evaluations that counted for each sample, `(B,)`: those made while it was being solved.
        steps: accepted steps of each sample, `(B,)`.
        rejected: rejected steps of each sample, `(B,)`.
        calls: calls of `func`, each with the whole batch.
    """

    x: Tensor
    t: Tensor
    status: Tensor
    nfe: Tensor
    steps: Tensor
    rejected: Tensor
    calls: int

    @property
    def success(self) -> Tensor:
        """Which samples reached the end, `(B,)`."""
        return self.status == Status.DONE


@dataclass
class ODEProgress:
    """What a solver tells its callback after each step: their number, the time of each sample `(B,)`, the states, the
    calls so far."""

    step: int
    t: Tensor
    x: Tensor
    calls: int


ODECallback = Callable[[ODEProgress], None]
Projection = Callable[[Tensor, float, int], Tensor]


class ODEError(RuntimeError):
    """A solver could not reach the end. `result` holds the last good states and the status of each sample."""

    def __init__(self, message: str, result: ODEResult) -> None:
        super().__init__(message)
        self.result = result


class ODENotFinite(ODEError, FloatingPointError):
    """The right-hand side of an ODE gave a NaN or an infinity."""


class Solver(ABC):
    """An ODE solver: settings in the constructor, data in `solve_ode`.

    Args:
        on_failure: `"raise"` an `ODEError`, or `"return"` the result with its `status`: failed samples keep their
            last good state.
    """

    batch_coupled: bool = False
    """Does a sample's solution depend on its companions, as when all share one step size?"""
    common_steps: bool = False
    """Do all samples take the same steps, so that their states may be changed between two? Then `integrate` takes
    `project`."""

    advice: str = "Try a looser tolerance, a larger t_min, or a fixed-step solver such as 'heun(steps=100)'."

    def __init__(self, *, on_failure: str = "raise") -> None:
        if on_failure not in ("raise", "return"):
            raise ValueError(f"{type(self).__name__}: on_failure is 'raise' or 'return'; got {on_failure!r}.")
        self.on_failure = on_failure

    @abstractmethod
    def integrate(self, func: CountedFunc, x: Tensor, t0: float, t1: float, callback: ODECallback | None) -> ODEResult:
        """Solve from `t0` to `t1`, which differ and may come in either order."""


def check_tolerances(solver: str, rtol: float, atol: float, x: Tensor) -> None:
    """Refuse tolerances that the number format of `x` cannot resolve: no step would ever be good enough."""
    eps = torch.finfo(x.dtype).eps
    if rtol < 4 * eps and atol < 4 * eps * float(x.detach().abs().max()):
        raise ValueError(
            f"{solver}: rtol={rtol:g}, atol={atol:g} ask for more than {x.dtype} resolves ({eps:.1e}). Use float64, or "
            "larger tolerances."
        )


def check_limit(solver: str, max_nfe: int) -> int:
    """`max_nfe`, if it is a positive number."""
    if max_nfe < 1:
        raise ValueError(f"{solver}(max_nfe=...), the limit of evaluations, must be at least 1; got {max_nfe}.")
    return int(max_nfe)


class CountedFunc:
    """The right-hand side with a counter; its first answer is checked at the door."""

    def __init__(self, func: ODEFunc) -> None:
        self.func = func
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        value = self.func(x, t.to(x.dtype))
        if self.calls == 0:
            if not isinstance(value, Tensor) or value.shape != x.shape:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"The right-hand side of the ODE returned {got} for x of shape {tuple(x.shape)}; they must be "
                    "equal."
                )
            if value.dtype != x.dtype:
                raise TypeError(
                    f"The right-hand side of the ODE returned {value.dtype} for x of {x.dtype}; convert its answer."
                )
        self.calls += 1
        return value


_REASONS = {
    Status.NOT_FINITE: "the right-hand side gave a NaN or an infinity just beyond",
    Status.STEP_TOO_SMALL: "the step fell below what the number format resolves (too stiff, or not smooth) at",
    Status.TOO_MANY_EVALUATIONS: "the limit of evaluations (max_nfe) was reached at",
}


def _failure(solver: Solver, result: ODEResult) -> ODEError:
    failed = (~result.success).nonzero()[:, 0]
    first = int(failed[0])
    status = Status(int(result.status[first]))
    size = float(norm_except_batch(result.x[first : first + 1].detach()))
    message = (
        f"{type(solver).__name__}: {len(failed)} of {len(result.x)} samples did not reach the end. In sample {first}, "
        f"{_REASONS[status]} t = {float(result.t[first]):.6g}, where |x| = {size:.4g}, after "
        f"{int(result.steps[first])} steps. {solver.advice}"
    )
    return (ODENotFinite if status is Status.NOT_FINITE else ODEError)(message, result)


def solve_ode(
    func: ODEFunc,
    x: Tensor,
    t0: float,
    t1: float,
    *,
    solver: Solver | str = "dopri5",
    callback: ODECallback | None = None,
    project: Projection | None = None,
) -> ODEResult:
    """Solve `dx/dt = func(x, t)` from `x` at `t0` to `t1`, forwards or backwards in time.

    Times given to `func` are in the precision of `x` and never lie outside the interval (as rounded to that precision).

    Args:
        func: right-hand side, `(x: (B, *), t: (B,)) -> (B, *)`, always called with the whole batch.
        x: state at `t0`, `(B, *)`, float32 or float64.
        t0, t1: start and end.
        solver: a `Solver` or a component spec, such as `"dopri5(rtol=1e-5, atol=1e-5)"` or `"heun(steps=50)"`.
        callback: called after each step with an `ODEProgress`.
        project: `(x, t, step) -> x`, applied to the states after each step; for solvers with fixed steps.

    Returns:
        An `ODEResult`.

    Raises:
        ODEError: when a sample does not reach the end, unless the solver has `on_failure="return"`.
        ValueError, TypeError, FloatingPointError: for arguments that make no sense.

    >>> solve_ode(lambda x, t: -x, torch.ones(1, 2, dtype=torch.float64), 0.0, 1.0, solver="rk4(steps=20)").x
    tensor([[0.3679, 0.3679]], dtype=torch.float64)
    """
    solver = SOLVERS.build(solver)
    if not isinstance(solver, Solver):
        raise TypeError(f'solver must be a Solver or a spec such as "dopri5(rtol=1e-5)"; got {type(solver).__name__}.')
    if x.ndim < 1:
        raise ValueError("x needs a batch axis: shape (B, *).")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"ODEs are solved in float32 or float64; got {x.dtype}. Write x.float().")
    if not (math.isfinite(t0) and math.isfinite(t1)):
        raise ValueError(f"The ends of the interval must be finite; got t0={t0}, t1={t1}.")
    if x.device.type != "meta":
        require_finite(x.detach(), "The start of the ODE")
    t0, t1 = float(t0), float(t1)
    if t0 == t1 or len(x) == 0:
        zeros = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return ODEResult(x, torch.full((len(x),), t1, dtype=x.dtype, device=x.device), zeros, zeros, zeros, zeros, 0)
    if project is not None and not solver.common_steps:
        raise ValueError(
            f"{type(solver).__name__} gives each sample steps of its own, so nothing can be applied between them; "
            "choose a solver with fixed steps, such as 'heun(steps=50)'."
        )
    extra = {} if project is None else {"project": project}
    result = solver.integrate(CountedFunc(func), x, t0, t1, callback, **extra)
    if solver.on_failure == "raise" and not result.success.all():
        raise _failure(solver, result)
    return result
