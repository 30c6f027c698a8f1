"""Does the model copy its training set? Nearest neighbours against what held-out data do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_score.metrics.base import METRICS, FeatureSet, Metric, MetricResult, as_pair, squared_distances


def nearest_distance(x: Tensor, train: Tensor, *, chunk: int = 2000) -> tuple[Tensor, Tensor]:
    """Euclidean distance to the nearest training sample and its index, both ``(N,)``; equal distances give the first.

    Args:
        x: ``(N, d)``; train: ``(M, d)``.
        chunk: rows of ``x`` at a time; bounds the memory.

    Raises:
        ValueError: no sample, or features that are not finite.
    """
    x, train = (features.x for features in as_pair(x, train, least=1))
    parts = [squared_distances(part, train).min(1) for part in x.split(chunk)]
    return torch.cat([p.values for p in parts]).sqrt(), torch.cat([p.indices for p in parts])


@METRICS.register("copy_rate")
class CopyRate(Metric):
    """Share of generated samples that lie nearer to a training sample than all but a few held-out samples do.

        rate = share of generated x with  d(x, train) <= q,    q = quantile of d(held-out, train)

    A model that generalises has a rate near ``quantile``, one that memorises a rate near 1. ``details["excess"]`` is
    the difference to the share of held-out samples below the threshold and ``details["copies"]`` is true when it
    exceeds four standard errors and twice the expected rate. A comparison of nearest-neighbour distances as in Meehan
    et al. 2020, "A non-parametric test to detect data-copying in generative models".

    It assumes that near-equality in the features means copying (use pixels, or such features), and held-out samples
    that are no duplicates of training samples.

    The standard error adds two binomial variances, given the training set: of the N generated samples and of the M
    held-out ones that set the threshold, r (1 - r) / N + q (1 - q) / M. The second is right when the densities of both
    distances agree at the threshold, as they do for fresh data.

    Args:
        quantile: the rate q that fresh data would have; needs at least 1 / q held-out samples.
    """

    name = "copy_rate"

    def __init__(self, quantile: float = 0.05) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"CopyRate(quantile={quantile}) must be between 0 and 1, e.g. 0.05.")
        self.quantile = quantile

    def __call__(
        self, fake: FeatureSet | Tensor, real: FeatureSet | Tensor, train: FeatureSet | Tensor | None = None
    ) -> list[MetricResult]:
        if train is None:
            raise ValueError("copy_rate needs the training set: pass train= (features of the training images).")
        fake, real = as_pair(fake, real, least=1)
        _, train = as_pair(fake, train, least=1)
        if len(real) * self.quantile < 1:
            raise ValueError(
                f"The {self.quantile:g} quantile of {len(real)} held-out distances lies below the smallest. Give at "
                f"least {math.ceil(1 / self.quantile)} held-out samples, or a larger copy_rate(quantile=...)."
            )
        ours, index = nearest_distance(fake.x, train.x)
        theirs, _ = nearest_distance(real.x, train.x)
        threshold = float(torch.quantile(theirs, self.quantile))
        rate = float((ours <= threshold).double().mean())
        held_out = float((theirs <= threshold).double().mean())
        stderr = math.sqrt(rate * (1 - rate) / len(ours) + held_out * (1 - held_out) / len(theirs))
        excess = rate - held_out
        closest = ours.argsort()[:16]
        result = self.result(
            "copy_rate", rate, fake, real, stderr=stderr,
            held_out=held_out, excess=excess, threshold=threshold,
            copies=bool(excess > 4 * stderr and rate > 2 * held_out),
            duplicates=int((ours == 0).sum()),
            median_ratio=float(ours.median() / theirs.median()) if theirs.median() > 0 else None,
            closest=[[int(i), int(index[i]), float(ours[i])] for i in closest],
        )  # fmt: skip
        result.provenance.update(n_train=len(train), train=train.source, train_hash=train.data_hash)
        return [result]
