"""Right but unusual SDEs: the conformance checks refuse none of them. The checks of the first version refused 7 of
39.
"""

import math

import pytest
import torch

from sde_score.sdes import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, GaussianPathSDE, LinearSDE, SubVPSDE
from sde_score.tensors import expand_like, sum_except_batch
from sde_score.testing import check_sde


class ConstantBeta(LinearSDE):
    """Numbers in place of functions of time; all else derived."""

    def __init__(self, T: float, beta: float, t_min: float = 1e-5) -> None:
        super().__init__(T=T, t_min=t_min)
        self.beta = beta

    def drift_coeff(self, t):
        return -0.5 * self.beta

    def diffusion_coeff(self, t):
        return self.beta**0.5


class Diagonal(LinearSDE):
    """Rates for each channel."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(T=1.0, t_min=1e-4)
        self.shape = shape

    def rates(self, t):
        channels = torch.linspace(6.0, 20.0, self.shape[0], dtype=t.dtype, device=t.device).reshape(self.shape)
        return expand_like(0.5 + t, channels[None]) * channels

    def drift_coeff(self, t):
        return -0.5 * self.rates(t)

    def diffusion_coeff(self, t):
        return self.rates(t).sqrt()


class Mixed(LinearSDE):
    """Variance exploding in one coordinate, preserving in the other."""

    def drift_coeff(self, t):
        return torch.stack([torch.zeros_like(t), -5.0 - 5.0 * t], dim=1)

    def diffusion_coeff(self, t):
        return torch.stack([20.0 * t.sqrt(), (10.0 + 10.0 * t).sqrt()], dim=1)


class ScalarDriftDiagonalNoise(LinearSDE):
    def drift_coeff(self, t):
        return torch.full_like(t, -4.0)

    def diffusion_coeff(self, t):
        return torch.tensor([1.0, 2.0, 4.0], dtype=t.dtype, device=t.device).expand(len(t), 3)


class Expanding(LinearSDE):
    """The mean grows, and the noise faster."""

    def drift_coeff(self, t):
        return torch.ones_like(t)

    def diffusion_coeff(self, t):
        return 20.0 * t


class StartsNoisy(LinearSDE):
    """Noise in the data at time 0, and a drift."""

    std_0 = 0.3

    def drift_coeff(self, t):
        return -8.0 * t

    def diffusion_coeff(self, t):
        return 4.0 * t.sqrt()


class Piecewise(LinearSDE):
    """VP whose β changes at t = 0.4, in closed form as the docstring of LinearSDE advises."""

    at = 0.4

    def integral(self, t):
        """∫₀ᵗ β."""

    def beta(self, t):
        """β(t)."""

    def drift_coeff(self, t):
        return -0.5 * self.beta(t)

    def diffusion_coeff(self, t):
        return self.beta(t).sqrt()

    def marginal_coeffs(self, t):
        return torch.exp(-0.5 * self.integral(t)), torch.sqrt(-torch.expm1(-self.integral(t)))

    def transition(self, s, t):
        gathered = self.integral(t) - self.integral(s)
        return torch.exp(-0.5 * gathered), torch.sqrt(-torch.expm1(-gathered))


class Jump(Piecewise):
    def beta(self, t):
        return torch.where(t < self.at, 1.0, 20.0).to(t)

    def integral(self, t):
        return t + 19.0 * (t - self.at).clamp(min=0)


class Kink(Piecewise):
    def beta(self, t):
        return 2.0 + 60.0 * (t - self.at).clamp(min=0)

    def integral(self, t):
        return 2.0 * t + 30.0 * (t - self.at).clamp(min=0) ** 2


class TwoJumps(Piecewise):
    """A stretch without noise in the middle is short of nothing but noise."""

    def beta(self, t):
        return torch.where((t > 0.31) & (t < 0.62), 1.0, 15.0).to(t)

    def integral(self, t):
        return 15.0 * t - 14.0 * ((t - 0.31).clamp(min=0) - (t - 0.62).clamp(min=0))


class Straight(GaussianPathSDE):
    """α = 1 − t, σ = t."""

    def __init__(self):
        super().__init__(T=0.999, t_min=1e-4)

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


class ExplodingPath(GaussianPathSDE):
    """A path with α = 1 and noise at time 0."""

    std_0 = 0.02

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return self.std_0 + 30.0 * t**2


class ShiftedPrior(VESDE):
    """VE with the prior N(½, σ_max²): what the mean of the data leaves at T is in it."""

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return 0.5 + super().prior_sampling(shape, noise=noise, device=device, dtype=dtype)

    def prior_logp(self, x):
        return super().prior_logp(x - 0.5)


# --- general ones ---------------------------------------------------------------------------------------------------


class Normal(SDE):
    """With the prior N(prior_mean, prior_std²)."""

    prior_mean, prior_std = 0.0, 1.0

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return self.prior_mean + self.prior_std * noise(torch.empty(shape, device=device, dtype=dtype))

    def prior_logp(self, x):
        z = (x - self.prior_mean) / self.prior_std
        return sum_except_batch(-0.5 * z**2 - math.log(self.prior_std) - 0.5 * math.log(2 * math.pi))


class OtherMean(Normal):
    """dx = −θ (x − μ) dt + √(2θ) dw."""

    additive_noise = True

    def __init__(self, mean: float, theta: float = 5.0, T: float = 1.0, t_min: float = 1e-5) -> None:
        super().__init__(T=T, t_min=t_min)
        self.prior_mean, self.theta = mean, theta

    def drift(self, x, t):
        return -self.theta * (x - self.prior_mean)

    def diffusion(self, x, t):
        return torch.full_like(x, (2 * self.theta) ** 0.5)

    def marginal_prob(self, x0, t):
        t = expand_like(t, x0)
        mean = self.prior_mean + torch.exp(-self.theta * t) * (x0 - self.prior_mean)
        return mean, torch.sqrt(-torch.expm1(-2 * self.theta * t))


class GeneralVE(Normal):
    """VE written as a general SDE."""

    additive_noise = True
    low, high = 0.01, 50.0
    prior_std = 50.0

    def std(self, x, t):
        return expand_like(self.low * (self.high / self.low) ** t, x)

    def drift(self, x, t):
        return torch.zeros_like(x)

    def diffusion(self, x, t):
        return self.std(x, t) * math.sqrt(2 * math.log(self.high / self.low))

    def marginal_prob(self, x0, t):
        return x0, self.std(x0, t)


class Driven(Normal):
    """A drift that does not depend on x: dx = c(t) dt + σ dw, as a wind."""

    additive_noise = True
    prior_mean, prior_std = 6.0, 10.0

    def drift(self, x, t):
        return expand_like(12.0 * t, x).expand_as(x)

    def diffusion(self, x, t):
        return torch.full_like(x, 10.0)

    def marginal_prob(self, x0, t):
        t = expand_like(t, x0)
        return x0 + 6.0 * t**2, 10.0 * t.sqrt()


class Rotating(Normal):
    """Neighbours along the last axis turn into one another while they decay: dx = (−½ β x + ω R x) dt + √β dw, R
    antisymmetric."""

    additive_noise = True
    beta, omega = 10.0, 4.0

    def drift(self, x, t):
        left, right = torch.roll(x, 1, -1), torch.roll(x, -1, -1)
        return -0.5 * self.beta * x + self.omega * (left - right)

    def diffusion(self, x, t):
        return torch.full_like(x, self.beta**0.5)


class CriticallyDamped(Normal):
    """Position and velocity in the halves of the last axis; noise drives the velocity only (Dockhorn et al. 2022)."""

    additive_noise = True

    def __init__(self):
        super().__init__(T=6.0, t_min=1e-3)

    def drift(self, x, t):
        q, p = x.chunk(2, -1)
        return torch.cat([p, -q - 2 * p], -1)

    def diffusion(self, x, t):
        n = x.shape[-1] // 2
        return 2.0 * (torch.arange(2 * n, device=x.device) >= n).to(x.dtype).expand_as(x)


class Tanh(SDE):
    """dx = −tanh(x) dt + dw, stationary in the logistic law of scale ½."""

    def __init__(self):
        super().__init__(T=8.0, t_min=1e-4)

    def drift(self, x, t):
        return -torch.tanh(x)

    def diffusion(self, x, t):
        return torch.ones_like(x)

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        z = noise(torch.empty(shape, device=device, dtype=dtype))
        return 0.5 * (torch.special.log_ndtr(z) - torch.special.log_ndtr(-z))

    def prior_logp(self, x):
        return sum_except_batch(-2 * x - 2 * torch.nn.functional.softplus(-2 * x) + math.log(2))


class Student(SDE):
    """dx = −x dt + √(1 + x²) dw: heavy tails, noise that depends on the state."""

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
    """The exponential of an Ornstein-Uhlenbeck process: lives on x > 0 only."""

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


class MatrixNoise(Normal):
    """dx = −½ β x dt + √β Q dw with an orthogonal Q: a reversal along the last axis."""

    additive_noise = True

    def drift(self, x, t):
        return -5.0 * x

    def diffusion(self, x, t):
        raise ValueError("MatrixNoise has a matrix.")

    def apply_diffusion(self, x, t, v):
        return 10.0**0.5 * v.flip(-1)

    def apply_diffusion_sq(self, x, t, v):
        return 10.0 * v


RIGHT = {
    "constant_beta_T3": ConstantBeta(3.0, 3.0),
    "constant_beta_T1000": ConstantBeta(1000.0, 0.01, t_min=1e-2),
    "short_T": ConstantBeta(1e-3, 1e4, t_min=1e-8),
    "vp_t_min_0": VPSDE(t_min=0.0),
    "vp_t_min_1e-9": VPSDE(t_min=1e-9),
    "vp_t_min_0.05": VPSDE(t_min=0.05),
    "vp_strong": VPSDE(0.0, 100.0),
    "subvp_t_min_0": SubVPSDE(t_min=0.0),
    "subvp_strong": SubVPSDE(1.0, 40.0),
    "edm_t_min_0": EDMSDE(t_min=0.0),
    "edm_extreme": EDMSDE(T=1000.0, t_min=1e-6),
    "ve_extreme": VESDE(1e-4, 5000.0),
    "ve_t_min_0": VESDE(t_min=0.0),
    "ve_prior_mean": ShiftedPrior(),
    "cosine": CosineSDE(),
    "cosine_t_min_0": CosineSDE(t_min=0.0),
    "straight": Straight(),
    "exploding_path": ExplodingPath(),
    "diagonal_3": Diagonal((3,)),
    "diagonal_3_1_1": Diagonal((3, 1, 1)),
    "mixed_ve_vp": Mixed(),
    "scalar_drift_diagonal_noise": ScalarDriftDiagonalNoise(),
    "expanding": Expanding(),
    "starts_noisy": StartsNoisy(),
    "jump": Jump(),
    "kink": Kink(),
    "two_jumps": TwoJumps(),
    "other_mean": OtherMean(-3.0),
    "prior_mean": OtherMean(0.5),
    "other_mean_long": OtherMean(1.0, theta=0.05, T=300.0, t_min=0.0),
    "other_mean_very_long": OtherMean(1.0, theta=1.0, T=1000.0),
    "general_ve": GeneralVE(),
    "driven": Driven(),
    "rotating": Rotating(),
    "tanh": Tanh(),
    "student": Student(),
    "geometric_ou": GeometricOU(),
    "matrix_noise": MatrixNoise(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_sde_passes(name):
    check_sde(RIGHT[name])


def test_a_right_sde_of_a_shape_of_its_own_passes():
    check_sde(CriticallyDamped(), shape=(4,))
