"""Parameterisations: what the network predicts, what it is told of the noise level, and how the noise ε̂ of
`x_t = m x_0 + std ε` follows.

Every parameterisation returns ε̂, since `score = −ε̂/std` divides no nearly equal numbers, whatever the network
predicts. With `σ = std/m` the noise level in units of the data, `σ_d` the data's standard deviation and `r = √(m² σ_d²
+ std²)` that of `x_t`:

    eps     ε̂ = F(x/r)
    x0      ε̂ = (x − m F(x/r))/std
    v       ε̂ = σ_v x/r' + α_v F(x/r),        α_v = m/r', σ_v = std/r', r' = √(m² + std²)
    score   ε̂ = −std F(x)
    edm     ε̂ = (σ y − σ_d √(σ² + σ_d²) F(y/√(σ² + σ_d²)))/(σ² + σ_d²),   y = x/m

Sources: eps Ho et al. 2020; v Salimans & Ho 2022; edm Karras et al. 2022, table 1, solved for ε.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from sde_score.registry import Registry, suggest
from sde_score.score import Prediction
from sde_score.sdes.base import SDE, require_sde
from sde_score.tensors import expand_like

PARAMETERIZATIONS: Registry[Parameterization] = Registry("parameterization", group="sde_score.parameterizations")

C_NOISE: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    # ln(std/m): our own default, the same scale for every linear SDE
    "log_sigma": lambda sde, t: -0.5 * sde.log_snr(t),
    "sigma": lambda sde, t: torch.exp(-0.5 * sde.log_snr(t)),  # published continuous VE
    "999t": lambda sde, t: 999 * t,  # published continuous VP and sub-VP
    "quarter_log_sigma": lambda sde, t: -0.125 * sde.log_snr(t),  # EDM's c_noise
    # the same for networks that take its logarithm
    "fourth_root_sigma": lambda sde, t: torch.exp(-0.125 * sde.log_snr(t)),
    "t": lambda sde, t: t / sde.T,
}
"""What a network is told about the noise level, by name."""

Network = Callable[..., Tensor]


class Parameterization(ABC):
    """How a network's output becomes the noise ε̂ in `x_t`.

    `c_noise` names what the network is told of the noise level (see `C_NOISE`).
    """

    def __init__(self, sde: SDE, c_noise: str = "log_sigma", sigma_data: float = 0.5) -> None:
        if c_noise not in C_NOISE:
            raise ValueError(f"Unknown c_noise {c_noise!r}.{suggest(c_noise, C_NOISE)}")
        if not sigma_data > 0:
            raise ValueError(
                f"sigma_data is the standard deviation of the scaled data and must be positive; got {sigma_data}."
            )
        self.sde, self.c_noise_name, self.sigma_data = require_sde(sde), c_noise, float(sigma_data)

    def c_noise(self, t: Tensor) -> Tensor:
        """What the network is told of the noise level for times `(B,)`."""
        return C_NOISE[self.c_noise_name](self.sde, t)

    def coeffs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`m` and `std`, broadcastable to `x`."""
        mean_coeff, std = self.sde.marginal_coeffs(t)
        return expand_like(mean_coeff, x), expand_like(std, x)

    def std(self, x: Tensor, t: Tensor) -> Tensor:
        """The std that turns ε̂ into a score, broadcastable to `x`."""
        return self.sde.marginal_prob(x, t)[1]

    def check_output(self, out: Tensor, x: Tensor) -> None:
        """Refuse an output of the network that this parameterisation cannot read. Raises `ValueError`."""
        if out.shape != x.shape:
            raise ValueError(
                f"The network returned shape {tuple(out.shape)} for x of shape {tuple(x.shape)}; they must be equal."
            )

    @abstractmethod
    def eps(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """ε̂(x, t), of the shape of `x`."""

    def predict(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        """Score, ε̂ and posterior mean from one call of the network."""
        eps = self.eps(network, x, t, **cond)
        return Prediction(self.sde, x, t, eps=eps, score=-eps / self.std(x, t))

    def score(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The score, `−ε̂/std`."""
        return -self.eps(network, x, t, **cond) / self.std(x, t)

    def eps_at_index(self, network: Network, x: Tensor, index: Tensor, **cond: Tensor) -> Tensor:
        """ε̂ at a state of a discrete chain, for parameterisations that know one."""
        raise ValueError(
            f"The parameterisation of this model, {type(self).__name__}, is continuous in time; train it with 'dsm', "
            "or choose the parameterisation 'smld' or 'ddpm' for discrete training."
        )


@PARAMETERIZATIONS.register("eps")
class EpsParameterization(Parameterization):
    """The network predicts the noise. With `scale_input=False` it sees x itself, as in the published VP models."""

    def __init__(self, sde: SDE, c_noise: str = "log_sigma", sigma_data: float = 0.5, scale_input: bool = True) -> None:
        super().__init__(sde, c_noise, sigma_data)
        self.scale_input = scale_input

    def eps(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        if not self.scale_input:
            return network(x, self.c_noise(t), **cond)
        m, std = self.coeffs(x, t)
        return network(x / torch.sqrt((m * self.sigma_data) ** 2 + std**2), self.c_noise(t), **cond)


@PARAMETERIZATIONS.register("x0")
class X0Parameterization(Parameterization):
    """The network predicts the data. Near t_min the noise is a small difference; prefer 'v' or 'edm' where scores
    matter there.
    """

    def eps(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        m, std = self.coeffs(x, t)
        return (x - m * network(x / torch.sqrt((m * self.sigma_data) ** 2 + std**2), self.c_noise(t), **cond)) / std


@PARAMETERIZATIONS.register("v")
class VParameterization(Parameterization):
    """The network predicts `v = α_v ε − σ_v x_0`, after scaling the path to a variance-preserving one."""

    def eps(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        m, std = self.coeffs(x, t)
        radius = torch.sqrt(m**2 + std**2)
        v = network(x / torch.sqrt((m * self.sigma_data) ** 2 + std**2), self.c_noise(t), **cond)
        return (std * (x / radius) + m * v) / radius


@PARAMETERIZATIONS.register("score")
class ScoreParameterization(Parameterization):
    """The network's output is the score itself, and it sees x itself: the published VE models (which divide by σ
    inside). ε̂ follows from `score`: a subclass overrides that one.
    """

    def eps(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return -self.std(x, t) * self.score(network, x, t, **cond)

    def score(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return network(x, self.c_noise(t), **cond)

    def predict(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        score = self.score(network, x, t, **cond)
        return Prediction(self.sde, x, t, score=score, eps=-self.std(x, t) * score)


@PARAMETERIZATIONS.register("edm")
class EDMParameterization(Parameterization):
    """EDM preconditioning: input, output and target of unit variance at every noise level, for any linear SDE."""

    def eps(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        m, std = self.coeffs(x, t)
        y, sigma = x / m, std / m
        total = torch.sqrt(sigma**2 + self.sigma_data**2)
        out = network(y / total, self.c_noise(t), **cond)
        return (sigma / total) * (y / total) - (self.sigma_data / total) * out


@PARAMETERIZATIONS.register("smld")
class SMLDParameterization(ScoreParameterization):
    """Published discrete VE models: the network gives the score and is told the number of a noise level, 0 the largest.

    `c_noise = round((T − t)(n − 1)/T)`, as an integer.
    """

    def __init__(self, sde: SDE, n: int = 1000) -> None:
        super().__init__(sde)
        self.n, self.chain = int(n), sde.chain(n)

    def c_noise(self, t: Tensor) -> Tensor:
        return torch.round((self.sde.T - t) * (self.n - 1) / self.sde.T).long()

    def eps_at_index(self, network: Network, x: Tensor, index: Tensor, **cond: Tensor) -> Tensor:
        return -expand_like(self.chain.marginal(index)[1], x) * network(x, self.n - 1 - index, **cond)


@PARAMETERIZATIONS.register("ddpm")
class DDPMParameterization(Parameterization):
    """Published discrete VP models: the network predicts the noise at `c_noise = t (n − 1)`, std from the chain's
    cumulative product.

    With `round_c_noise` it is a whole number, as in training; the published sampler leaves it fractional.
    """

    def __init__(self, sde: SDE, n: int = 1000, round_c_noise: bool = False) -> None:
        super().__init__(sde)
        self.n, self.chain, self.round_c_noise = int(n), sde.chain(n), round_c_noise

    def c_noise(self, t: Tensor) -> Tensor:
        c_noise = t * (self.n - 1) / self.sde.T
        return torch.round(c_noise) if self.round_c_noise else c_noise

    def std(self, x: Tensor, t: Tensor) -> Tensor:
        return expand_like(self.chain.marginal(self.c_noise(t).long())[1].to(x.dtype), x)

    def eps(self, network: Network, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return network(x, self.c_noise(t), **cond)

    def eps_at_index(self, network: Network, x: Tensor, index: Tensor, **cond: Tensor) -> Tensor:
        return network(x, index, **cond)
