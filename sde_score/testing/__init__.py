"""Conformance checks and exact problems, for this library's tests and for its users' own SDEs, samplers and solvers."""

from sde_score.testing.checks import CheckFailed, CheckResult
from sde_score.testing.corrector_checks import check_corrector
from sde_score.testing.objective_checks import check_objective
from sde_score.testing.parameterization_checks import check_parameterization
from sde_score.testing.predictor_checks import check_predictor
from sde_score.testing.problems import ODE_PROBLEMS, Gaussian, GaussianMixture, ODEProblem, OrnsteinUhlenbeck
from sde_score.testing.sde_checks import check_sde, sde_checks
from sde_score.testing.solver_checks import check_solver

__all__ = [
    "CheckFailed", "CheckResult", "check_sde", "sde_checks", "check_predictor", "check_corrector", "check_solver",
    "check_objective", "check_parameterization",
    "Gaussian", "GaussianMixture", "OrnsteinUhlenbeck", "ODEProblem", "ODE_PROBLEMS",
]  # fmt: skip
