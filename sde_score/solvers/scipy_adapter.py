"""SciPy's ODE solvers, behind the same interface."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from sde_score.solvers.base import (
    SOLVERS,
    CountedFunc,
    ODECallback,
    ODEProgress,
    ODEResult,
    Solver,
    Status,
    check_limit,
    check_tolerances,
)
from sde_score.tensors import rows

CREEPING = 100  # accepted steps in a row that do not move the time
METHODS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")


@SOLVERS.register("scipy")
class SciPySolver(Solver):
    """SciPy's `solve_ivp` methods on the host, in float64.

    The right-hand side gets the state in its own precision, on its own device, always with the whole batch. Gradients
    do not pass. The implicit methods (`Radau`, `BDF`) form a dense Jacobian by finite differences: for small problems
    only.

    Args:
        method: RK45 (Dormand-Prince, published), RK23, DOP853, Radau, BDF or LSODA.
        rtol, atol: relative and absolute tolerance.
        per_sample: each sample is a system with its own steps, and its result does not depend on its companions.
            False: one system and one error norm for the whole batch, as published.
        max_nfe: limit of evaluations of each system.
        on_failure: see `Solver`.
    """

    def __init__(
        self,
        method: str = "RK45",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        *,
        per_sample: bool = True,
        max_nfe: int = 10_000,
        on_failure: str = "raise",
    ) -> None:
        super().__init__(on_failure=on_failure)
        if method not in METHODS:
            raise ValueError(f"scipy(method=...) is one of {', '.join(METHODS)}; got {method!r}.")
        if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
            raise ValueError(f"scipy: rtol and atol must be at least 0 and not both 0; got rtol={rtol}, atol={atol}.")
        self.method, self.rtol, self.atol = method, float(rtol), float(atol)
        self.max_nfe = check_limit("scipy", max_nfe)
        self.per_sample = per_sample
        self.batch_coupled = not per_sample

    def integrate(self, func: CountedFunc, x: Tensor, t0: float, t1: float, callback: ODECallback | None) -> ODEResult:
        try:
            import scipy.integrate  # noqa: F401
        except ImportError as error:
            raise ImportError("The solver 'scipy' needs SciPy: pip install scipy. 'dopri5' does without.") from error
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                "Gradients do not pass through the solver 'scipy'. Use 'dopri5', or call it under torch.no_grad()."
            )
        check_tolerances(f"scipy(method={self.method!r})", self.rtol, self.atol, x)
        states = rows(x.detach()).to("cpu", torch.float64).numpy()
        systems = [state[None] for state in states] if self.per_sample else [states]
        smallest = 1e-3 * torch.finfo(x.dtype).eps * abs(t1 - t0)
        paths = [_Path(self, system, t0, t1, smallest) for system in systems]
        low, high = min(t0, t1), max(t0, t1)
        with _Meeting(paths) as meeting:
            while (asked := meeting.requests()) is not None:
                times = np.clip(np.concatenate([np.full(len(p.y), t) for p, (t, _) in zip(paths, asked)]), low, high)
                states = np.concatenate([y.reshape(p.y.shape) for p, (_, y) in zip(paths, asked)])
                states, times = torch.from_numpy(states).reshape(x.shape).to(x), torch.from_numpy(times).to(x)
                values = rows(func(states, times).detach()).to("cpu", torch.float64).numpy()
                meeting.answer(np.split(values, np.cumsum([len(p.y) for p in paths])[:-1]))
                if callback is not None:
                    reached = torch.from_numpy(np.concatenate([np.full(len(p.y), p.t) for p in paths])).to(x)
                    callback(ODEProgress(max(p.steps for p in paths), reached, self._states(paths, x), func.calls))

        def each(name: str) -> Tensor:
            return torch.tensor([getattr(p, name) for p in paths for _ in p.y], device=x.device)

        time = each("t").to(x.dtype)
        return ODEResult(
            self._states(paths, x),
            time,
            each("status"),
            each("nfe"),
            each("steps"),
            torch.zeros_like(each("steps")),
            func.calls,
        )

    @staticmethod
    def _states(paths: list[_Path], x: Tensor) -> Tensor:
        return torch.from_numpy(np.concatenate([p.y for p in paths])).reshape(x.shape).to(x)


class _Left(Exception):
    """Ends a path's thread when the meeting is over."""


class _Stopped(Exception):
    """Leaves SciPy's loop for a reason of ours; SciPy would never come back from a NaN, and knows no limit."""

    def __init__(self, status: Status) -> None:
        self.status = status


class _Path:
    """One system that SciPy solves, in a thread of its own: SciPy calls its right-hand side, the network wants
    batches."""

    def __init__(self, solver: SciPySolver, y: np.ndarray, t0: float, t1: float, smallest: float) -> None:
        self.solver, self.y, self.t, self.t1, self.smallest = solver, y, t0, t1, smallest
        self.steps = self.nfe = self.creeping = 0
        self.status = int(Status.DONE)
        self.meeting: _Meeting | None = None
        self.request: tuple[float, np.ndarray] = (t0, y)
        self.value: np.ndarray | None = None

    def right_hand_side(self, t: float, y: np.ndarray) -> np.ndarray:
        if self.nfe == self.solver.max_nfe:
            raise _Stopped(Status.TOO_MANY_EVALUATIONS)
        value = self.meeting.ask(self, float(t), y)
        self.nfe += 1
        if not np.isfinite(value).all():
            raise _Stopped(Status.NOT_FINITE)
        return value.reshape(-1)

    def run(self) -> None:
        from scipy import integrate

        settings = {"rtol": self.solver.rtol, "atol": self.solver.atol}
        try:
            scheme = getattr(integrate, self.solver.method)(
                self.right_hand_side, self.t, self.y.reshape(-1), self.t1, **settings
            )
            while scheme.status == "running":
                scheme.step()
                if scheme.status == "failed":
                    raise _Stopped(Status.STEP_TOO_SMALL)
                self.creeping = self.creeping + 1 if abs(scheme.t - self.t) < self.smallest else 0
                self.t, self.y, self.steps = float(scheme.t), scheme.y.reshape(self.y.shape), self.steps + 1
                if self.creeping >= CREEPING and scheme.status == "running":
                    raise _Stopped(Status.STEP_TOO_SMALL)
        except _Stopped as stopped:
            self.status = int(stopped.status)


class _Meeting:
    """Where the paths' requests become one batch. A path that is done keeps its place: its last state is evaluated
    along, unused. Leaving the `with` block ends all threads, whatever happened in it."""

    def __init__(self, paths: list[_Path]) -> None:
        self.paths, self.over = paths, False
        self.condition = threading.Condition()
        self.waiting: set[int] = set()
        self.live = len(paths)
        self.error: BaseException | None = None
        for path in paths:
            path.meeting = self
        self.threads = [threading.Thread(target=self._run, args=(path,), daemon=True) for path in paths]

    def __enter__(self) -> _Meeting:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.condition:
            self.over = True
            self.condition.notify_all()
        for thread in self.threads:
            thread.join()

    def _run(self, path: _Path) -> None:
        try:
            path.run()
        except _Left:
            pass
        except BaseException as error:  # shown by the main thread
            self.error = error
        with self.condition:
            self.live -= 1
            self.condition.notify_all()

    def ask(self, path: _Path, t: float, y: np.ndarray) -> np.ndarray:
        """A path's request; comes back with its value."""
        with self.condition:
            path.request, path.value = (t, y), None
            self.waiting.add(id(path))
            self.condition.notify_all()
            self.condition.wait_for(lambda: path.value is not None or self.over)
            if path.value is None:
                raise _Left
            return path.value

    def requests(self) -> list[tuple[float, np.ndarray]] | None:
        """All requests, once every live path has made one; None when no path is left."""
        with self.condition:
            self.condition.wait_for(lambda: len(self.waiting) == self.live)
            if self.error is not None:
                raise self.error
            return [p.request for p in self.paths] if self.live else None

    def answer(self, values: list[np.ndarray]) -> None:
        """Hand out the values and let the paths go on."""
        with self.condition:
            for path, value in zip(self.paths, values):
                if id(path) in self.waiting:
                    path.value = value
            self.waiting.clear()
            self.condition.notify_all()
