"""Mistakes in general SDEs, one each, that the conformance checks must find and place. Written before the checks were
tuned to them: the checks of the first version caught 5 of 41.
"""

import math

import pytest
import torch

from sde_score.sdes import SDE
from sde_score.tensors import expand_like, sum_except_batch
from sde_score.testing import CheckFailed, check_sde


class GaussianPrior(SDE):
    """An SDE with the prior N(prior_mean, prior_std²)."""

    prior_mean, prior_std = 0.0, 1.0

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return self.prior_mean + self.prior_std * noise(torch.empty(shape, device=device, dtype=dtype))

    def prior_logp(self, x):
        z = (x - self.prior_mean) / self.prior_std
        return sum_except_batch(-0.5 * z**2 - math.log(self.prior_std) - 0.5 * math.log(2 * math.pi))


class MeanReverting(GaussianPrior):
    """dx = −θ(t) (x − μ) dt + σ √(2 θ(t)) dw, θ(t) = a + b t: the law of x_t given x_0 is Gaussian, its prior
    N(μ, σ²)."""

    additive_noise = True
    a, b = 0.5, 3.0

    def __init__(self, mu: float = 2.0, sigma: float = 0.8) -> None:
        super().__init__(T=2.0, t_min=1e-4)
        self.mu, self.sigma = mu, sigma
        self.prior_mean, self.prior_std = mu, sigma

    def rate(self, t):
        return self.a + self.b * t

    def decay(self, t):
        return torch.exp(-(self.a * t + 0.5 * self.b * t**2))

    def drift(self, x, t):
        return -expand_like(self.rate(t), x) * (x - self.mu)

    def diffusion(self, x, t):
        return expand_like(self.sigma * torch.sqrt(2 * self.rate(t)), x)

    def marginal_prob(self, x0, t):
        m = expand_like(self.decay(t), x0)
        return self.mu + m * (x0 - self.mu), self.sigma * torch.sqrt(1 - m**2)


class Tanh(SDE):
    """dx = −tanh(x) dt + dw, stationary in the logistic law of scale ½: no law of x_t given x_0 in closed form."""

    additive_noise = True
    scale = 0.5

    def __init__(self):
        super().__init__(T=8.0, t_min=1e-4)

    def drift(self, x, t):
        return -torch.tanh(x)

    def diffusion(self, x, t):
        return torch.ones_like(x)

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        z = noise(torch.empty(shape, device=device, dtype=dtype))
        return self.scale * (torch.special.log_ndtr(z) - torch.special.log_ndtr(-z))

    def prior_logp(self, x):
        y = x / self.scale
        return sum_except_batch(-y - 2 * torch.nn.functional.softplus(-y) - math.log(self.scale))


class Student(SDE):
    """dx = −x dt + √(1 + x²) dw, stationary density 2/(π (1 + x²)²): the noise depends on the state."""

    def __init__(self):
        super().__init__(T=6.0, t_min=1e-4)

    def drift(self, x, t):
        return -x

    def diffusion(self, x, t):
        return torch.sqrt(1 + x**2)

    def diffusion_sq_divergence(self, x, t):
        return 2 * x

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        empty = torch.empty(shape, device=device, dtype=dtype)
        return noise(empty) / torch.sqrt(noise(empty) ** 2 + noise(empty) ** 2 + noise(empty) ** 2)

    def prior_logp(self, x):
        return sum_except_batch(math.log(2 / math.pi) - 2 * torch.log1p(x**2))


class GeometricOU(SDE):
    """x = exp(y), dy = −y dt + σ dw: dx = x (σ²/2 − log x) dt + σ x dw on x > 0, prior log-normal."""

    sigma = 0.6

    def __init__(self):
        super().__init__(T=5.0, t_min=1e-4)

    def drift(self, x, t):
        return x * (0.5 * self.sigma**2 - torch.log(x))

    def diffusion(self, x, t):
        return self.sigma * x

    def diffusion_sq_divergence(self, x, t):
        return 2 * self.sigma**2 * x

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return torch.exp(self.sigma / 2**0.5 * noise(torch.empty(shape, device=device, dtype=dtype)))

    def prior_logp(self, x):
        y, std = torch.log(x), self.sigma / 2**0.5
        return sum_except_batch(-y - 0.5 * (y / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi))


class MatrixNoise(SDE):
    """dx = −½ x dt + G dw, (G v)_i = v_i + ½ v_{i−1} along the last axis; the prior N(0, G Gᵀ) is stationary."""

    additive_noise = True

    def __init__(self):
        super().__init__(T=12.0, t_min=1e-4)

    @staticmethod
    def shift(v):
        return torch.nn.functional.pad(v[..., :-1], (1, 0))

    @staticmethod
    def shift_back(v):
        return torch.nn.functional.pad(v[..., 1:], (0, 1))

    def drift(self, x, t):
        return -0.5 * x

    def diffusion(self, x, t):
        raise ValueError("MatrixNoise has a matrix.")

    def apply_diffusion(self, x, t, v):
        return v + 0.5 * self.shift(v)

    def apply_diffusion_sq(self, x, t, v):
        w = v + 0.5 * self.shift_back(v)
        return w + 0.5 * self.shift(w)

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        z = noise(torch.empty(shape, device=device, dtype=dtype))
        return z + 0.5 * self.shift(z)

    def prior_logp(self, x):
        n = x.shape[-1]
        powers = torch.arange(n, device=x.device, dtype=x.dtype)
        lag = powers[:, None] - powers
        inverse = torch.where(lag >= 0, (-0.5) ** lag.clamp(min=0), torch.zeros_like(lag))  # of G, unit determinant
        z = x @ inverse.T
        return sum_except_batch(-0.5 * z**2 - 0.5 * math.log(2 * math.pi))


RIGHT = [MeanReverting(), MeanReverting(0.0, 3.0), Tanh(), Student(), GeometricOU(), MatrixNoise()]


@pytest.mark.parametrize("sde", RIGHT, ids=lambda sde: type(sde).__name__)
def test_right_ones_pass(sde):
    check_sde(sde)


# --- drift and diffusion against the law of x_t given x_0 ------------------------------------------------------------


class DriftSign(MeanReverting):
    def drift(self, x, t):
        return -super().drift(x, t)


class DriftForgetsMean(MeanReverting):
    def drift(self, x, t):
        return -expand_like(self.rate(t), x) * x


class DriftOfEnd(MeanReverting):
    """Time runs the wrong way in the drift."""

    def drift(self, x, t):
        return super().drift(x, self.T - t)


class DriftRightAtHalf(MeanReverting):
    def rate(self, t):
        return torch.full_like(t, self.a + self.b * self.T / 2)

    def decay(self, t):
        return torch.exp(-(self.a * t + 0.5 * self.b * t**2))


class NoiseWithoutTwo(MeanReverting):
    def diffusion(self, x, t):
        return super().diffusion(x, t) / 2**0.5


class NoiseSquared(MeanReverting):
    def diffusion(self, x, t):
        return super().diffusion(x, t) ** 2


class MarginalVariance(MeanReverting):
    def marginal_prob(self, x0, t):
        mean, std = super().marginal_prob(x0, t)
        return mean, std**2


class MarginalHalfRate(MeanReverting):
    """1 − m in place of 1 − m² in the variance."""

    def marginal_prob(self, x0, t):
        mean, _ = super().marginal_prob(x0, t)
        return mean, self.sigma * torch.sqrt(1 - expand_like(self.decay(t), x0))


class MarginalMeanAddsMu(MeanReverting):
    def marginal_prob(self, x0, t):
        mean, std = super().marginal_prob(x0, t)
        return mean + self.mu * expand_like(self.decay(t), x0), std


class MarginalOfFirstTime(MeanReverting):
    def decay(self, t):
        return super().decay(t[:1]).expand_as(t)


# --- prior ---------------------------------------------------------------------------------------------------------


class PriorDrawsUncentred(MeanReverting):
    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return super().prior_sampling(shape, noise=noise, device=device, dtype=dtype) - self.mu


class PriorCentredAtZero(MeanReverting):
    """Draws and density agree, but the process ends elsewhere."""

    def __init__(self):
        super().__init__()
        self.prior_mean = 0.0


class PriorVariance(MeanReverting):
    def __init__(self):
        super().__init__()
        self.prior_std = self.sigma**2


class PriorIgnoresNoise(MeanReverting):
    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return super().prior_sampling(shape, noise=torch.randn_like, device=device, dtype=dtype)


class PriorIgnoresDtype(MeanReverting):
    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return super().prior_sampling(shape, noise=noise, device=device)


class PriorIgnoresDevice(MeanReverting):
    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return super().prior_sampling(shape, noise=noise, dtype=dtype)


class PriorOneNumberPerSample(MeanReverting):
    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        x = super().prior_sampling(shape, noise=noise, device=device, dtype=dtype)
        return expand_like(x.reshape(len(x), -1)[:, 0], x).expand_as(x).clone()


class PriorUnnormalised(Tanh):
    def prior_logp(self, x):
        return super().prior_logp(x) + math.log(2.0) * x[0].numel()


class PriorScaleForgotten(Tanh):
    """Draws and density agree on scale 1; the process ends in scale ½."""

    scale = 1.0


class WellUpsideDown(Tanh):
    def drift(self, x, t):
        return torch.tanh(x)


class StratonovichDrift(GeometricOU):
    """The Itô correction σ²/2 is missing."""

    def drift(self, x, t):
        return -x * torch.log(x)


# --- what enters the reverse process -----------------------------------------------------------------------------


class DivergenceForgotten(Student):
    def diffusion_sq_divergence(self, x, t):
        return 0.0


class DivergenceOfG(Student):
    """∇·G, not ∇·(G Gᵀ)."""

    def diffusion_sq_divergence(self, x, t):
        return x / torch.sqrt(1 + x**2)


class DivergenceSummed(Student):
    def diffusion_sq_divergence(self, x, t):
        return expand_like(2 * sum_except_batch(x), x)


class DivergenceSign(GeometricOU):
    def diffusion_sq_divergence(self, x, t):
        return -super().diffusion_sq_divergence(x, t)


class ClaimsAdditive(GeometricOU):
    additive_noise = True


class SquareOfFirstPower(MeanReverting):
    def apply_diffusion_sq(self, x, t, v):
        return self.diffusion(x, t) * v


class MatrixTransposed(MatrixNoise):
    """Gᵀ G in place of G Gᵀ."""

    def apply_diffusion_sq(self, x, t, v):
        w = v + 0.5 * self.shift(v)
        return w + 0.5 * self.shift_back(w)


class MatrixSquareForgotten(MatrixNoise):
    def diffusion(self, x, t):
        return torch.ones_like(x)

    apply_diffusion_sq = SDE.apply_diffusion_sq


class EtaIgnored(MeanReverting):
    def reverse(self, score_fn, *, eta=1.0):
        return super().reverse(score_fn)


class EtaRoundedUp(MeanReverting):
    def reverse(self, score_fn, *, eta=1.0):
        return super().reverse(score_fn, eta=math.ceil(eta))


# --- devices, dtypes, batches, the caller's tensors --------------------------------------------------------------


class DriftOnCPU(MeanReverting):
    def drift(self, x, t):
        return super().drift(x, t) * torch.ones(x.shape[-1], dtype=x.dtype)


class DiffusionOnCPU(Tanh):
    def diffusion(self, x, t):
        return torch.ones(x.shape, dtype=x.dtype)


class DriftInFloat64(MeanReverting):
    def drift(self, x, t):
        return super().drift(x, t) * torch.ones(1, dtype=torch.float64, device=x.device)


class MarginalInFloat32(MeanReverting):
    def marginal_prob(self, x0, t):
        mean, std = super().marginal_prob(x0, t)
        return mean, std.float()


class PriorLogpInFloat64(Tanh):
    def prior_logp(self, x):
        return super().prior_logp(x.double())


class DriftCentresBatch(Tanh):
    def drift(self, x, t):
        return -torch.tanh(x) + 0.1 * x.mean(0)


class DiffusionOfFirstTime(MeanReverting):
    def diffusion(self, x, t):
        return super().diffusion(x, t[:1].expand_as(t))


class DriftInPlace(MeanReverting):
    def drift(self, x, t):
        x -= self.mu
        return -expand_like(self.rate(t), x) * x


class DriftDetached(Tanh):
    """No gradient passes: the divergence of the flow, and with it every likelihood, is wrong in silence."""

    def drift(self, x, t):
        return super().drift(x.detach(), t)


class DenoisePlusMean(MeanReverting):
    """Tweedie's formula without what the mean adds."""

    can_denoise = True

    def denoise(self, score_fn, x, t):
        m, std = expand_like(self.decay(t), x), self.marginal_prob(x, t)[1]
        return (x + std**2 * score_fn(x, t)) / m


MUTANTS = [
    (DriftSign, "drift"),
    (DriftForgetsMean, "drift"),
    (DriftOfEnd, "drift"),
    (DriftRightAtHalf, "drift"),
    (NoiseWithoutTwo, "diffusion"),
    (NoiseSquared, "diffusion"),
    (MarginalVariance, "marginal_prob"),
    (MarginalHalfRate, "marginal_prob"),
    (MarginalMeanAddsMu, "marginal_prob"),
    (MarginalOfFirstTime, "marginal_prob.*(batch|other)"),
    (PriorDrawsUncentred, "prior_sampling and prior_logp disagree"),
    (PriorCentredAtZero, "prior.*mean"),
    (PriorVariance, "prior"),
    (PriorIgnoresNoise, "prior_sampling.*noise"),
    (PriorIgnoresDtype, "prior_sampling.*dtype"),
    (PriorIgnoresDevice, "prior_sampling.*device"),
    (PriorOneNumberPerSample, "prior_sampling and prior_logp disagree"),
    (PriorUnnormalised, "normalis"),
    (PriorScaleForgotten, "prior"),
    (WellUpsideDown, "drift"),
    (StratonovichDrift, "prior.*drift"),
    (DivergenceForgotten, "diffusion_sq_divergence"),
    (DivergenceOfG, "diffusion_sq_divergence"),
    (DivergenceSummed, "diffusion_sq_divergence"),
    (DivergenceSign, "diffusion_sq_divergence"),
    (ClaimsAdditive, "additive_noise"),
    (SquareOfFirstPower, "apply_diffusion_sq"),
    (MatrixTransposed, "apply_diffusion_sq"),
    (MatrixSquareForgotten, "apply_diffusion_sq"),
    (EtaIgnored, "reverse.*eta"),
    (EtaRoundedUp, "reverse.*eta"),
    (DriftOnCPU, "drift.*device"),
    (DiffusionOnCPU, "diffusion.*device"),
    (DriftInFloat64, "drift.*float64"),
    (MarginalInFloat32, "marginal_prob.*float32"),
    (PriorLogpInFloat64, "prior_logp.*float64"),
    (DriftCentresBatch, "drift.*(batch|other)"),
    (DiffusionOfFirstTime, "diffusion.*(batch|other)"),
    (DriftInPlace, "drift.*in place"),
    (DriftDetached, "drift.*gradient"),
    (DenoisePlusMean, "denoise"),
]


@pytest.mark.parametrize("mutant, words", MUTANTS, ids=lambda v: getattr(v, "__name__", ""))
def test_mistakes_are_found_and_placed(mutant, words):
    with pytest.raises(CheckFailed, match=words):
        check_sde(mutant())
