"""The SDEs of the literature, a few lines and their equation each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_score.sdes.base import SDES
from sde_score.sdes.chains import DDPMChain, SMLDChain
from sde_score.sdes.linear import GaussianPathSDE, LinearSDE


@SDES.register("ve")
class VESDE(LinearSDE):
    """Variance exploding, the continuous NCSN: `dx = σ(t) √(2 ln(σ_max/σ_min)) dw`, `σ(t) = σ_min (σ_max/σ_min)ᵗ`.

    Marginals `N(x_0, σ(t)²)`; note `σ(0) = σ_min`, not 0 (Song et al. 2021, eq. 9 and appendix C).

    Args:
        sigma_min: noise at time 0, well below the detail to be kept.
        sigma_max: noise at time 1; a good choice is the largest distance between two data points (Song & Ermon 2020,
            technique 1).
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 1e-5) -> None:
        super().__init__(T=1.0, t_min=t_min)
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"ve needs 0 < sigma_min < sigma_max; got sigma_min={sigma_min}, sigma_max={sigma_max}.")
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.log_ratio = math.log(self.sigma_max) - math.log(self.sigma_min)
        self.std_0 = self.sigma_min

    def sigma(self, t: Tensor) -> Tensor:
        """σ(t)."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def drift_coeff(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion_coeff(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self.log_ratio)

    def marginal_coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma(t)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma(s) * torch.sqrt(torch.expm1(2 * self.log_ratio * (t - s)))

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def prior_advice(self, reach: float) -> str:
        enough = max(reach, 1.5) * self.sigma_max
        return f"Centre the data and raise sigma_max, now {self.sigma_max:g}, to about {enough:.2g}."

    def chain(self, n: int) -> SMLDChain:
        return SMLDChain(self, n)


class _LinearBeta(LinearSDE):
    """What VP and sub-VP share: `f = −½ β(t)`, `β(t) = β_min + t (β_max − β_min)`, hence `log m(t) = −¼ t² (β_max −
    β_min) − ½ t β_min`.
    """

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5, published_rounding: bool = False
    ) -> None:
        super().__init__(T=1.0, t_min=t_min)
        self.published_rounding = published_rounding
        if not 0 <= beta_min <= beta_max or beta_max == 0:
            raise ValueError(
                f"{type(self).__name__} needs 0 <= beta_min <= beta_max, beta_max > 0; got {beta_min} and {beta_max}."
            )
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def beta(self, t: Tensor) -> Tensor:
        """β(t)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_mean_coeff(self, t: Tensor) -> Tensor:
        """log m(t)."""
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def log_mean_step(self, s: Tensor, t: Tensor) -> Tensor:
        """log m(t)/m(s), without cancellation."""
        return -(t - s) * (0.25 * (t + s) * (self.beta_max - self.beta_min) + 0.5 * self.beta_min)

    def one_minus_exp(self, exponent: Tensor) -> Tensor:
        """1 − exp(exponent), exact near 0; with `published_rounding` in the published form, which cancels there."""
        return 1 - torch.exp(exponent) if self.published_rounding else -torch.expm1(exponent)

    def drift_coeff(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    @property
    def prior_std(self) -> float:
        return 1.0

    def prior_advice(self, reach: float) -> str:
        return f"Raise beta_max, now {self.beta_max:g}: 20 leaves 0.7 % of the data's mean at T."


@SDES.register("vp")
class VPSDE(_LinearBeta):
    """Variance preserving, the continuous DDPM: `dx = −½ β(t) x dt + √β(t) dw`, `β(t) = β_min + t (β_max − β_min)`.

    Marginals `N(m x_0, 1 − m²)` with `log m = −¼ t² (β_max − β_min) − ½ t β_min` (Song et al. 2021, eq. 11 and appendix
    C). The variance is taken as `−expm1(2 log m)`: the published float32 `1 − exp(2 log m)` is wrong by 0.6 % of std at
    t = 1e-5, and `published_rounding=True` reproduces it.
    """

    def diffusion_coeff(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.beta(t))

    def marginal_coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_mean = self.log_mean_coeff(t)
        return torch.exp(log_mean), torch.sqrt(self.one_minus_exp(2 * log_mean))

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_mean = self.log_mean_step(s, t)
        return torch.exp(log_mean), torch.sqrt(-torch.expm1(2 * log_mean))

    def chain(self, n: int) -> DDPMChain:
        return DDPMChain(self, n)


@SDES.register("subvp")
class SubVPSDE(_LinearBeta):
    """Sub-VP: the drift of VP with less noise, `g² = β(t) (1 − m(t)⁴)`; marginals `N(m x_0, (1 − m²)²)`.

    Favours likelihoods (Song et al. 2021, eq. 12 and appendix C). Note `std = 1 − m²`, not its root.
    """

    def diffusion_coeff(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.beta(t) * self.one_minus_exp(4 * self.log_mean_coeff(t)))

    def marginal_coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_mean = self.log_mean_coeff(t)
        return torch.exp(log_mean), self.one_minus_exp(2 * log_mean)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # std_t² − a² std_s² = (1 − a²)(1 − m_s² m_t²), which does not cancel
        step, both = self.log_mean_step(s, t), self.log_mean_coeff(s) + self.log_mean_coeff(t)
        return torch.exp(step), torch.sqrt(torch.expm1(2 * step) * torch.expm1(2 * both))


@SDES.register("cosine")
class CosineSDE(GaussianPathSDE):
    """The cosine schedule in continuous time: `α = cos φ(t) / cos φ(0)`, variance preserving, `φ(t) = (π/2) (t + s)/(1
    + s)`.

    `α(0) = 1` and `σ² = 1 − α²` (Nichol & Dhariwal 2021, eq. 17). The drift is infinite at t = 1, where α = 0, so the
    process ends at `T < 1`; its α(T) of about 0.008 is left out of the prior N(0, 1).
    """

    def __init__(self, s: float = 0.008, T: float = 0.995, t_min: float = 1e-4) -> None:
        super().__init__(T=T, t_min=t_min)
        if not (0 <= s and T < 1):
            raise ValueError(f"cosine needs s >= 0 and T < 1 (the drift is infinite at 1); got s={s}, T={T}.")
        self.s = float(s)

    def _angle(self, t: Tensor) -> Tensor:
        return (math.pi / 2) * (t + self.s) / (1 + self.s)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t)) / math.cos(math.pi / 2 * self.s / (1 + self.s))

    def sigma(self, t: Tensor) -> Tensor:
        # 1 − cos²b/cos²a = sin(b − a) sin(b + a)/cos²a, b − a = (π/2) t/(1 + s): exact near t = 0
        start = math.pi / 2 * self.s / (1 + self.s)
        step = (math.pi / 2) * t / (1 + self.s)
        return torch.sqrt(torch.sin(step) * torch.sin(step + 2 * start)) / math.cos(start)

    def diffusion_coeff(self, t: Tensor) -> Tensor:
        return torch.sqrt(-2 * self.drift_coeff(t))  # variance preserving: g² = −2 f

    def drift_coeff(self, t: Tensor) -> Tensor:
        return -(math.pi / 2) / (1 + self.s) * torch.tan(self._angle(t))

    @property
    def prior_std(self) -> float:
        return 1.0


@SDES.register("edm")
class EDMSDE(LinearSDE):
    """Variance exploding with `σ(t) = t`: `dx = √(2t) dw` on `[0, T]` (Karras et al. 2022, table 1, "Ours")."""

    def __init__(self, T: float = 80.0, t_min: float = 0.002) -> None:
        super().__init__(T=T, t_min=t_min)

    def drift_coeff(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion_coeff(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * t)

    def marginal_coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.sqrt((t - s) * (t + s))
