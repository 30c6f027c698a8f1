"""Inputs from life: one sample, duplicates, constants, few samples in many dimensions, NaN, large offsets. The right
value or a sentence of ours, never NaN in silence and never the words of a torch kernel."""

import math

import pytest
import torch

from sde_score.metrics import (
    METRICS,
    PRDC,
    CategoricalMixture,
    Classes,
    FeatureSet,
    FrechetDistance,
    GaussianStats,
    IndependentPixels,
    Metric,
    MetricResult,
    SmallClassifier,
    compare,
    extract,
    frechet_distance,
    inception_score,
    nearest_distance,
    polynomial_kernel,
    prdc,
    sliced_wasserstein,
    unbiased_mmd2,
    wasserstein_1d,
)
from sde_score.metrics import base as metrics_base
from sde_score.metrics.base import squared_distances
from sde_score.metrics.mmd import median_distance


def normal(n, d, seed, *, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(x, seed=0):
    p = torch.softmax(2 * normal(len(x), 3, seed), 1)
    return FeatureSet(x, probabilities=p)


def with_nan(x):
    x = x.clone()
    x[3, 1] = math.nan
    return x


PAIRS = {
    "one sample": (normal(1, 3, 0), normal(1, 3, 1)),
    "one generated sample": (normal(1, 3, 0), normal(40, 3, 1)),
    "one real sample": (normal(40, 3, 0), normal(1, 3, 1)),
    "two samples": (normal(2, 3, 0), normal(2, 3, 1)),
    "identical sets": (normal(40, 3, 0), normal(40, 3, 0)),
    "constant features": (torch.ones(40, 3), torch.ones(30, 3)),
    "two constants": (torch.ones(40, 3), 2 * torch.ones(30, 3)),
    "all zero": (torch.zeros(40, 3), torch.zeros(40, 3)),
    "one constant column": (normal(40, 3, 0) * torch.tensor([1, 1, 0]), normal(40, 3, 1) * torch.tensor([1, 1, 0])),
    "fewer samples than dimensions": (normal(12, 100, 0), normal(9, 100, 1)),
    "one dimension": (normal(40, 1, 0), normal(40, 1, 1)),
    "duplicates": (normal(5, 3, 0).repeat(8, 1), normal(5, 3, 1).repeat(8, 1)),
    "nan": (with_nan(normal(40, 3, 0)), normal(40, 3, 1)),
    "nan in the real set": (normal(40, 3, 0), with_nan(normal(40, 3, 1))),
    "infinity": (normal(40, 3, 0) / torch.tensor([1, 1, 0]), normal(40, 3, 1)),
    "offset in float32": (normal(40, 3, 0, mean=1e5).float(), normal(40, 3, 1, mean=1e5).float()),
    "half precision": (normal(40, 3, 0).half(), normal(40, 3, 1).bfloat16()),
    "integers": ((normal(40, 3, 0) * 9).long(), (normal(40, 3, 1) * 9).long()),
    "powers overflow": (normal(40, 3, 0, std=1e200), normal(40, 3, 1, std=1e200)),
    "powers vanish": (normal(40, 3, 0, std=1e-200), normal(40, 3, 1, std=1e-200)),
    "no column": (torch.zeros(40, 0), torch.zeros(40, 0)),
    "no sample": (torch.zeros(0, 3), torch.zeros(40, 3)),
    "images": (torch.zeros(40, 1, 2, 2), torch.zeros(40, 1, 2, 2)),
    "other width": (normal(40, 3, 0), normal(40, 4, 1)),
}
RAW = (
    "Expected",
    "linalg",
    "tensor a",
    "size of",
    "dimension",
    "must match",
    "shapes cannot",
    "quantile()",
    "index",
    "k not",
)


@pytest.mark.parametrize("name", METRICS.names())
@pytest.mark.parametrize("case", PAIRS)
def test_right_or_refused(name, case):
    fake, real = (features(x, seed) for seed, x in enumerate(PAIRS[case]))
    metric = METRICS.build(name)
    try:
        results = metric(fake, real, real)
    except ValueError as error:
        assert not any(word in str(error) for word in RAW) and len(str(error)) > 40, error
        assert case not in ("identical sets", "offset in float32", "duplicates", "one dimension", "integers"), error
        return
    assert not any(word in case for word in ("nan", "infinity", "no ", "images"))
    for result in results:
        assert math.isfinite(result.value) and (result.stderr is None or 0 <= result.stderr < math.inf)
        assert str(result)


@pytest.mark.parametrize("name", ["fd", "kid", "mmd", "sliced_wasserstein", "prdc", "copy_rate"])
@pytest.mark.parametrize("bad", ["nan", "nan in the real set", "infinity"])
def test_the_first_bad_sample_is_named(name, bad):
    with pytest.raises(ValueError, match="sample (3|0)[.]"):
        METRICS.build(name)(*PAIRS[bad], normal(50, 3, 4))


FUNCTIONS = {
    "prdc": prdc,
    "sliced_wasserstein": sliced_wasserstein,
    "wasserstein_1d": wasserstein_1d,
    "nearest_distance": nearest_distance,
    "unbiased_mmd2": lambda x, y: unbiased_mmd2(x, y, polynomial_kernel),
    "GaussianStats": lambda x, y: (GaussianStats.of(x), GaussianStats.of(y)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("bad", ["nan", "nan in the real set"])
def test_functions_refuse_nan_as_metrics_do(name, bad):
    with pytest.raises(ValueError, match="not finite"):
        FUNCTIONS[name](*PAIRS[bad])


# Right values


@pytest.mark.parametrize("name, value", [("fd", 0.0), ("kid", 0.0), ("mmd", 0.0), ("sliced_wasserstein", 0.0)])
def test_constant_features_have_no_distance(name, value):
    result = METRICS.build(name)(*PAIRS["constant features"])[0]
    assert result.value == pytest.approx(value, abs=1e-12) and result.stderr == pytest.approx(0, abs=1e-12)


def test_two_constants():
    """Features 1 and 2 in d = 3."""
    fake, real = PAIRS["two constants"]
    assert FrechetDistance()(fake, real)[0].value == pytest.approx(3.0, rel=1e-12)
    assert METRICS.build("kid")(fake, real)[0].value == pytest.approx(2.0**3 + 5.0**3 - 2 * 3.0**3, rel=1e-12)
    # no distance among equal rows, so the bandwidths are the scales themselves: 2 - 2 mean exp(-3 / (2 c^2))
    expected = 2 - 2 * sum(math.exp(-3 / (2 * c * c)) for c in (0.25, 0.5, 1.0, 2.0)) / 4
    assert METRICS.build("mmd")(fake, real)[0].value == pytest.approx(expected, rel=1e-12)
    assert prdc(fake, real) == (0, 0, 0, 0)
    assert prdc(real, real) == PRDC(1.0, 1.0, 30 / 5, 1.0)


def test_identical_sets():
    x = normal(40, 3, 0)
    values = {
        r.name: r.value for r in compare(FeatureSet(x), FeatureSet(x), metrics=("fd", "sliced_wasserstein", "prdc"))
    }
    assert values["fd"] < 1e-12 and values["sliced_wasserstein"] == 0
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    stderr = METRICS.build("sliced_wasserstein(groups=0)")(x, x)[0]
    assert stderr.stderr is None and stderr.details["direction_error"] == 0


def test_two_samples():
    """The sums can be written out: k(x, y) = (x.y + 1)^3 in d = 1."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    result = METRICS.build("kid")(x, y)[0]
    assert result.value == pytest.approx(1 + 7**3 - (1 + 1 + 27 + 64) / 2) and result.stderr is None
    result = METRICS.build("sliced_wasserstein(p=1.)")(x, y)[0]
    # leaving one of each out gives 2 and 2, or 1 and 3
    assert result.value == pytest.approx(2.0) and result.stderr in (pytest.approx(0), pytest.approx(1))
    result = FrechetDistance()(x, y)[0]
    assert result.value == pytest.approx(4.0) and result.stderr is None and result.details == {"groups": 0}
    with pytest.raises(ValueError, match="k = 5 neighbours need more than 5 samples and k >= 1, got 2 samples"):
        prdc(x, y)
    with pytest.raises(ValueError, match="k = 0 neighbours"):
        prdc(x, y, k=0)
    assert prdc(x, y, k=1) == PRDC(0.5, 0.5, 0.5, 0.5)  # 1 lies in the ball about 2, and the other way


def test_one_sample():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        FrechetDistance()(*PAIRS["one sample"])
    x, y = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    result = METRICS.build("sliced_wasserstein")(x, y)[0]
    assert result.value == pytest.approx(2.0) and result.stderr is None
    p = torch.tensor([[0.7, 0.3]])
    assert inception_score(p) == pytest.approx(1.0)
    recognised, entropy = Classes(0.5)(FeatureSet(x, probabilities=p))
    assert recognised.value == 1 and entropy.value == 0 and math.copysign(1, entropy.value) == 1
    assert recognised.stderr == 0 and entropy.stderr == 0


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_a_common_offset_changes_no_distance(offset):
    """Multiples of 1/8 keep their digits in float32 (up to 1e6), so every figure is that of the plain features."""
    a, b = (normal(60, 3, s, std=1 + s).mul(8).round().div(8) for s in (0, 1))
    plain = compare(FeatureSet(a), FeatureSet(b), train=FeatureSet(a), metrics=("fd", "mmd", "prdc", "copy_rate"))
    far = [FeatureSet((x + offset).float()) for x in (a, b)]
    moved = compare(*far, train=far[0], metrics=("fd", "mmd", "prdc", "copy_rate"))
    for one, other in zip(plain, moved, strict=True):
        assert other.value == pytest.approx(one.value, rel=1e-6) and other.stderr == pytest.approx(one.stderr, rel=1e-4)
    ours, theirs = (METRICS.build("sliced_wasserstein")(x, y)[0] for x, y in ((a, b), far))
    assert ours.value == pytest.approx(theirs.value, rel=1e-6)


def test_distances_of_large_sets_survive_an_offset(monkeypatch):
    """Beyond EXACT_DISTANCES the expanded form is used, whose digits a common offset would cancel."""
    x, y = normal(30, 4, 0), normal(20, 4, 1)
    exact = squared_distances(x, y)
    torch.testing.assert_close(exact, (x[:, None] - y).square().sum(2), rtol=1e-12, atol=0)
    monkeypatch.setattr(metrics_base, "EXACT_DISTANCES", 30 * 20 * 4)
    torch.testing.assert_close(squared_distances(x + 1e7, y + 1e7), exact, rtol=1e-6, atol=1e-6)
    calls = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *a, compute_mode: calls.append(compute_mode) or cdist(*a))
    squared_distances(x, y)
    squared_distances(x[:-1], y)
    assert calls == ["use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"]


def test_bandwidth_of_mostly_duplicates():
    """Ten rows of which eight are equal: the median over all pairs would be zero."""
    x = torch.cat([torch.zeros(8, 1), torch.tensor([[3.0], [5.0]])]).double()
    assert median_distance(x) == 3.0
    assert median_distance(torch.zeros(9, 2)) == 1.0
    a, b = METRICS.build("mmd(blocks=1)"), METRICS.build("mmd(blocks=1)")
    assert a(x + 1, x)[0].value == pytest.approx(b(100 * (x + 1), 100 * x)[0].value, rel=1e-9)
    assert median_distance(torch.cat([torch.arange(4.0)[:, None], 1e3 * torch.arange(9.0)[:, None]]), limit=4) == 1.0


# Refusals


def test_overflow_is_said():
    with pytest.raises(ValueError, match="not finite.*divide the features"):
        FrechetDistance()(*PAIRS["powers overflow"])
    with pytest.raises(ValueError, match="kd came out as nan .*divide them"):
        METRICS.build("kid")(*PAIRS["powers overflow"])


@pytest.mark.parametrize(
    "values", [dict(value=math.inf), dict(value=1.0, stderr=math.nan), dict(value=1.0, details={"excess": math.nan})]
)
def test_a_result_holds_finite_numbers(values):
    with pytest.raises(ValueError, match="fd came out as"):
        MetricResult("fd", **values)
    assert "failed" in str(MetricResult("fd", math.nan, error="no samples"))


def test_frechet_distance_names_shapes_and_nan():
    mean, cov = torch.zeros(3), torch.eye(3)
    with pytest.raises(ValueError, match=r"\(3,\), \(3, 3\), \(2,\), \(3, 3\)"):
        frechet_distance(mean, cov, mean[:2], cov)
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        frechet_distance(mean, cov, mean, cov[:, :2])
    for i in range(4):
        arguments = [mean, cov, mean, cov]
        arguments[i] = arguments[i] * math.nan
        with pytest.raises(ValueError, match="not finite"):
            frechet_distance(*arguments)


def test_reference_statistics_of_another_map_are_refused(tmp_path):
    x = normal(30, 3, 0)
    with pytest.raises(ValueError, match="differ in width: 3 against 4"):
        FrechetDistance()(x, GaussianStats.of(normal(30, 4, 0)))
    with pytest.raises(ValueError, match="different maps: pixels a against pixels b"):
        FrechetDistance()(FeatureSet(x, "pixels", "a"), GaussianStats.of(FeatureSet(x, "pixels", "b")))
    (tmp_path / "a.npz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="a.npz holds no reference statistics.*save"):
        GaussianStats.load(tmp_path / "a.npz")
    import numpy as np

    for arrays, words in (
        ({"mu": np.zeros(3)}, "it has mu, and lacks mean, cov"),
        ({"m": np.zeros(3), "s": np.eye(3)}, "it has m, s, and lacks mean"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"mean of shape \(3,\), a covariance of shape \(2, 2\)"),
    ):
        np.savez(tmp_path / "b.npz", **arrays)
        with pytest.raises(ValueError, match=f"b.npz holds no reference statistics.*{words}.*mu and sigma"):
            GaussianStats.load(tmp_path / "b.npz")


def test_statistics_written_by_others_are_read(tmp_path):
    """As pytorch-fid writes them: `mu` and `sigma`."""
    import numpy as np

    fake, real = normal(60, 3, 0), normal(50, 3, 1)
    own = GaussianStats.of(real)
    np.savez(tmp_path / "real.npz", mu=own.mean.numpy(), sigma=own.cov.numpy())
    read = GaussianStats.load(tmp_path / "real.npz")
    assert torch.equal(read.mean, own.mean) and torch.equal(read.cov, own.cov) and read.source == "real.npz"
    one, two = (FrechetDistance()(fake, stats)[0] for stats in (own, read))
    assert one.value == two.value and two.stderr == one.stderr


@pytest.mark.parametrize(
    "p, row",
    [
        (torch.tensor([[0.5, 0.5], [0.5, 0.6]]), 1),
        (torch.tensor([[1.5, -0.5], [0.5, 0.5]]), 0),
        (torch.tensor([[0.5, 0.5], [math.nan, 0.5]]), 1),
    ],
)
def test_what_is_no_probability_is_named(p, row):
    for call in (inception_score, lambda p: Classes()(FeatureSet(torch.zeros(2, 1), probabilities=p))):
        with pytest.raises(ValueError, match=f"row {row} is .*softmax"):
            call(p)
    good = torch.full((2, 2), 0.5)
    for name in ("inception_score", "classes"):
        with pytest.raises(ValueError, match=f"row {row}"):
            METRICS.build(name)(FeatureSet(good, probabilities=good), FeatureSet(good, probabilities=p))
        with pytest.raises(ValueError, match="2 rows of probabilities belong to 3 samples"):
            METRICS.build(name)(FeatureSet(torch.zeros(3, 2), probabilities=good))
        assert METRICS.build(name)(FeatureSet(good, probabilities=good), torch.zeros(4, 2)), "features without classes"
    with pytest.raises(ValueError, match="N > 0"):
        inception_score(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="N, K"):
        inception_score(torch.ones(3))


def test_too_few_held_out_samples_for_a_quantile():
    x = normal(40, 3, 0)
    with pytest.raises(ValueError, match="0.05 quantile of 19 held-out.*at least 20 "):
        METRICS.build("copy_rate")(x, x[:19], x)
    assert METRICS.build("copy_rate")(x, x[:20], x)
    held_out_in_train = METRICS.build("copy_rate")(x + 1, x[:20], x)[0]
    assert held_out_in_train.details["median_ratio"] is None and held_out_in_train.value == 0


@pytest.mark.parametrize(
    "spec",
    ["fd(groups=1)", "fd(groups=-1)", "kid(degree=0)", "kid(blocks=0)", "mmd(scales=())", "mmd(scales=(0.,))",
     "mmd(blocks=-1)", "prdc(k=0)", "prdc(blocks=0)", "sliced_wasserstein(projections=0)", "sliced_wasserstein(p=0.5)",
     "sliced_wasserstein(p=1e999)", "sliced_wasserstein(groups=1)", "inception_score(splits=0)",
     "classes(threshold=1.)", "classes(threshold=-0.1)", "copy_rate(quantile=0.)", "copy_rate(quantile=1.)"],
)  # fmt: skip
def test_settings_without_meaning_are_refused_at_construction(spec):
    with pytest.raises(ValueError, match=spec.split("=")[0].split("(")[1]):
        METRICS.build(spec)


def test_maps_that_do_not_give_a_row_for_each_image():
    images = torch.rand(6, 1, 4, 4)
    for wrong in (lambda x: x.flatten(1).mean(1), lambda x: x.flatten(1).mean(0, keepdim=True)):
        with pytest.raises(ValueError, match=r"of 6 images.*\(6, d\)"):
            extract(wrong, images)
    for nothing in (images[:0], torch.rand(3)):
        with pytest.raises(ValueError, match="N > 0"):
            extract("pixels", nothing)


def test_any_failure_of_a_metric_is_recorded():
    class Broken(Metric):
        name = "broken"

        def __call__(self, fake, real, train=None):
            return {}["nothing"]

    x = FeatureSet(normal(9, 2, 0))
    (result,) = compare(x, x, metrics=(Broken(),))
    assert result.error == "KeyError: 'nothing'" and result.n == 9
    with pytest.raises(KeyError):
        compare(x, x, metrics=(Broken(),), on_error="raise")
    with pytest.raises(ValueError, match="'record' or 'raise'"):
        compare(x, x, on_error="ignore")


def test_baselines_refuse_what_is_no_grey_level():
    for bad in (torch.tensor([[0.0, math.nan]]), torch.tensor([[0.0, math.inf]]), torch.tensor([[0.5, 1.0]])):
        with pytest.raises(ValueError, match="integer grey levels"):
            IndependentPixels(3).fit(bad)
    for bad in (torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(3)):
        with pytest.raises(ValueError, match="images"):
            IndependentPixels(3).fit(bad.long())
    with pytest.raises(ValueError, match="from -1 to 0"):
        IndependentPixels(3).fit(torch.tensor([[0, -1]]))
    with pytest.raises(ValueError, match="Fitted to samples of 2 values, got samples of 3"):
        IndependentPixels(3).fit(torch.zeros(4, 2).long()).log_prob(torch.zeros(4, 3).long())
    for bad in (dict(levels=1), dict(levels=3, components=0), dict(levels=3, smoothing=-1.0)):
        with pytest.raises(ValueError, match="CategoricalMixture"):
            CategoricalMixture(**bad)


@pytest.mark.parametrize(
    "x", [torch.zeros(12, 4).long(), torch.arange(3).repeat(4)[:, None]], ids=["equal", "few kinds"]
)
def test_a_mixture_of_more_components_than_kinds(x):
    model = CategoricalMixture(3, 5, iterations=30).fit(x)
    assert torch.isfinite(model.log_prob(x)).all()


def test_classifier_of_degenerate_images():
    labels = torch.arange(8) % 2
    for images in (torch.full((8, 1, 3, 3), 0.5), torch.full((8, 1), 0.5)):
        features = extract(SmallClassifier(hidden=2, max_steps=5).fit(images, labels), images)
        assert torch.isfinite(features.x).all() and torch.isfinite(features.probabilities).all()
    one = SmallClassifier(hidden=1, max_steps=3).fit(torch.full((1, 1), 0.5), torch.tensor([0]))
    found = extract(one, torch.rand(2, 1))
    assert found.probabilities.tolist() == [[1.0], [1.0]] and torch.isfinite(found.x).all()


def test_classifier_names_bad_labels_and_images():
    images = torch.rand(4, 2)
    for labels, message in [
        (torch.zeros(3).long(), r"\(4,\)"), (torch.zeros(4), "integers"), (torch.tensor([0, 1, -1, 0]), "from 0"),
        (torch.zeros(4, 1).long(), r"\(4,\)"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            SmallClassifier().fit(images, labels)
    with pytest.raises(ValueError, match="NaN"):
        SmallClassifier().fit(images * math.nan, torch.zeros(4).long())
    with pytest.raises(ValueError, match="samples of shape"):
        SmallClassifier().fit(torch.rand(4, 1, 2, 2, 2, 2), torch.zeros(4).long())
    fitted = SmallClassifier(hidden=2, max_steps=2).fit(images, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        fitted.accuracy(images, torch.zeros(4, 1).long())
