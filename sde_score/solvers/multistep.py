"""A linear multistep method: one evaluation a step, for right-hand sides that are networks.

Source: Hairer, Nørsett & Wanner, "Solving ordinary differential equations I", III.1. Times are floats that all samples
share, so nothing waits for the device until the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sde_score.solvers.base import SOLVERS, CountedFunc
from sde_score.solvers.runge_kutta import RK4, FixedStep, combine, same_time

PREDICTOR = (55 / 24, -59 / 24, 37 / 24, -9 / 24)
"""Adams-Bashforth of order 4; weights of f_n, f_{n-1}, f_{n-2}, f_{n-3}."""
CORRECTOR = (9 / 24, 19 / 24, -5 / 24, 1 / 24)
"""Adams-Moulton of order 4; weights of f_{n+1}, f_n, f_{n-1}, f_{n-2}."""


@SOLVERS.register("adams")
class Adams(FixedStep):
    """Adams-Bashforth-Moulton of order 4, once predicted and once corrected: `steps + 10` evaluations in all.

        predict    x_p = x_n + h/24 (55 f_n − 59 f_{n−1} + 37 f_{n−2} − 9 f_{n−3})
        evaluate   f_{n+1} = f(x_p, t_{n+1})
        correct    x_{n+1} = x_n + h/24 (9 f_{n+1} + 19 f_n − 5 f_{n−1} + f_{n−2})

    The first three steps are those of `rk4`. The error is not controlled: compare two numbers of steps. What rough
    right-hand sides gain by one evaluation a step, and which `power` suits which process, is in docs/benchmark.md:
    1 for `ve`, 2 for `vp`, `subvp` and `cosine`, 3 for `edm`.

    Args:
        steps: number of steps, at least 4.
        power: the steps are equal in u, where t = t_early + (t_late − t_early) u^power. The noise of VP processes grows
            as √t, which is smooth in u for power=2.
        on_failure: see `Solver`.
    """

    def __init__(self, steps: int = 150, *, power: float = 1.0, on_failure: str = "raise") -> None:
        super().__init__(steps, power=power, on_failure=on_failure)
        if self.steps < 4:
            raise ValueError(f"adams(steps=...) must be at least 4, three of them to start; got {steps}.")

    def stepper(self, func: CountedFunc, t0: float, t1: float) -> Callable[[Tensor, int], Tensor]:
        n, h = self.steps, 1 / self.steps
        newest_first: list[Tensor] = []  # f_n, f_{n−1}, f_{n−2}, f_{n−3}

        def slope(x: Tensor, part: float) -> Tensor:
            """dx/ds at the part s of the way, 0 to 1."""
            time, rate = self.time(part, t0, t1)
            return func(x, same_time(x, time)) * rate

        def advance(x: Tensor, k: int) -> Tensor:
            if k <= 3:
                newest_first.insert(0, slope(x, k / n))
            if k < 3:
                stages = newest_first[:1]
                for c, row in zip(RK4.c[1:], RK4.a):
                    stages.append(slope(torch.add(x, combine(row, stages), alpha=h), (k + c) / n))
                return torch.add(x, combine(RK4.b, stages), alpha=h)
            predicted = torch.add(x, combine(PREDICTOR, newest_first), alpha=h)
            newest_first[:] = [slope(predicted, (k + 1) / n), *newest_first[:3]]
            return torch.add(x, combine(CORRECTOR, newest_first), alpha=h)

        return advance
