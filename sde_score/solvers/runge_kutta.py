"""Explicit Runge-Kutta methods on the device of the data. A method is its tableau.

Fixed steps are the same for all samples. Adaptive steps are controlled for each sample on its own: every sample has
its time, its step and its error, and one that has arrived is frozen while the rest go on, so that no result depends
on the company in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from sde_score.solvers.base import (
    SOLVERS,
    CountedFunc,
    ODECallback,
    ODEProgress,
    ODEResult,
    Projection,
    Solver,
    Status,
    check_limit,
    check_tolerances,
)
from sde_score.tensors import expand_like, rows


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau: `k_i = f(x + h Σ_j a_ij k_j, t + c_i h)`, `x_next = x + h Σ_i b_i k_i`, error `h Σ_i e_i k_i`.

    Attributes:
        order: order of `x_next`; that of the error estimate is one less.
        c: nodes.
        a: rows of the lower triangle, from the second stage on.
        b: weights.
        e: `b` minus the weights of the embedded method; empty for fixed steps.
    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    e: tuple[float, ...] = ()

    @property
    def fsal(self) -> bool:
        """First same as last: the last stage is evaluated at `x_next`, so the next step need not do it again."""
        return len(self.a) > 0 and self.c[-1] == 1 and self.b == (*self.a[-1], 0.0)


EULER = Tableau(order=1, c=(0.0,), a=(), b=(1.0,))
MIDPOINT = Tableau(order=2, c=(0.0, 1 / 2), a=((1 / 2,),), b=(0.0, 1.0))
HEUN = Tableau(order=2, c=(0.0, 1.0), a=((1.0,),), b=(1 / 2, 1 / 2))
HEUN12 = Tableau(order=2, c=(0.0, 1.0), a=((1.0,),), b=(1 / 2, 1 / 2), e=(-1 / 2, 1 / 2))
RK4 = Tableau(
    order=4,
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    a=((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)
BOSH3 = Tableau(
    order=3,
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    e=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)
DOPRI5 = Tableau(
    order=5,
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    e=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)


def combine(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """Σ weight · stage, as a chain of scalar multiplications: the same bits for every batch size, unlike a matrix
    product."""
    total = None
    for weight, stage in zip(weights, stages):
        if weight != 0:
            total = stage * weight if total is None else torch.add(total, stage, alpha=weight)
    return total


def _finite(x: Tensor) -> Tensor:
    """Which samples hold finite numbers only, `(B,)`."""
    return torch.isfinite(rows(x.detach())).all(1)


def same_time(x: Tensor, t: float) -> Tensor:
    """One time for every sample, `(B,)`: in float64 where the device has it, as times are kept; the function gets them
    in the precision of `x`.
    """
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    return torch.full((len(x),), t, dtype=dtype, device=x.device)


class FixedStep(Solver):
    """`steps` steps of an explicit Runge-Kutta method. Not a single synchronisation with the device until the end.

    Args:
        steps: number of steps.
        power: the steps are equal in u, where t = t_early + (t_late − t_early) u^power. 1: equal steps; above 1 many
            of them lie near the earlier time, where the noise of diffusion processes changes fastest.
        on_failure: see `Solver`.
    """

    tableau: Tableau
    common_steps = True
    advice = "Try more steps, a larger t_min, or 'dopri5', and look whether the right-hand side is finite there."

    def __init__(self, steps: int = 100, *, power: float = 1.0, on_failure: str = "raise") -> None:
        super().__init__(on_failure=on_failure)
        if steps < 1:
            raise ValueError(f"{type(self).__name__}(steps=...) must be at least 1; got {steps}.")
        if not power >= 1:
            raise ValueError(f"{type(self).__name__}(power=...) must be at least 1 (equal steps); got {power}.")
        self.steps, self.power = int(steps), float(power)

    def time(self, part: float, t0: float, t1: float) -> tuple[float, float]:
        """The time t at the part s of the way in u, 0 to 1, and dt/ds."""
        u = part if t0 < t1 else 1 - part
        early, late = min(t0, t1), max(t0, t1)
        t = {0.0: early, 1.0: late}.get(u, early + (late - early) * u**self.power)
        return t, (t1 - t0) * self.power * u ** (self.power - 1)

    def stepper(self, func: CountedFunc, t0: float, t1: float) -> Callable[[Tensor, int], Tensor]:
        """A function `(x, k) -> x` that takes step k, from `time(k / steps)` to `time((k + 1) / steps)`."""
        tableau = self.tableau
        grid = [self.time(k / self.steps, t0, t1)[0] for k in range(self.steps + 1)]

        def advance(x: Tensor, k: int) -> Tensor:
            start, end = grid[k : k + 2]
            h = end - start
            stages: list[Tensor] = []
            for c, row in zip(tableau.c, ((), *tableau.a)):
                y = torch.add(x, combine(row, stages), alpha=h) if row else x
                stages.append(func(y, same_time(x, end if c == 1 else start + c * h)))
            return torch.add(x, combine(tableau.b, stages), alpha=h)

        return advance

    def integrate(
        self,
        func: CountedFunc,
        x: Tensor,
        t0: float,
        t1: float,
        callback: ODECallback | None,
        project: Projection | None = None,
    ) -> ODEResult:
        advance = self.stepper(func, t0, t1)
        t = same_time(x, t0)
        good = torch.ones(len(x), dtype=torch.bool, device=x.device)
        done = torch.zeros(len(x), dtype=torch.long, device=x.device)
        nfe = torch.zeros_like(done)
        for k in range(self.steps):
            calls = func.calls
            x_next = advance(x, k)
            nfe = nfe + good * (func.calls - calls)
            good = good & _finite(x_next)
            x = torch.where(expand_like(good, x), x_next, x)  # a sample with a NaN stays at its last good state
            reached = self.time((k + 1) / self.steps, t0, t1)[0]
            if project is not None:
                x = project(x, reached, k + 1)
            t = torch.where(good, reached, t)
            done = done + good
            if callback is not None:
                callback(ODEProgress(k + 1, t, x, func.calls))
        status = torch.where(good, int(Status.DONE), int(Status.NOT_FINITE))
        return ODEResult(x, t, status, nfe, done, torch.zeros_like(done), func.calls)


@SOLVERS.register("euler")
class Euler(FixedStep):
    """Euler's method, order 1: one evaluation a step."""

    tableau = EULER


@SOLVERS.register("midpoint")
class Midpoint(FixedStep):
    """The explicit midpoint rule, order 2: two evaluations a step."""

    tableau = MIDPOINT


@SOLVERS.register("heun")
class Heun(FixedStep):
    """Heun's method (trapezoidal rule), order 2: two evaluations a step."""

    tableau = HEUN


@SOLVERS.register("rk4")
class RungeKutta4(FixedStep):
    """The classical Runge-Kutta method, order 4: four evaluations a step."""

    tableau = RK4


class AdaptiveStep(Solver):
    """An embedded Runge-Kutta pair with a proportional-integral step controller (Hairer, Nørsett & Wanner I, II.4,
    IV.2).

    A step is accepted when the root mean square over the sample of `error/(atol + rtol max(|x|, |x_next|))` is at
    most 1. One synchronisation with the device a step. A step that meets a NaN is tried again five times smaller,
    until it can get no smaller.

    Args:
        rtol, atol: relative and absolute tolerance of one step.
        max_nfe: limit of evaluations for any sample.
        control: `"sample"`: each sample has its own step; `"batch"`: one step and one error norm for the whole batch,
            as in the published samplers, where each result depends a little on its companions.
        first_step: size of the first step to try; found from the derivatives when None.
        on_failure: see `Solver`.
    """

    tableau: Tableau
    advice = (
        "Try a looser tolerance (rtol=1e-3, atol=1e-3), a larger t_min, float64, or a fixed-step solver such as "
        "'heun(steps=200)'; and look whether the right-hand side is finite and smooth there."
    )
    SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
    CREEPING = 100  # accepted steps in a row that do not move the time

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        *,
        max_nfe: int = 10_000,
        control: str = "sample",
        first_step: float | None = None,
        on_failure: str = "raise",
    ) -> None:
        super().__init__(on_failure=on_failure)
        name = type(self).__name__
        if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
            raise ValueError(f"{name}: rtol and atol must be at least 0 and not both 0; got rtol={rtol}, atol={atol}.")
        if control not in ("sample", "batch"):
            raise ValueError(f"{name}(control=...) is 'sample' or 'batch'; got {control!r}.")
        if first_step is not None and not first_step > 0:
            raise ValueError(
                f"{name}(first_step=...) must be positive, whatever the direction of time; got {first_step}."
            )
        self.rtol, self.atol, self.max_nfe = float(rtol), float(atol), check_limit(name, max_nfe)
        self.control, self.first_step = control, first_step
        self.batch_coupled = control == "batch"

    def _norm(self, x: Tensor) -> Tensor:
        """Root mean square of each sample, or of the whole batch for all, `(B,)`."""
        if self.control == "batch":
            return (torch.linalg.vector_norm(x) / max(x.numel(), 1) ** 0.5).expand(len(x))
        flat = rows(x)
        return torch.linalg.vector_norm(flat, dim=1) / max(flat.shape[1], 1) ** 0.5

    @torch.no_grad()
    def _first_step(self, func: CountedFunc, x: Tensor, f: Tensor, t: Tensor, t1: float) -> Tensor:
        """A first step from the sizes of `x`, `x'` and `x''` (Hairer, Nørsett & Wanner I, II.4), kept within the
        interval."""
        span = (t1 - t).abs()
        if self.first_step is not None:
            return torch.clamp(torch.full_like(t, self.first_step), max=span)
        scale = self.atol + self.rtol * x.abs()
        size, slope = self._norm(x / scale).to(t), self._norm(f / scale).to(t)
        tiny = (size < 1e-5) | (slope < 1e-5)  # nothing to go by, as where the derivative is zero
        trial = torch.where(tiny, 1e-4 * span, 0.01 * size / torch.where(tiny, torch.ones_like(slope), slope))
        trial = torch.minimum(trial, 0.1 * span)  # a heuristic must not probe the far end, let alone beyond it
        step = torch.sign(t1 - t) * trial
        ahead = func(torch.addcmul(x, expand_like(step.to(x.dtype), x), f), t + step)
        bend = self._norm((ahead - f) / scale).to(t) / trial
        steepest = torch.maximum(slope, bend)
        flat = steepest <= 1e-15
        order_step = (0.01 / torch.where(flat, torch.ones_like(steepest), steepest)) ** (1 / self.tableau.order)
        guess = torch.where(flat, torch.maximum(1e-4 * span, trial), order_step)
        guess = torch.minimum(torch.minimum(100 * trial, guess), span)
        return torch.where(torch.isfinite(guess), guess, 0.01 * trial)

    def integrate(self, func: CountedFunc, x: Tensor, t0: float, t1: float, callback: ODECallback | None) -> ODEResult:
        eps = torch.finfo(x.dtype).eps
        check_tolerances(type(self).__name__, self.rtol, self.atol, x)
        tableau = self.tableau
        beta = 0.2 / tableau.order  # strength of the integral part; 0.04 for order 5 as in DOPRI5
        alpha = 1 / tableau.order - 0.75 * beta
        direction = 1.0 if t1 > t0 else -1.0
        smallest = eps * abs(t1 - t0)

        t = same_time(x, t0)
        f = func(x, t)
        active = _finite(f)
        if self.control == "batch":
            active = active.all().expand(len(x))
        status = torch.where(active, int(Status.DONE), int(Status.NOT_FINITE))
        h = self._first_step(func, x, f, t, t1)
        nfe = torch.full((len(x),), func.calls, dtype=torch.long, device=x.device)
        steps, rejected, creeping = torch.zeros_like(nfe), torch.zeros_like(nfe), torch.zeros_like(nfe)
        cost = len(tableau.a) + (not tableau.fsal)  # evaluations of a step
        previous = torch.full_like(t, 1e-4)  # error of the last accepted step

        for step in count(1):
            spent = active & (nfe + cost > self.max_nfe)
            status, active = torch.where(spent, int(Status.TOO_MANY_EVALUATIONS), status), active & ~spent
            if not active.any():  # the one synchronisation of the step
                break
            remaining = (t1 - t).abs()
            last = 1.01 * h >= remaining  # stretch a little rather than leave a tiny step
            h = torch.where(active, torch.where(last, remaining, h), torch.zeros_like(h))
            end = torch.where(last & active, t1, t + direction * h)
            dt = expand_like((direction * h).to(x.dtype), x)

            calls, stages, x_next = func.calls, [f], x
            for c, row in zip(tableau.c[1:], tableau.a):
                x_next = torch.addcmul(x, dt, combine(row, stages))
                stages.append(func(x_next, end if c == 1 else t + (direction * c) * h))
            if tableau.fsal:
                f_next = stages[-1]
            else:
                x_next = torch.addcmul(x, dt, combine(tableau.b, stages))
                f_next = func(x_next, end)

            with torch.no_grad():
                scale = self.atol + self.rtol * torch.maximum(x.abs(), x_next.abs())
                error = self._norm(dt * combine(tableau.e, stages) / scale).to(t)
                known = torch.isfinite(error)
                if not tableau.fsal:
                    known = known & _finite(f_next)
                accept = active & known & (error <= 1)
                error = torch.where(known, error.clamp(min=1e-10), torch.ones_like(error))
                proportional = error**-alpha
                factor = torch.where(
                    accept,
                    (self.SAFETY * proportional * previous**beta).clamp(self.SHRINK, self.GROW),
                    torch.where(known, (self.SAFETY * proportional).clamp(self.SHRINK, 0.9), self.SHRINK),
                )
                nfe += active * (func.calls - calls)
                steps += accept
                rejected += active & ~accept
                previous = torch.where(accept, error.clamp(min=1e-4), previous)
                # accepted steps that do not move the time, as where the derivative is enormous, lead nowhere either
                tiny = h < torch.clamp(4 * eps * t.abs(), min=1e-3 * smallest)
                creeping = torch.where(accept, torch.where(tiny, creeping + 1, 0), creeping)
                h = h * factor
                # a step must move the time as the function sees it, in the precision of x
                stuck = active & ~accept & (h < torch.clamp(10 * eps * t.abs(), min=eps * smallest))
                stuck = stuck | (active & (creeping >= self.CREEPING))
                reason = torch.where(known, int(Status.STEP_TOO_SMALL), int(Status.NOT_FINITE))
                status = torch.where(stuck, reason, status)
                active = active & ~stuck & ~(accept & last)

            take = expand_like(accept, x)
            x, f, t = torch.where(take, x_next, x), torch.where(take, f_next, f), torch.where(accept, end, t)
            if callback is not None:
                callback(ODEProgress(step, t, x, func.calls))
        return ODEResult(x, t, status, nfe, steps, rejected, func.calls)


@SOLVERS.register("dopri5")
class DormandPrince5(AdaptiveStep):
    """Dormand-Prince 5(4), adaptive: six evaluations a step (the "RK45" of SciPy, step by step on the device)."""

    tableau = DOPRI5


@SOLVERS.register("bosh3")
class BogackiShampine3(AdaptiveStep):
    """Bogacki-Shampine 3(2), adaptive: three evaluations a step, for loose tolerances."""

    tableau = BOSH3


@SOLVERS.register("heun12")
class Heun12(AdaptiveStep):
    """Heun-Euler 2(1), adaptive: two evaluations a step, for very loose tolerances."""

    tableau = HEUN12
