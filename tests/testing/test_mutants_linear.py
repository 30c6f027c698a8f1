"""Mistakes in linear SDEs and Gaussian paths, one each, that the conformance checks must find and place. Written before
the checks were tuned to them: the checks of the first version caught 29 of 44.
"""

import math

import pytest
import torch

from sde_score.sdes import SDE, VESDE, VPSDE, GaussianPathSDE, LinearSDE, SubVPSDE
from sde_score.sdes.base import ReverseSDE
from sde_score.tensors import expand_like
from sde_score.testing import CheckFailed, check_sde


class Long(LinearSDE):
    """Constant β on [0, 10], in closed form."""

    beta = 1.2

    def __init__(self):
        super().__init__(T=10.0, t_min=1e-4)

    def drift_coeff(self, t):
        return torch.full_like(t, -0.5 * self.beta)

    def diffusion_coeff(self, t):
        return torch.full_like(t, self.beta**0.5)

    def marginal_coeffs(self, t):
        return torch.exp(-0.5 * self.beta * t), torch.sqrt(-torch.expm1(-self.beta * t))

    def transition(self, s, t):
        return self.marginal_coeffs(t - s)


class NoisyStart(LinearSDE):
    """Noise std_0 at time 0 and a drift, in closed form: std² = m² std_0² + 1 − m²."""

    beta = 8.0

    def __init__(self):
        super().__init__(T=1.0, t_min=1e-4)
        self.std_0 = 0.4

    def drift_coeff(self, t):
        return torch.full_like(t, -0.5 * self.beta)

    def diffusion_coeff(self, t):
        return torch.full_like(t, self.beta**0.5)

    def marginal_coeffs(self, t):
        m = torch.exp(-0.5 * self.beta * t)
        return m, torch.sqrt(m**2 * self.std_0**2 - torch.expm1(-self.beta * t))

    def transition(self, s, t):
        return torch.exp(-0.5 * self.beta * (t - s)), torch.sqrt(-torch.expm1(-self.beta * (t - s)))


class Diagonal(LinearSDE):
    """A rate for each of three channels, in closed form."""

    rates = (8.0, 12.0, 20.0)

    def _rates(self, t):
        return torch.tensor(self.rates, dtype=t.dtype, device=t.device)

    def drift_coeff(self, t):
        return -0.5 * self._rates(t).expand(len(t), 3)

    def diffusion_coeff(self, t):
        return self._rates(t).sqrt().expand(len(t), 3)

    def marginal_coeffs(self, t):
        exponent = torch.outer(t, self._rates(t))
        return torch.exp(-0.5 * exponent), torch.sqrt(-torch.expm1(-exponent))

    def transition(self, s, t):
        return self.marginal_coeffs(t - s)


class Trigonometric(GaussianPathSDE):
    """α = cos(πt/2), σ = sin(πt/2)."""

    def __init__(self):
        super().__init__(T=0.99, t_min=1e-4)

    def alpha(self, t):
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t):
        return torch.sin(math.pi / 2 * t)


@pytest.mark.parametrize("sde", [Long(), NoisyStart(), Diagonal(), Trigonometric()], ids=lambda sde: type(sde).__name__)
def test_right_ones_pass(sde):
    check_sde(sde)


# --- derived quantities ---------------------------------------------------------------------------------------------


class DenoiseWithoutMean(VPSDE):
    def denoise(self, score_fn, x, t):
        std = expand_like(self.marginal_coeffs(t)[1], x)
        return x + std**2 * score_fn(x, t)


class DenoiseStdForVariance(VPSDE):
    def denoise(self, score_fn, x, t):
        m, std = (expand_like(c, x) for c in self.marginal_coeffs(t))
        return (x + std * score_fn(x, t)) / m


class DenoiseForgetsStart(NoisyStart):
    """The std without the noise at time 0."""

    def denoise(self, score_fn, x, t):
        m, std = (expand_like(c, x) for c in self.marginal_coeffs(t))
        return (x + (std**2 - m**2 * self.std_0**2) * score_fn(x, t)) / m


class LogSnrRateRoot(VPSDE):
    def log_snr_rate(self, t):
        return super().log_snr_rate(t).sqrt()


class LogSnrRateSign(VESDE):
    def log_snr_rate(self, t):
        return -super().log_snr_rate(t)


class LogSnrRateOfBeta(SubVPSDE):
    """g² of VP over the variance of sub-VP."""

    def log_snr_rate(self, t):
        return self.beta(t) / self.marginal_coeffs(t)[1] ** 2


class LogSnrSummed(Diagonal):
    def log_snr(self, t):
        return 3 * super().log_snr(t)


class TimeOfLogSnrInFloat32(VPSDE):
    def time_of_log_snr(self, log_snr):
        return super().time_of_log_snr(log_snr).float()


class TimeOfLogSnrToOne(Long):
    """The search ends at 1 whatever T is."""

    def time_of_log_snr(self, log_snr):
        return super().time_of_log_snr(log_snr).clamp(max=1.0)


# --- marginals and transitions --------------------------------------------------------------------------------------


class StartNoiseDoesNotDecay(NoisyStart):
    def marginal_coeffs(self, t):
        m, _ = super().marginal_coeffs(t)
        return m, torch.sqrt(self.std_0**2 - torch.expm1(-self.beta * t))


class StartNoiseInTransition(NoisyStart):
    def transition(self, s, t):
        return self.marginal_coeffs(t - s)


class UnitInterval(Long):
    """Closed forms for t/T."""

    def marginal_coeffs(self, t):
        return super().marginal_coeffs(t / self.T)


class ClampedNearZero(VPSDE):
    def marginal_coeffs(self, t):
        return super().marginal_coeffs(t.clamp(min=1e-3))


class RightAtHalf(VPSDE):
    """The std right at T/2 only."""

    def marginal_coeffs(self, t):
        m, std = super().marginal_coeffs(t)
        return m, std * (1 + 0.05 * t * (t - 0.5))


class TransitionFromHalf(VPSDE):
    """Wrong for s < 0.3 t, which a look at t/2 does not see."""

    def transition(self, s, t):
        a, std = super().transition(s, t)
        return a, torch.where(s < 0.3 * t, 1.02 * std, std)


class TransitionInverted(VPSDE):
    def transition(self, s, t):
        a, std = super().transition(s, t)
        return 1 / a, std


class TransitionDiagonalReversed(Diagonal):
    def transition(self, s, t):
        return tuple(c.flip(1) for c in super().transition(s, t))


class MarginalInFloat32(Long):
    def marginal_coeffs(self, t):
        return super().marginal_coeffs(t.float())


class MarginalOfLastTime(Long):
    def marginal_coeffs(self, t):
        return super().marginal_coeffs(t[-1:].expand_as(t))


class TransitionOfFirstTime(Long):
    def transition(self, s, t):
        return super().transition(s[:1].expand_as(s), t)


# --- what samplers call ---------------------------------------------------------------------------------------------


class EtaIgnored(VPSDE):
    def reverse(self, score_fn, *, eta=1.0):
        return super().reverse(score_fn, eta=1.0 if eta else 0.0)


class LinearInEta(VPSDE):
    """½ (1 + η) in place of ½ (1 + η²): right at 0 and at 1."""

    def reverse(self, score_fn, *, eta=1.0):
        class Reverse(ReverseSDE):
            def drift(self, x, t):
                square = self.sde.apply_diffusion_sq(x, t, self.score_fn(x, t))
                return self.sde.drift(x, t) - 0.5 * (1 + self.eta) * square

        return Reverse(self, score_fn, eta=eta)


class SquareOfFirstPower(VPSDE):
    noise_type = "diagonal"

    def apply_diffusion_sq(self, x, t, v):
        return self.diffusion(x, t) * v


class NoiseUnlikeDiffusion(VPSDE):
    noise_type = "diagonal"

    def apply_diffusion(self, x, t, v):
        return 0.5 * self.diffusion(x, t) * v


class PriorIgnoresNoise(VPSDE):
    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return torch.randn(shape, device=device, dtype=dtype)


class PriorIgnoresDtype(VPSDE):
    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return noise(torch.empty(shape, device=device))


class PriorIgnoresDevice(VESDE):
    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return self.sigma_max * noise(torch.empty(shape, dtype=dtype))


class PriorHalfNoise(VESDE):
    """Half of the draw is not from the noise it is given."""

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        empty = torch.empty(shape, device=device, dtype=dtype)
        return self.sigma_max * (noise(empty) + torch.randn_like(empty)) / 2**0.5


class PriorLogpInFloat64(VPSDE):
    def prior_logp(self, x):
        return super().prior_logp(x.double())


class DriftInPlace(Long):
    def drift(self, x, t):
        return x.mul_(-0.5 * self.beta)


class TimesInPlace(Long):
    def marginal_coeffs(self, t):
        exponent = t.mul_(-0.5 * self.beta)
        return torch.exp(exponent), torch.sqrt(-torch.expm1(2 * exponent))


class DriftDetached(VPSDE):
    def drift(self, x, t):
        return super().drift(x.detach(), t)


class MarginalOnCPU(Diagonal):
    def marginal_coeffs(self, t):
        rates = torch.tensor(self.rates, dtype=t.dtype)
        return torch.exp(-0.5 * torch.outer(t, rates)), torch.sqrt(-torch.expm1(-torch.outer(t, rates)))


class LogSnrOnCPU(VPSDE):
    def log_snr(self, t):
        return super().log_snr(t) * torch.ones(len(t), dtype=t.dtype)


class DiffusionBatchCoupled(Long):
    def diffusion(self, x, t):
        return super().diffusion(x, t) * (1 + 1e-3 * torch.tanh(x.mean()))


class ClaimsNotAdditive(VPSDE):
    """State-dependent noise under a class that says otherwise."""

    def diffusion(self, x, t):
        return super().diffusion(x, t) * torch.sqrt(1 + 0.01 * x**2)


class ChainTooNoisy(Long):
    def chain(self, n):
        chain = SDE.chain(self, n)
        chain.n = n // 2
        return chain


# --- Gaussian paths -------------------------------------------------------------------------------------------------


class PathDriftNotDivided(Trigonometric):
    def drift_coeff(self, t):
        return -(math.pi / 2) * torch.sin(math.pi / 2 * t)


class PathNoiseWithoutDrift(Trigonometric):
    """g² = dσ²/dt, without − 2 f σ²."""

    def diffusion_coeff(self, t):
        return torch.sqrt(math.pi / 2 * torch.sin(math.pi * t))


class PathPrior(Trigonometric):
    prior_std = 2.0


class PathTransitionWithoutMean(Trigonometric):
    def transition(self, s, t):
        return self.alpha(t) / self.alpha(s), torch.sqrt((self.sigma(t) ** 2 - self.sigma(s) ** 2).clamp(min=0))


class PathSigmaUnlikeMarginal(Trigonometric):
    def marginal_coeffs(self, t):
        return self.alpha(t), self.sigma(t) ** 2


class PathStartsBelowOne(Trigonometric):
    def alpha(self, t):
        return 0.99 * super().alpha(t)


class PathWiggle(Trigonometric):
    """The signal-to-noise ratio rises for a moment, between the places where the class itself looks."""

    def sigma(self, t):
        return super().sigma(t) * (1 + 0.02 * torch.sin(64 * math.pi * t / self.T) ** 2)


MUTANTS = [
    (DenoiseWithoutMean, "denoise"),
    (DenoiseStdForVariance, "denoise"),
    (DenoiseForgetsStart, "denoise"),
    (LogSnrRateRoot, "log_snr_rate"),
    (LogSnrRateSign, "log_snr_rate"),
    (LogSnrRateOfBeta, "log_snr_rate"),
    (LogSnrSummed, "log_snr"),
    (TimeOfLogSnrInFloat32, "time_of_log_snr.*float32"),
    (TimeOfLogSnrToOne, "time_of_log_snr"),
    (StartNoiseDoesNotDecay, "std"),
    (StartNoiseInTransition, "transition"),
    (UnitInterval, "dm/dt"),
    (ClampedNearZero, "t=0|marginal"),
    (RightAtHalf, "std"),
    (TransitionFromHalf, "transition"),
    (TransitionInverted, "transition"),
    (TransitionDiagonalReversed, "transition"),
    (MarginalInFloat32, "marginal.*float32"),
    (MarginalOfLastTime, "marginal_coeffs.*(batch|other)"),
    (TransitionOfFirstTime, "transition.*(batch|other)"),
    (EtaIgnored, "reverse.*eta"),
    (LinearInEta, "reverse.*eta"),
    (SquareOfFirstPower, "apply_diffusion_sq"),
    (NoiseUnlikeDiffusion, "apply_diffusion"),
    (PriorIgnoresNoise, "prior_sampling.*noise"),
    (PriorIgnoresDtype, "prior_sampling.*dtype"),
    (PriorIgnoresDevice, "prior_sampling.*device"),
    (PriorHalfNoise, "prior_sampling.*noise"),
    (PriorLogpInFloat64, "prior_logp.*float64"),
    (DriftInPlace, "drift.*in place"),
    (TimesInPlace, "marginal.*in place"),
    (DriftDetached, "drift.*gradient"),
    (MarginalOnCPU, "marginal_coeffs.*device"),
    (LogSnrOnCPU, "log_snr.*device"),
    (DiffusionBatchCoupled, "diffusion.*(batch|other)"),
    (ClaimsNotAdditive, "additive_noise"),
    (ChainTooNoisy, "chain"),
    (PathDriftNotDivided, "drift|dm/dt"),
    (PathNoiseWithoutDrift, "g²"),
    (PathPrior, "prior"),
    (PathTransitionWithoutMean, "transition"),
    (PathSigmaUnlikeMarginal, "std"),
    (PathStartsBelowOne, "must be 1"),
    (PathWiggle, "std²|rise|rises"),
]


@pytest.mark.parametrize("mutant, words", MUTANTS, ids=lambda v: getattr(v, "__name__", ""))
def test_mistakes_are_found_and_placed(mutant, words):
    with pytest.raises(CheckFailed, match=words):
        check_sde(mutant())
