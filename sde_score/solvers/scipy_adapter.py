"""SciPy's ODE solvers, behind the same interface."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sde_score.solvers.base import SOLVERS, CountedFunc, ODECallback, ODEProgress, ODEResult, Solver, Status

METHODS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")


@SOLVERS.register("scipy")
class SciPySolver(Solver):
    """SciPy's `solve_ivp` methods on the host: one step and one error norm for the whole batch, as published.

    The state is the flattened batch in float64 on the host; the right-hand side gets it in its own precision, on its own device.
    Samples share their steps, so each result depends a little on its companions: `dopri5` controls them one by one, and
    without the way to the host and back. Gradients do not pass. The implicit methods (`Radau`, `BDF`) form a dense Jacobian by finite
    differences: for small problems only.

    Args:
        method: RK45 (Dormand-Prince, published), RK23, DOP853, Radau, BDF or LSODA.
        rtol, atol: relative and absolute tolerance.
        max_steps: limit of accepted steps.
        on_failure: see `Solver`.
    """

    def __init__(
        self, method: str = "RK45", rtol: float = 1e-5, atol: float = 1e-5, *, max_steps: int = 100_000, on_failure: str = "raise"
    ) -> None:
        super().__init__(on_failure=on_failure)
        if method not in METHODS:
            raise ValueError(f"scipy(method=...) is one of {', '.join(METHODS)}; got {method!r}.")
        self.method, self.rtol, self.atol, self.max_steps = method, float(rtol), float(atol), int(max_steps)

    def integrate(self, func: CountedFunc, x: Tensor, t0: float, t1: float, callback: ODECallback | None) -> ODEResult:
        try:
            from scipy import integrate
        except ImportError as error:
            raise ImportError("The solver 'scipy' needs SciPy: pip install scipy. 'dopri5' does without.") from error
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("Gradients do not pass through the solver 'scipy'. Use 'dopri5', or call it under torch.no_grad().")
        low, high = min(t0, t1), max(t0, t1)

        def tensor(y: np.ndarray) -> Tensor:
            return torch.from_numpy(y).reshape(x.shape).to(device=x.device, dtype=x.dtype)

        def right_hand_side(t: float, y: np.ndarray) -> np.ndarray:
            time = torch.full((len(x),), min(max(float(t), low), high), dtype=x.dtype, device=x.device)
            value = func(tensor(y), time).detach().reshape(-1).to("cpu", torch.float64).numpy()
            if not np.isfinite(value).all():  # SciPy would never come back from a NaN
                raise _NotFinite
            return value

        start = x.detach().reshape(-1).to("cpu", torch.float64).numpy()
        t, y, steps, status = t0, start, 0, Status.DONE
        try:
            scheme = getattr(integrate, self.method)(right_hand_side, t0, start, t1, rtol=self.rtol, atol=self.atol)
            while scheme.status == "running":
                if steps == self.max_steps:
                    status = Status.TOO_MANY_STEPS
                    break
                scheme.step()
                if scheme.status == "failed":
                    status = Status.STEP_TOO_SMALL
                    break
                t, y, steps = scheme.t, scheme.y, steps + 1
                if callback is not None:
                    callback(ODEProgress(steps, torch.full((len(x),), t, device=x.device), tensor(y), func.calls))
        except _NotFinite:
            status = Status.NOT_FINITE

        def each(value: int) -> Tensor:
            return torch.full((len(x),), value, dtype=torch.long, device=x.device)

        time = torch.full((len(x),), t, device=x.device)
        return ODEResult(tensor(y), time, each(int(status)), each(func.calls), each(steps), each(0), func.calls)


class _NotFinite(Exception):
    """Leaves SciPy's loop when the right-hand side is not finite."""
