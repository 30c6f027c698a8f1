"""The conformance checks find seeded mistakes: each mutant carries one that has been made in real code."""

import math

import pytest
import torch

from sde_score.sampling.correctors import AnnealedLangevin
from sde_score.sampling.predictors import EulerMaruyama
from sde_score.sdes import EDMSDE, VESDE, VPSDE, Chain, CosineSDE, LinearSDE, SubVPSDE
from sde_score.solvers import SOLVERS, Heun, solve_ode
from sde_score.solvers.runge_kutta import FixedStep, Tableau
from sde_score.tensors import expand_like, sum_except_batch
from sde_score.testing import (
    CheckFailed,
    OrnsteinUhlenbeck,
    check_corrector,
    check_predictor,
    check_sde,
    check_solver,
    sde_checks,
)


class NoisyDiagonal(LinearSDE):
    """A diagonal SDE given by f and g only."""

    def drift_coeff(self, t):
        return -0.5 * torch.outer(0.1 + 19.9 * t, torch.tensor([1.0, 2.0, 0.7], dtype=t.dtype, device=t.device))

    def diffusion_coeff(self, t):
        return torch.sqrt(torch.outer(0.1 + 19.9 * t, torch.tensor([1.0, 0.5, 0.7], dtype=t.dtype, device=t.device)))


GOOD = [
    VESDE(),
    VESDE(0.02, 5.0),
    VPSDE(),
    VPSDE(0.1, 10.0),
    SubVPSDE(),
    CosineSDE(),
    EDMSDE(),
    OrnsteinUhlenbeck(),
    NoisyDiagonal(),
]


@pytest.mark.parametrize("sde", GOOD, ids=lambda sde: type(sde).__name__)
def test_the_library_passes(sde):
    results = check_sde(sde)
    assert len(results) == len(list(sde_checks(sde))) and all(r.outcome == "passed" for r in results)


# --- one mistake each; the words are what the message must say ------------------------------------------------------


class DriftSign(VPSDE):
    def drift_coeff(self, t):
        return 0.5 * self.beta(t)


class NegativeG(VPSDE):
    def diffusion_coeff(self, t):
        return -torch.sqrt(self.beta(t))


class DriftWithoutHalf(VPSDE):
    def drift_coeff(self, t):
        return -self.beta(t)


class GTwiceTheSquare(VPSDE):
    def diffusion_coeff(self, t):
        return torch.sqrt(2 * self.beta(t))


class GNotRoot(VPSDE):
    def diffusion_coeff(self, t):
        return self.beta(t)


class MeanWithoutHalf(VPSDE):
    def log_mean_coeff(self, t):
        return 2 * super().log_mean_coeff(t)


class VarianceForStd(VPSDE):
    def marginal_coeffs(self, t):
        m, std = super().marginal_coeffs(t)
        return m, std**2


class SubVPRootOfStd(SubVPSDE):
    """The std of sub-VP is 1 − m², not its root."""

    def marginal_coeffs(self, t):
        m, std = super().marginal_coeffs(t)
        return m, std.sqrt()


class VEWithoutTwo(VESDE):
    """σ' missing the factor 2 of d σ²/dt."""

    def diffusion_coeff(self, t):
        return self.sigma(t) * math.sqrt(self.log_ratio)


class VEPriorUnit(VESDE):
    prior_std = 1.0


class VEPriorSquare(VESDE):
    prior_std = 50.0**2


class VPPriorTwice(VPSDE):
    prior_std = 2.0


class PriorWithoutStd(VESDE):
    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return noise(torch.empty(shape, device=device, dtype=dtype))


class PriorLogpWithoutNormalisation(VESDE):
    def prior_logp(self, x):
        return sum_except_batch(-0.5 * (x / self.sigma_max) ** 2)


class PriorLogpForgetsDimensions(VESDE):
    def prior_logp(self, x):
        std = self.sigma_max
        return sum_except_batch(-0.5 * (x / std) ** 2) - math.log(std) - 0.5 * math.log(2 * math.pi)


class PriorLogpMean(VPSDE):
    def prior_logp(self, x):
        return super().prior_logp(x) / x[0].numel()


class StdZeroForgotten(VESDE):
    """VE has noise σ_min at t = 0."""

    def __init__(self):
        super().__init__(sigma_min=0.5, sigma_max=50.0)
        self.std_0 = 0.0


class TransitionOfMarginal(VPSDE):
    def transition(self, s, t):
        return self.marginal_coeffs(t - s)


class TransitionVariance(VPSDE):
    def transition(self, s, t):
        a, std = super().transition(s, t)
        return a, std**2


class LogSnrWithoutSquare(VPSDE):
    def log_snr(self, t):
        return 0.5 * super().log_snr(t)


class InverseLogSnr(VPSDE):
    def time_of_log_snr(self, log_snr):
        return super().time_of_log_snr(-log_snr)


class DriftMethodSign(VPSDE):
    """Coefficients right, the method that samplers call wrong."""

    def drift(self, x, t):
        return -super().drift(x, t)


class DiffusionMethodSquared(VPSDE):
    def diffusion(self, x, t):
        return super().diffusion(x, t) ** 2


class DiffusionUnbroadcast(VPSDE):
    def diffusion(self, x, t):
        return self.diffusion_coeff(t)


class MeanMethodScaled(VPSDE):
    def marginal_prob(self, x0, t):
        mean, std = super().marginal_prob(x0, t)
        return mean**2 / x0, std


class CancellingFloat32(VPSDE):
    def __init__(self):
        super().__init__(published_rounding=True)


class PinnedConstant(VPSDE):
    def drift_coeff(self, t):
        return super().drift_coeff(t) * torch.ones(1, dtype=t.dtype)


class Float64Constant(VPSDE):
    def diffusion_coeff(self, t):
        return super().diffusion_coeff(t) * torch.ones(1, dtype=torch.float64, device=t.device)

    def diffusion(self, x, t):
        return expand_like(self.diffusion_coeff(t), x)


class DataLeftAtT(VPSDE):
    prior_std = LinearSDE.prior_std

    def __init__(self):
        super().__init__(0.01, 0.5)


class BatchCoupled(VPSDE):
    def diffusion_coeff(self, t):
        return torch.sqrt(self.beta(t)) * t.max() / t.max().clamp(min=0.5)


class FixedN(Chain):
    """dt of 1000 steps, whatever n."""

    def forward(self, x, t):
        return self.sde.drift(x, t) / 1000, self.sde.diffusion(x, t) / 1000**0.5


class ChainOfThousand(SubVPSDE):
    def chain(self, n):
        return FixedN(self, n)


class ReverseWithoutHalf(VPSDE):
    """The probability-flow ODE with g² in place of ½ g²."""

    def apply_diffusion_sq(self, x, t, v):
        return 2 * super().apply_diffusion_sq(x, t, v)


class StartScaled(VPSDE):
    def marginal_coeffs(self, t):
        m, std = super().marginal_coeffs(t)
        return 1.01 * m, std


MUTANTS = [
    (DriftSign(), "wrong sign of the drift"),
    (NegativeG(), "wrong sign"),
    (DriftWithoutHalf(), "factor 2"),
    (GTwiceTheSquare(), "factor ½ in g²"),
    (GNotRoot(), "the diffusion coefficient is the root|prior|integral"),
    (MeanWithoutHalf(), "f lacks|factor"),
    (VarianceForStd(), "a variance where a standard deviation"),
    (SubVPRootOfStd(), "std"),
    (VEWithoutTwo(), "factor 2 in g²"),
    (VEPriorUnit(), "wrong prior"),
    (VEPriorSquare(), "wrong prior"),
    (VPPriorTwice(), "wrong prior"),
    (PriorWithoutStd(), "prior_sampling and prior_logp disagree"),
    (PriorLogpWithoutNormalisation(), "missing log std"),
    (PriorLogpForgetsDimensions(), "number of dimensions"),
    (PriorLogpMean(), "prior"),
    (StdZeroForgotten(), "std_0"),
    (TransitionOfMarginal(), "transition"),
    (TransitionVariance(), "transition"),
    (LogSnrWithoutSquare(), "missing square"),
    (InverseLogSnr(), "time_of_log_snr"),
    (DriftMethodSign(), "wrong sign"),
    (DiffusionMethodSquared(), "g²"),
    (DiffusionUnbroadcast(), "expand_like"),
    (MeanMethodScaled(), "check_forward_simulation"),
    (CancellingFloat32(), "expm1"),
    (PinnedConstant(), "another device"),
    (Float64Constant(), "float64"),
    (DataLeftAtT(), "data still count"),
    (BatchCoupled(), "depends on the other times|integral"),
    (ChainOfThousand(), "one number of steps"),
    (ReverseWithoutHalf(), "½"),
    (StartScaled(), "must be 1"),
]


@pytest.mark.parametrize("sde, words", MUTANTS, ids=lambda v: type(v).__name__ if isinstance(v, LinearSDE) else "")
def test_seeded_mistakes_are_found(sde, words):
    with pytest.raises(CheckFailed, match=words):
        check_sde(sde)


def test_exceptions_are_declared_with_a_reason():
    results = check_sde(CancellingFloat32(), skip={"check_float32": "bit parity with the published float32 arithmetic"})
    assert [r.outcome for r in results].count("skipped") == 1
    with pytest.raises(ValueError, match="unknown checks: check_flaot32"):
        check_sde(VPSDE(), skip={"check_flaot32": "?"})


# --- predictors, correctors, solvers --------------------------------------------------------------------------------


class NoRootOfTime(EulerMaruyama):
    def step(self, score_fn, x, t, t_next, noise):
        _, mean = super().step(score_fn, x, t, t_next, noise)
        return mean + self.sde.diffusion(x, t) * expand_like(t - t_next, x) * noise(x), mean


class ForwardDrift(EulerMaruyama):
    def step(self, score_fn, x, t, t_next, noise):
        return super().step(lambda x, t: -score_fn(x, t), x, t, t_next, noise)


class FixedDt(EulerMaruyama):
    """The step of 1000 steps, whatever the grid."""

    def step(self, score_fn, x, t, t_next, noise):
        return super().step(score_fn, x, t, t - self.sde.T / 1000, noise)


class HalfScore(EulerMaruyama):
    def step(self, score_fn, x, t, t_next, noise):
        return super().step(lambda x, t: 0.5 * score_fn(x, t), x, t, t_next, noise)


class BatchMean(EulerMaruyama):
    def step(self, score_fn, x, t, t_next, noise):
        x_next, mean = super().step(score_fn, x, t, t_next, noise)
        return x_next + 1e-3 * x.mean(0), mean


@pytest.mark.parametrize("mutant", [NoRootOfTime, ForwardDrift, FixedDt, HalfScore, BatchMean])
def test_wrong_predictors_are_found(mutant):
    with pytest.raises(CheckFailed):
        check_predictor(mutant(VPSDE()), steps=100, samples=1000)


class NoiseWithoutTwo(AnnealedLangevin):
    def step(self, score_fn, x, t, noise):
        return super().step(score_fn, x, t, lambda x: noise(x) / 2**0.5)


class AwayFromData(AnnealedLangevin):
    def step(self, score_fn, x, t, noise):
        return super().step(lambda x, t: -score_fn(x, t), x, t, noise)


class UndeclaredCoupling(AnnealedLangevin):
    def step_size(self, score, z, x, t):
        return super().step_size(score, z, x, t) * (1 + 0.01 * score.square().mean().tanh())


@pytest.mark.parametrize("mutant", [NoiseWithoutTwo, AwayFromData, UndeclaredCoupling])
def test_wrong_correctors_are_found(mutant):
    with pytest.raises(CheckFailed):
        check_corrector(mutant(VPSDE()))


class NotHeun(FixedStep):
    tableau = Tableau(order=2, c=(0.0, 1.0), a=((1.0,),), b=(0.4, 0.6))


class Overstepping(FixedStep):
    tableau = Tableau(order=1, c=(0.0, 1.1), a=((1.1,),), b=(6 / 11, 5 / 11))


class BackwardsTheSame(Heun):
    def integrate(self, func, x, t0, t1, callback):
        return super().integrate(func, x, min(t0, t1), max(t0, t1), callback)


@pytest.mark.parametrize("mutant", [NotHeun, Overstepping, BackwardsTheSame])
def test_wrong_solvers_are_found(mutant):
    with pytest.raises(CheckFailed):
        check_solver(mutant, order=2)


def test_a_silent_nan_is_found():
    class Silent(Heun):
        def integrate(self, func, x, t0, t1, callback):
            result = super().integrate(func, x, t0, t1, callback)
            result.status.zero_()
            return result

    with pytest.raises(CheckFailed, match="silence"):
        check_solver(Silent(200))
    assert "heun" in SOLVERS.names() and solve_ode  # the parent is registered and sound
