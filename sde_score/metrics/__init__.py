"""Metrics on samples and baselines for likelihoods, each number with its standard error and its origin.

>>> from sde_score.metrics import compare, extract
>>> fake, real = torch.rand(100, 1, 8, 8), torch.rand(100, 1, 8, 8)  # doctest: +SKIP
>>> compare(extract("pixels", fake), extract("pixels", real), metrics=("fd", "kid", "prdc"))  # doctest: +SKIP
"""

from sde_score.metrics.base import FEATURES, METRICS, FeatureSet, Metric, MetricResult, as_features, compare, extract
from sde_score.metrics.baselines import (
    CategoricalMixture,
    IndependentPixels,
    Uniform,
    bits_per_dim,
    likelihood_baselines,
)
from sde_score.metrics.classifier import SmallClassifier
from sde_score.metrics.copies import CopyRate, nearest_distance
from sde_score.metrics.features import Inception, Pixels, RandomConv
from sde_score.metrics.frechet import FrechetDistance, GaussianStats, frechet_distance
from sde_score.metrics.inception_score import Classes, InceptionScore, inception_score
from sde_score.metrics.kid import KernelDistance, polynomial_kernel
from sde_score.metrics.mmd import MMD, RBF, unbiased_mmd2
from sde_score.metrics.precision_recall import PRDC, PrecisionRecall, prdc
from sde_score.metrics.sliced_wasserstein import SlicedWasserstein, sliced_wasserstein, wasserstein_1d

__all__ = [
    "FEATURES",
    "METRICS",
    "MMD",
    "PRDC",
    "RBF",
    "CategoricalMixture",
    "Classes",
    "CopyRate",
    "FeatureSet",
    "FrechetDistance",
    "GaussianStats",
    "Inception",
    "InceptionScore",
    "IndependentPixels",
    "KernelDistance",
    "Metric",
    "MetricResult",
    "Pixels",
    "PrecisionRecall",
    "RandomConv",
    "SlicedWasserstein",
    "SmallClassifier",
    "Uniform",
    "as_features",
    "bits_per_dim",
    "compare",
    "extract",
    "frechet_distance",
    "inception_score",
    "likelihood_baselines",
    "nearest_distance",
    "polynomial_kernel",
    "prdc",
    "sliced_wasserstein",
    "unbiased_mmd2",
    "wasserstein_1d",
]
