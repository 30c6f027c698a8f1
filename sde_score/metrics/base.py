"""What a metric is: a number with its standard error and its origin.

Two registries. ``FEATURES`` holds maps from images to vectors, ``METRICS`` holds distances between two sets of such
vectors. Settings go to the constructor and data to the call, so that a metric is chosen by a component spec:

>>> from sde_score.metrics import METRICS
>>> METRICS.build("kid(blocks=5)").blocks
5
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sde_score.registry import Registry

METRICS = Registry("metric", group="sde_score.metrics")
FEATURES = Registry("feature", group="sde_score.features")


@dataclass(frozen=True)
class MetricResult:
    """One number and everything one needs to obtain it again.

    Args:
        name: what was measured, e.g. ``"fd"``.
        value: the number; NaN only together with ``error``.
        stderr: its standard error; ``None`` when it has none or when there are too few samples to tell. How it is
            obtained stands in the docstring of each metric.
        better: ``"lower"``, ``"higher"`` or ``None``.
        n: number of generated samples that went in.
        provenance: numbers of samples, feature and its fingerprint, settings, seeds.
        details: further numbers, such as values per class.
        error: why there is no value.

    Raises:
        ValueError: a value, standard error or detail that is not finite, without an ``error``.
    """

    name: str
    value: float
    stderr: float | None = None
    better: str | None = None
    n: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def __post_init__(self) -> None:
        if self.error is not None:
            return
        numbers = {"the value": self.value, "the standard error": self.stderr, **self.details}
        for what, number in numbers.items():
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(
                    f"{self.name} came out as {number} ({what}). Features whose powers overflow do this: divide them "
                    f"by their deviation. They are: {self.provenance.get('feature', 'given')}, n = {self.n}."
                )

    @property
    def label(self) -> str:
        """Name with the number of samples, since most metrics depend on it: ``fd@500``."""
        return self.name if self.n is None else f"{self.name}@{self.n}"

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.label} failed: {self.error}"
        spread = "" if self.stderr is None else f" ± {self.stderr:.2g}"
        return f"{self.label} = {self.value:.4g}{spread}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a failed metric has the value ``None``."""
        out = asdict(self)
        if self.error is not None:
            out["value"] = None
        return {"label": self.label, **out}


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of samples.

    Args:
        x: features, ``(N, d)``, float64 on the CPU.
        feature: name of the feature map.
        fingerprint: hash of its weights, empty when it has none.
        data_hash: hash of the samples that went in.
        source: where the samples come from, in words.
        probabilities: class probabilities ``(N, K)`` when the feature map is a classifier.
    """

    x: Tensor
    feature: str = "given"
    fingerprint: str = ""
    data_hash: str = ""
    source: str = ""
    probabilities: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def take(self, index: Tensor) -> FeatureSet:
        """The subset with these indices."""
        probabilities = None if self.probabilities is None else self.probabilities[index]
        return replace(self, x=self.x[index], probabilities=probabilities, data_hash="")


def as_features(x: FeatureSet | Tensor, *, least: int = 2) -> FeatureSet:
    """Check features ``(N, d)`` at the door: rank, number and finiteness. They come out in float64 on the CPU.

    Raises:
        ValueError: fewer than ``least`` rows, no column, a wrong rank, or a row that is not finite (it is named).
    """
    features = x if isinstance(x, FeatureSet) else FeatureSet(torch.as_tensor(x))
    values = torch.as_tensor(features.x)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(
            f"Features must be (N, d) with d > 0, got {tuple(values.shape)}. Pass images through extract('pixels', "
            "images) first."
        )
    if values.shape[0] < least:
        raise ValueError(f"This metric needs at least {least} samples, got {values.shape[0]}.")
    values = values.detach().to("cpu").double()
    bad = ~torch.isfinite(values).all(dim=1)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(values)} samples have features that are not finite, the first is sample "
            f"{int(bad.nonzero()[0])}. Look at them first: x[~torch.isfinite(x).flatten(1).all(1)]."
        )
    return replace(features, x=values)


def require_same_map(a: tuple[str, str, int], b: tuple[str, str, int]) -> None:
    """Refuse to compare features of different maps; each side is (name, fingerprint, width)."""
    if a[2] != b[2]:
        raise ValueError(f"Features differ in width: {a[2]} against {b[2]}. Use one feature map for both.")
    if a != b and "given" not in (a[0], b[0]):
        raise ValueError(
            f"Features come from different maps: {a[0]} {a[1]} against {b[0]} {b[1]}. Extract both sets with the same "
            "object."
        )


def as_pair(a: FeatureSet | Tensor, b: FeatureSet | Tensor, *, least: int = 2) -> tuple[FeatureSet, FeatureSet]:
    """Two feature sets that can be compared: the same map, the same weights, the same width."""
    a, b = as_features(a, least=least), as_features(b, least=least)
    require_same_map((a.feature, a.fingerprint, a.x.shape[1]), (b.feature, b.fingerprint, b.x.shape[1]))
    return a, b


def to_unit(x: Tensor, *, levels: int = 256) -> Tensor:
    """Images as floats in [0, 1]: integers are divided by ``levels - 1``, floats pass.

    Raises:
        ValueError: integers that are no levels.
    """
    x = torch.as_tensor(x)
    if x.dtype.is_floating_point:
        return x.float() if x.dtype != torch.float64 else x
    if x.dtype != torch.bool and x.numel() and not (0 <= int(x.min()) and int(x.max()) < levels):
        raise ValueError(
            f"Integer images hold values from {int(x.min())} to {int(x.max())}; with levels={levels} they run from 0 "
            f"to {levels - 1}. Write levels=..., or give floats and their range=(low, high)."
        )
    return x.float() / (levels - 1)


def data_hash(x: Tensor) -> str:
    """First twelve hexadecimal digits of the SHA-256 of type, shape and bytes."""
    x = x.detach().cpu().contiguous()
    head = f"{x.dtype} {tuple(x.shape)}".encode()
    return hashlib.sha256(head + x.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:12]


def module_hash(module: nn.Module) -> str:
    """Hash of the weights of a network, so that two numbers can be told to be of the same feature map."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {data_hash(value)};".encode())
    return digest.hexdigest()[:12]


@torch.no_grad()
def extract(
    feature: str | Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    levels: int = 256,
    range: tuple[float, float] = (0.0, 1.0),
    batch_size: int = 500,
    source: str = "",
    device: torch.device | str | None = None,
) -> FeatureSet:
    """Features of images.

    Args:
        feature: a spec (``"pixels"``, ``"random_conv(width=32)"``), any ``nn.Module`` or any callable that maps
            floats in [0, 1] of shape ``(B, *)`` to ``(B, d)``. A classifier returns ``(features, probabilities)``.
        images: ``(N, *)``, floats in ``range`` or integers in ``0 .. levels - 1``.
        levels: number of grey levels of integer images.
        range: the values of floats that are black and white: they become 0 and 1.
        batch_size: images per call; the result does not depend on it for a network in evaluation mode.
        source: where the images come from, kept in the result.
        device: where to compute; default: where the images are.

    Raises:
        ValueError: no image, integers outside ``0 .. levels - 1``, a range that is none, or a map that does not return
            one row for each image.
    """
    low, high = range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"extract(range=({low}, {high})): write two finite numbers, the smaller one first.")
    function = FEATURES.build(feature) if isinstance(feature, str) else feature
    images = torch.as_tensor(images)
    if images.ndim < 2 or images.shape[0] == 0:
        raise ValueError(f"extract needs images (N, *) with N > 0, got {tuple(images.shape)}.")
    training = isinstance(function, nn.Module) and function.training
    if training:
        function.eval()
    rows, probabilities = [], []
    try:
        for chunk in images.split(batch_size):
            x = to_unit(chunk, levels=levels)
            if chunk.is_floating_point() and (low, high) != (0.0, 1.0):
                x = (x - low) / (high - low)
            out = function(x.to(device or images.device))
            if isinstance(out, tuple):
                out, p = out
                probabilities.append(p.cpu().double())
            if out.ndim < 2 or len(out) != len(chunk):
                raise ValueError(
                    f"The feature map made {tuple(out.shape)} of {len(chunk)} images; it must return one row for each "
                    f"image: ({len(chunk)}, d)."
                )
            rows.append(out.flatten(1).cpu().double())
    finally:
        if training:
            function.train()
    name = getattr(function, "name", None) or getattr(function, "__name__", None) or type(function).__name__
    return FeatureSet(
        x=torch.cat(rows),
        feature=name,
        fingerprint=module_hash(function) if isinstance(function, nn.Module) else "",
        data_hash=data_hash(images),
        source=source,
        probabilities=torch.cat(probabilities) if probabilities else None,
    )


class Metric(ABC):
    """A comparison of generated with real features; settings in the constructor, data in the call."""

    name: str = ""

    @abstractmethod
    def __call__(self, fake: FeatureSet, real: FeatureSet, train: FeatureSet | None = None) -> list[MetricResult]:
        """Compare.

        Args:
            fake: generated samples, ``(N, d)``.
            real: real samples that the model has not seen, ``(M, d)``.
            train: the training set; only metrics of memorisation ask for it.
        """

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, for the provenance."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def result(
        self,
        name: str,
        value: float,
        fake: FeatureSet,
        real: FeatureSet | None = None,
        /,
        *,
        stderr: float | None = None,
        better: str | None = "lower",
        **details: Any,
    ) -> MetricResult:
        """A result with the provenance of both sets."""
        provenance: dict[str, Any] = {
            "metric": self.name,
            "settings": self.settings(),
            "feature": fake.feature,
            "feature_hash": fake.fingerprint,
            "dimension": fake.x.shape[1],
            "n_fake": len(fake),
            "fake": fake.source,
            "fake_hash": fake.data_hash,
        }
        if real is not None:
            provenance |= {"n_real": len(real), "real": real.source, "real_hash": real.data_hash}
        return MetricResult(name, float(value), stderr, better, len(fake), provenance, details)


def compare(
    fake: FeatureSet,
    real: FeatureSet,
    *,
    train: FeatureSet | None = None,
    metrics: Iterable[str | Metric] = ("fd", "kid", "prdc"),
    on_error: str = "record",
) -> list[MetricResult]:
    """Several metrics at once.

    Args:
        fake, real, train: features of the generated, the held-out and the training samples.
        metrics: component specs or objects.
        on_error: ``"record"`` makes a failure a result with its reason, so that a metric never ends a training run;
            ``"raise"`` raises it. An unknown name or setting is raised always.
    """
    if on_error not in ("record", "raise"):
        raise ValueError(f"on_error is {on_error!r}; write 'record' or 'raise'.")
    results: list[MetricResult] = []
    for spec in metrics:
        metric = METRICS.build(spec)
        try:
            results += metric(fake, real, train)
        except Exception as error:  # a third party's metric may raise anything
            if on_error == "raise":
                raise
            results.append(MetricResult(metric.name, math.nan, n=len(fake), error=f"{type(error).__name__}: {error}"))
    return results


EXACT_DISTANCES = 2e10  # multiplications, some ten seconds


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances, ``(N, M)``. Exact differences while they are affordable, since the expanded form
    |a|^2 + |b|^2 - 2 a.b turns the distance 0 of equal rows into 1e-8 and so loses duplicates; it takes features about
    their mean, or a large common offset would cancel every digit."""
    if a.shape[0] * b.shape[0] * a.shape[1] < EXACT_DISTANCES:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    centre = b.mean(0)
    return torch.cdist(a - centre, b - centre, compute_mode="use_mm_for_euclid_dist").square()
