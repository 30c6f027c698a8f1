"""Laws in the plane whose density and score are known exactly, at every noise level of a linear SDE.

A linear SDE turns data x0 into x_t = m x0 + s z, z ~ N(0, I), with m and s from `sde.marginal_coeffs(t)`. For a mixture
of Gaussians and for uniform rectangles the law of x_t is known in closed form, so a sampler's output can be held
against the truth, by `log_prob_t` and `score_t`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sde_score.data.base import DATASETS, DataSplits, TensorSplit
from sde_score.data.info import Condition, DataInfo
from sde_score.protocols import NoiseFn
from sde_score.tensors import GeneratorNoise, draw_uniform, mix_seed

LOG_2PI = math.log(2 * math.pi)


def _column(value: float | Tensor, x: Tensor) -> Tensor:
    """A number or `(B,)` as something that broadcasts against `(B, K)`."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if value.ndim > 1 or (value.ndim == 1 and len(value) not in (1, len(x))):
        raise ValueError(f"A coefficient is a number or has shape (B,) = ({len(x)},); got {tuple(value.shape)}.")
    return value.reshape(-1, 1)


class Law(ABC):
    """A probability law on vectors `(B, D)` with exact samples, density and score."""

    dim: int = 2
    num_classes: int | None = None

    @abstractmethod
    def sample_labelled(self, n: int, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        """`n` samples `(n, D)`, float32, and the number of the part each one comes from, `(n,)`."""

    @abstractmethod
    def log_prob_t(self, x: Tensor, mean_coeff: float | Tensor, std: float | Tensor) -> Tensor:
        """log density at `x: (B, D)` of mean_coeff * x0 + std * z, in nats, `(B,)`; coefficients are numbers or
        `(B,)`."""

    @abstractmethod
    def score_t(self, x: Tensor, mean_coeff: float | Tensor, std: float | Tensor) -> Tensor:
        """Gradient of `log_prob_t` with respect to x, `(B, D)`."""

    def sample(self, n: int, noise: NoiseFn | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` samples `(n, D)`, float32, from `noise` or else from `generator` (default: torch's global one)."""
        return self.sample_labelled(n, noise if noise is not None else GeneratorNoise(generator))[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of the data themselves, in nats: `(B, D) -> (B,)`."""
        return self.log_prob_t(x, 1.0, 0.0)

    def score(self, x: Tensor) -> Tensor:
        """Score of the data themselves: `(B, D) -> (B, D)`."""
        return self.score_t(x, 1.0, 0.0)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"{type(self).__name__} is a law of vectors: x is (B, {self.dim}); got {tuple(x.shape)}.")


class MixtureLaw(Law):
    """A mixture of isotropic Gaussians: p(x) = sum_k w_k N(x; mu_k, s_k^2 I).

    Under a linear SDE it stays one: means m mu_k, variances m^2 s_k^2 + std^2.

    Args:
        means: `(K, D)`.
        stds: a number or `(K,)`.
        weights: `(K,)`, positive, normalised here; equal by default.
        labels: `(K,)` int64, the class of each component; by default its number.
    """

    def __init__(
        self, means: Tensor, stds: float | Tensor, weights: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2:
            raise ValueError(f"`MixtureLaw(means=...)` has shape (K, D); got {tuple(self.means.shape)}.")
        K = len(self.means)
        self.stds = torch.as_tensor(stds, dtype=torch.float64).expand(K)
        weights = torch.as_tensor([1.0] * K if weights is None else weights, dtype=torch.float64)
        if weights.shape != (K,) or not (weights > 0).all() or not (self.stds > 0).all():
            raise ValueError("`MixtureLaw(weights=..., stds=...)` must be positive, one for each component.")
        self.weights = weights.double() / weights.double().sum()
        self.labels = torch.arange(K) if labels is None else labels
        self.num_classes = int(self.labels.max()) + 1
        self.dim = self.means.shape[1]

    def sample_labelled(self, n: int, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        u = draw_uniform(noise, torch.empty(n, 1, dtype=torch.float32))[:, 0].double()
        k = torch.searchsorted(self.weights.cumsum(0), u, right=True).clamp_max(len(self.means) - 1)
        x = self.means[k] + self.stds[k, None] * noise(torch.empty(n, self.dim, dtype=torch.float32)).double()
        return x.float(), self.labels[k]

    def _components(self, x: Tensor, mean_coeff: float | Tensor, std: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(means `(K, D)` as x has them, variances `(B or 1, K)`, log w_k N_k(x) `(B, K)`)."""
        self._check(x)
        m, s = _column(mean_coeff, x), _column(std, x)
        means, stds, weights = (v.to(x.dtype).to(x.device) for v in (self.means, self.stds, self.weights))
        variances = (m * stds).square() + s.square()
        # Axis by axis: with hundreds of components a (B, K, D) tensor would take most of the time.
        distance_sq = sum((x[:, d, None] - m * means[:, d]).square() for d in range(self.dim))
        log_terms = weights.log() - 0.5 * (distance_sq / variances + self.dim * (variances.log() + LOG_2PI))
        return means, variances, log_terms

    def log_prob_t(self, x: Tensor, mean_coeff: float | Tensor, std: float | Tensor) -> Tensor:
        return self._components(x, mean_coeff, std)[2].logsumexp(1)

    def score_t(self, x: Tensor, mean_coeff: float | Tensor, std: float | Tensor) -> Tensor:
        # sum_k r_k (m mu_k - x) / v_k, with r_k the probability that x came from component k.
        means, variances, log_terms = self._components(x, mean_coeff, std)
        pull = log_terms.softmax(1) / variances
        return _column(mean_coeff, x) * (pull @ means) - pull.sum(1, keepdim=True) * x


class Checkerboard(Law):
    """Uniform on the dark squares of a board over [-width/2, width/2]^2, blurred by N(0, blur^2 I).

    On one square [a, b] x [c, d] the noisy density is a product over the axes of (Phi((b m - x)/s) - Phi((a m - x)/s))
    / (m (b - a)), with s^2 = m^2 blur^2 + std^2. The blur makes the data's own score finite; with `blur=0` the score is
    0 inside the squares and does not exist elsewhere (`ValueError`).
    """

    def __init__(self, squares: int = 4, width: float = 4.0, blur: float = 0.02) -> None:
        if squares < 2 or not width > 0 or not blur >= 0:
            raise ValueError(
                f"`Checkerboard` needs squares >= 2, width > 0, blur >= 0; got {squares}, {width}, {blur}."
            )
        self.squares, self.width, self.blur = squares, float(width), float(blur)
        self.edges = torch.linspace(-width / 2, width / 2, squares + 1, dtype=torch.float64)
        i, j = torch.meshgrid(torch.arange(squares), torch.arange(squares), indexing="ij")
        self.dark = torch.stack([i, j], -1)[(i + j) % 2 == 0]  # (K, 2): the interval of each axis
        self.num_classes = len(self.dark)

    def sample_labelled(self, n: int, noise: NoiseFn) -> tuple[Tensor, Tensor]:
        u = draw_uniform(noise, torch.empty(n, 3, dtype=torch.float32))
        k = (u[:, 0] * len(self.dark)).long().clamp_max(len(self.dark) - 1)
        side = self.width / self.squares
        x = self.edges[self.dark[k]] + side * u[:, 1:].double()
        if self.blur:
            x = x + self.blur * noise(torch.empty(n, 2, dtype=torch.float32)).double()
        return x.float(), k

    def _bounds(
        self, x: Tensor, mean_coeff: float | Tensor, std: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Edges a, b `(B or 1, 1, S)`, x as `(B, 2, 1)` and s `(B or 1, 1, 1)`."""
        self._check(x)
        m, s = _column(mean_coeff, x), _column(std, x)
        s = ((m * self.blur).square() + s.square()).sqrt()
        edges = (m * self.edges.to(x.dtype).to(x.device))[:, None, :]
        return edges[..., :-1], edges[..., 1:], x[:, :, None], s[:, :, None]

    def _log_intervals(self, x: Tensor, mean_coeff: float | Tensor, std: float | Tensor) -> tuple[Tensor, Tensor]:
        """Per axis and interval: log of the noisy density `(B, 2, S)` and its derivative with respect to x."""
        a, b, x, s = self._bounds(x, mean_coeff, std)
        if not bool((s > 0).all()):
            if bool((s > 0).any()):
                raise ValueError("The noise levels of one batch must be all zero or all positive.")
            inside = (x >= a) & (x < b)
            return torch.where(inside, -(b - a).log(), -math.inf), torch.zeros_like(inside, dtype=x.dtype)
        low, high = (a - x) / s, (b - x) / s
        # Phi(high) - Phi(low) in the tail where both are small, so that nothing cancels.
        right = low + high > 0
        near, far = torch.where(right, -low, high), torch.where(right, -high, low)
        log_near, log_far = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
        log_mass = log_near + torch.log(-torch.expm1(log_far - log_near))
        log_phi_low, log_phi_high = (-0.5 * (v.square() + LOG_2PI) for v in (low, high))
        slope = ((log_phi_low - log_mass).exp() - (log_phi_high - log_mass).exp()) / s
        return log_mass - (b - a).log(), slope

    def _squares(self, log_intervals: Tensor) -> Tensor:
        """log of each dark square's share of the density, `(B, K)`."""
        i, j = self.dark.to(log_intervals.device).T
        return log_intervals[:, 0, i] + log_intervals[:, 1, j] - math.log(len(self.dark))

    def log_prob_t(self, x: Tensor, mean_coeff: float | Tensor, std: float | Tensor) -> Tensor:
        return self._squares(self._log_intervals(_wide(x), mean_coeff, std)[0]).logsumexp(1).to(x.dtype)

    def score_t(self, x: Tensor, mean_coeff: float | Tensor, std: float | Tensor) -> Tensor:
        log_intervals, slope = self._log_intervals(_wide(x), mean_coeff, std)
        log_terms = self._squares(log_intervals)
        outside = log_terms.logsumexp(1).isneginf()
        if outside.any():
            raise ValueError(
                f"Without noise the density is 0 at {int(outside.sum())} of {len(x)} points: no score there. Use "
                "`Checkerboard(blur=0.02)`."
            )
        shares = log_terms.softmax(1)
        i, j = self.dark.to(x.device).T
        return torch.stack([(shares * slope[:, 0, i]).sum(1), (shares * slope[:, 1, j]).sum(1)], 1).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """float64 where the device has it: differences of distribution functions lose digits at large noise."""
    return x if x.device.type == "mps" else x.double()


def mixture_grid_law(side: int = 3, spacing: float = 1.5, std: float = 0.15) -> MixtureLaw:
    """`side` x `side` equal Gaussians on a square grid around the origin."""
    if side < 1:
        raise ValueError(f"`mixture_grid(side=...)` must be at least 1; got {side}.")
    axis = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return MixtureLaw(torch.cartesian_prod(axis, axis).reshape(-1, 2), std)


def two_moons_law(std: float = 0.1, components: int = 128) -> MixtureLaw:
    """Two half circles of radius 1, interlocked and centred, with Gaussian noise.

    Each arc is a chain of `components` equal Gaussians: a mixture, so everything is exact, and with the default spacing
    of 0.025 against a width of 0.1 no different to the eye or to a test from the noisy arc.
    """
    angle = (torch.arange(components, dtype=torch.float64) + 0.5) * math.pi / components
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    centre = torch.tensor([0.5, 0.25], dtype=torch.float64)
    labels = torch.arange(2).repeat_interleave(components)
    return MixtureLaw(torch.cat([upper, lower]) - centre, std, labels=labels)


def swiss_roll_law(std: float = 0.08, components: int = 512) -> MixtureLaw:
    """A spiral r = angle / (2.25 pi), angle from 1.5 pi to 4.5 pi, as a chain of `components` equal Gaussians."""
    angle = 1.5 * math.pi + 3 * math.pi * (torch.arange(components, dtype=torch.float64) + 0.5) / components
    radius = angle / (2.25 * math.pi)
    return MixtureLaw(
        torch.stack([radius * angle.cos(), radius * angle.sin()], 1),
        std,
        labels=torch.zeros(components, dtype=torch.int64),
    )


def law_splits(law: Law, name: str, *, n_train: int, n_test: int, seed: int, labels: bool) -> DataSplits:
    """A data set of `n_train` + `n_test` samples of a law, with the law beside them."""
    parts = []
    for stream, (part, n) in enumerate((("train", n_train), ("test", n_test))):
        if n < 1:
            raise ValueError(f"`{name}(n_{part}=...)` must be positive; got {n}.")
        generator = torch.Generator().manual_seed(mix_seed(seed, stream))
        x, y = law.sample_labelled(n, GeneratorNoise(generator))
        parts.append(TensorSplit(x, {"y": y} if labels else None, name=f"{name}/{part}"))
    info = DataInfo(name, (law.dim,), conditions={"y": Condition(num=law.num_classes)} if labels else {})
    return DataSplits(parts[0], parts[1], info, law=law)


@DATASETS.register("mixture_grid")
def mixture_grid(
    side: int = 3,
    spacing: float = 1.5,
    std: float = 0.15,
    n_train: int = 50_000,
    n_test: int = 10_000,
    seed: int = 0,
    labels: bool = False,
) -> DataSplits:
    """2-D: a grid of equal Gaussians (exact density and score; labels: which one)."""
    law = mixture_grid_law(side, spacing, std)
    return law_splits(law, "mixture_grid", n_train=n_train, n_test=n_test, seed=seed, labels=labels)


@DATASETS.register("two_moons")
def two_moons(
    std: float = 0.1, n_train: int = 50_000, n_test: int = 10_000, seed: int = 0, labels: bool = False
) -> DataSplits:
    """2-D: two interlocked half circles (exact density and score; labels: which one)."""
    return law_splits(two_moons_law(std), "two_moons", n_train=n_train, n_test=n_test, seed=seed, labels=labels)


@DATASETS.register("swiss_roll")
def swiss_roll(std: float = 0.08, n_train: int = 50_000, n_test: int = 10_000, seed: int = 0) -> DataSplits:
    """2-D: a spiral (exact density and score)."""
    return law_splits(swiss_roll_law(std), "swiss_roll", n_train=n_train, n_test=n_test, seed=seed, labels=False)


@DATASETS.register("checkerboard")
def checkerboard(
    squares: int = 4,
    width: float = 4.0,
    blur: float = 0.02,
    n_train: int = 50_000,
    n_test: int = 10_000,
    seed: int = 0,
    labels: bool = False,
) -> DataSplits:
    """2-D: the dark squares of a board (exact density and score; labels: which square)."""
    law = Checkerboard(squares, width, blur)
    return law_splits(law, "checkerboard", n_train=n_train, n_test=n_test, seed=seed, labels=labels)
