"""Likelihoods of simple models, to stand beside the bits/dim of a score model.

All are probability mass functions on integer images with values in ``0 .. levels - 1``:

    bpd(x) = -log2 p(x) / D,    D = number of values of one sample,

so that they may be compared with a continuous model's bits/dim under uniform dequantisation, which bounds the
discrete one from above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_score.metrics.base import MetricResult, data_hash
from sde_score.metrics.errors import standard_error


def _as_levels(x: Tensor, levels: int) -> Tensor:
    """``(N, D)`` int64, or an error which says what is wrong."""
    x = torch.as_tensor(x).cpu()
    if x.dtype.is_floating_point and not (x.isfinite() & (x == x.round())).all():
        raise ValueError("Baselines need integer grey levels. Multiply images in [0, 1] by levels - 1 and round.")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"Baselines need images (N, *), got {tuple(x.shape)}.")
    x = x.reshape(x.shape[0], -1).long()
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= levels:
        raise ValueError(
            f"Values run from {low} to {high}, outside 0 .. {levels - 1}. Write levels={high + 1} or rescale."
        )
    return x


class Uniform:
    """Every level of every pixel equally likely: log2(levels) bits per dimension."""

    name = "uniform"

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def fit(self, x: Tensor) -> Uniform:
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        x = _as_levels(x, self.levels)
        return torch.full((len(x),), -x.shape[1] * math.log(self.levels), dtype=torch.float64)


class CategoricalMixture:
    """Mixture of products of categoricals, fitted by expectation maximisation.

        p(x) = sum over k of w_k prod over d of p_kd(x_d)

    With r_nk the responsibilities, n_k = sum over n of r_nk and n_kd(v) = sum over n with x_nd = v of r_nk, and a
    Dirichlet prior (Laplace smoothing) on weights and categoricals:

        E:  r_nk = w_k p_k(x_n) / p(x_n)
        M:  w_k = (n_k + a) / (N + a K),    p_kd(v) = (n_kd(v) + a) / (n_k + a L)

    Dempster, Laird & Rubin 1977, "Maximum likelihood from incomplete data via the EM algorithm". EM never lowers the
    penalised log-likelihood, log p(data) + a (sum of log w + sum of log p_kd(v)), and ``history`` holds it.

    Args:
        levels: number of grey levels L.
        components: K; 1 gives independent pixels.
        smoothing: a, pseudo-counts per level.
        iterations: EM steps, at most.
        tolerance: stop when a step gains less than this, in nats per sample.
        seed: of the initial responsibilities.

    Raises:
        ValueError: levels, components or smoothing without meaning; images that are no integers in 0 .. L - 1.
    """

    def __init__(
        self,
        levels: int,
        components: int = 10,
        smoothing: float = 0.1,
        iterations: int = 200,
        tolerance: float = 1e-4,
        seed: int = 0,
    ) -> None:
        if levels < 2 or components < 1 or smoothing <= 0:
            raise ValueError(
                f"CategoricalMixture(levels={levels}, components={components}, smoothing={smoothing}): needs at least "
                "two levels, one component and a positive smoothing (else an unseen level has probability zero)."
            )
        self.levels, self.components, self.smoothing = levels, components, smoothing
        self.iterations, self.tolerance, self.seed = iterations, tolerance, seed
        self.log_weights: Tensor | None = None  # (K,)
        self.log_table: Tensor | None = None  # (D, L, K)
        self.history: list[float] = []

    @property
    def name(self) -> str:
        return "independent pixels" if self.components == 1 else f"mixture of {self.components}"

    def fit(self, x: Tensor) -> CategoricalMixture:
        """Fit to integer images ``(N, *)``; returns itself."""
        x = _as_levels(x, self.levels)
        generator = torch.Generator().manual_seed(self.seed)
        resp = self._start(x, generator)
        self.history = []
        self._maximise(x, resp)
        for _ in range(self.iterations):
            joint = self._joint(x)
            log_prob = joint.logsumexp(1)
            penalty = self.smoothing * float(self.log_table.sum() + self.log_weights.sum())
            self.history.append(float(log_prob.sum()) + penalty)
            if self.components == 1:
                break  # the first step is exact
            if len(self.history) > 1 and self.history[-1] - self.history[-2] < self.tolerance * len(x):
                break
            self._maximise(x, (joint - log_prob[:, None]).exp())
        return self

    def _start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Initial responsibilities ``(N, K)``: soft assignments to K images that lie far apart (the rule of k-means++).
        Nearly equal components would cost EM many steps; equal ones would stay equal for ever, hence the jitter."""
        noise = torch.rand(len(x), self.components, generator=generator, dtype=torch.float64)
        if self.components == 1:
            return torch.ones_like(noise)
        y = x.double()
        chosen = [int(torch.randint(len(y), (), generator=generator))]
        distances = [(y - y[chosen[0]]).square().sum(1)]
        while len(chosen) < self.components:
            nearest = torch.stack(distances).amin(0)
            weights = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
            # Searched in the cumulated weights: torch.multinomial stops at 2^24 categories.
            target = torch.rand((), generator=generator, dtype=torch.float64) * weights.sum()
            chosen.append(min(int(torch.searchsorted(weights.cumsum(0), target, right=True)), len(y) - 1))
            distances.append((y - y[chosen[-1]]).square().sum(1))
        d2 = torch.stack(distances, 1)
        scale = 4 / d2.mean().clamp(min=1e-300)
        return torch.softmax(-scale * d2 + 0.2 * noise, dim=1)

    def _maximise(self, x: Tensor, resp: Tensor) -> None:
        """The M step: smoothed relative frequencies under the responsibilities ``(N, K)``."""
        n, dims = x.shape
        counts = torch.zeros(dims * self.levels, self.components, dtype=torch.float64)
        offsets = torch.arange(dims) * self.levels
        chunk = max(1, 5_000_000 // (dims * self.components))
        for part, r in zip(x.split(chunk), resp.split(chunk), strict=True):
            counts.index_add_(0, (part + offsets).flatten(), r.repeat_interleave(dims, 0))
        counts = counts.view(dims, self.levels, self.components) + self.smoothing
        self.log_table = (counts / counts.sum(1, keepdim=True)).log()
        weights = resp.sum(0) + self.smoothing
        self.log_weights = (weights / weights.sum()).log()

    def _joint(self, x: Tensor) -> Tensor:
        """log w_k + log p_k(x), ``(N, K)``."""
        if self.log_table is None or self.log_weights is None:
            raise ValueError("This mixture is not fitted: call fit(train_images) first.")
        dims = x.shape[1]
        if dims != self.log_table.shape[0]:
            raise ValueError(f"Fitted to samples of {self.log_table.shape[0]} values, got samples of {dims}.")
        table = self.log_table.view(dims * self.levels, self.components)
        index = x + torch.arange(dims) * self.levels
        return torch.nn.functional.embedding_bag(index, table, mode="sum") + self.log_weights

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, ``(N,)``."""
        return self._joint(_as_levels(x, self.levels)).logsumexp(1)


class IndependentPixels(CategoricalMixture):
    """One categorical for each pixel with Laplace smoothing: the mixture with a single component."""

    def __init__(self, levels: int, smoothing: float = 0.1) -> None:
        super().__init__(levels, components=1, smoothing=smoothing)


def bits_per_dim(model: Uniform | CategoricalMixture, x: Tensor) -> Tensor:
    """-log2 p(x) / D for each sample, ``(N,)``, with D the number of values of a sample."""
    return -model.log_prob(x) / (math.log(2) * x[0].numel())


def likelihood_baselines(
    train: Tensor,
    test: Tensor,
    *,
    levels: int,
    components: Sequence[int] = (10,),
    smoothing: float = 0.1,
    seed: int = 0,
) -> list[MetricResult]:
    """Bits/dim of the uniform law, of independent pixels and of mixtures, fitted to ``train`` and measured on ``test``.

    Args:
        train, test: integer images ``(N, *)`` with values in ``0 .. levels - 1``.
        levels: number of grey levels.
        components: sizes of the mixtures.
        smoothing: pseudo-counts per level.
        seed: of EM.

    Returns:
        one result for each model: the mean over the test samples with its standard error s / sqrt(N), which takes the
        fitted model as given. The uniform law's is a constant and has none.
    """
    models = [Uniform(levels), IndependentPixels(levels, smoothing)]
    models += [CategoricalMixture(levels, k, smoothing, seed=seed) for k in components]
    results = []
    for model in models:
        values = bits_per_dim(model.fit(train), test)
        provenance = {
            "metric": "bits_per_dim", "law": "discrete pmf", "levels": levels, "smoothing": smoothing, "seed": seed,
            "n_train": len(train), "n_test": len(test), "dimension": test[0].numel(),
            "train_hash": data_hash(torch.as_tensor(train)), "test_hash": data_hash(torch.as_tensor(test)),
        }  # fmt: skip
        stderr = None if isinstance(model, Uniform) else standard_error(values)  # a constant has none
        results.append(MetricResult(model.name, float(values.mean()), stderr, "lower", None, provenance))
    return results
