"""The discrete chains of the published systems: SMLD for the VE SDE, DDPM for the VP SDE.

The continuous-time predictors of this library use exact transitions instead; these tables serve parity with published
samplers and networks trained on a discrete set of noise levels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_score.sdes.base import SDE, Chain
from sde_score.tensors import expand_like


class SMLDChain(Chain):
    """`x_{i+1} = x_i + √(σ_i² − σ_{i−1}²) z`, σ_i geometric from σ_min to σ_max, `σ_{−1} = 0` (Song et al. 2021, eq.
    20).
    """

    def __init__(self, sde: SDE, n: int) -> None:
        super().__init__(sde, n)
        low, high = math.log(sde.sigma_min), math.log(sde.sigma_max)
        self.sigmas = torch.exp(torch.linspace(low, high, n, dtype=torch.float32))

    def _pair(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = self.index(t)
        sigmas = self.sigmas.to(t.device)
        below = torch.where(index == 0, torch.zeros_like(t), sigmas[(index - 1).clamp(min=0)].to(t.dtype))
        return sigmas[index].to(t.dtype), below

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma, below = self._pair(t)
        return torch.zeros_like(x), expand_like(torch.sqrt(sigma**2 - below**2), x)

    def posterior(self, score: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma, below = self._pair(t)
        mean = x + expand_like(sigma**2 - below**2, x) * score
        return mean, expand_like(torch.sqrt(below**2 * (sigma**2 - below**2) / sigma**2), x)

    def marginal(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(index, dtype=torch.float32), self.sigmas.to(index.device)[index]


class DDPMChain(Chain):
    """`x_{i+1} = √(1 − β_i) x_i + √β_i z`, β_i linear from β_min/n to β_max/n (Ho et al. 2020; Song et al. 2021, eq.
    10).

    Raises `ValueError` unless `n > β_max`: with fewer steps some `1 − β_i` are not positive.
    """

    def __init__(self, sde: SDE, n: int) -> None:
        super().__init__(sde, n)
        if n <= sde.beta_max:
            raise ValueError(
                f"The DDPM chain needs more than beta_max = {sde.beta_max:g} steps (1 − beta_i must be positive); got "
                f"n={n}."
            )
        self.betas = torch.linspace(sde.beta_min / n, sde.beta_max / n, n, dtype=torch.float32)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)

    def _at(self, table: Tensor, t: Tensor) -> Tensor:
        return table.to(t.device)[self.index(t)].to(t.dtype)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        beta, alpha = self._at(self.betas, t), self._at(self.alphas, t)
        return expand_like(torch.sqrt(alpha), x) * x - x, expand_like(torch.sqrt(beta), x)

    def posterior(self, score: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = expand_like(self._at(self.betas, t), x)
        return (x + beta * score) / torch.sqrt(1.0 - beta), torch.sqrt(beta)

    def langevin_factor(self, t: Tensor) -> Tensor:
        return self._at(self.alphas, t)

    def marginal(self, index: Tensor) -> tuple[Tensor, Tensor]:
        product = self.alphas_cumprod.to(index.device)[index]
        return torch.sqrt(product), torch.sqrt(1.0 - product)
