"""ODE solvers: fixed and adaptive Runge-Kutta and a multistep method on the device, and SciPy's."""

from sde_score.solvers.base import SOLVERS, ODEError, ODENotFinite, ODEProgress, ODEResult, Solver, Status, solve_ode
from sde_score.solvers.multistep import Adams
from sde_score.solvers.runge_kutta import (
    BogackiShampine3,
    DormandPrince5,
    Euler,
    Heun,
    Heun12,
    Midpoint,
    RungeKutta4,
    Tableau,
)
from sde_score.solvers.scipy_adapter import SciPySolver

__all__ = [
    "SOLVERS", "Solver", "ODEResult", "ODEProgress", "ODEError", "ODENotFinite", "Status", "solve_ode",
    "Tableau", "Euler", "Midpoint", "Heun", "RungeKutta4", "DormandPrince5", "BogackiShampine3", "Heun12",
    "Adams", "SciPySolver",
]  # fmt: skip
