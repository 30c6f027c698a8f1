"""Conformance checks and exact problems, for this library's tests and for its users' own SDEs, samplers and solvers."""

from sde_score.testing.problems import ODE_PROBLEMS, Gaussian, GaussianMixture, ODEProblem, OrnsteinUhlenbeck

__all__ = ["ODE_PROBLEMS", "Gaussian", "GaussianMixture", "ODEProblem", "OrnsteinUhlenbeck"]
