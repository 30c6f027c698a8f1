"""Metrics against closed forms, extremes and an independent implementation."""

import math

import numpy as np
import pytest
import torch

from sde_score.metrics import (
    METRICS,
    FeatureSet,
    FrechetDistance,
    GaussianStats,
    MetricResult,
    RandomConv,
    SmallClassifier,
    compare,
    extract,
    frechet_distance,
    inception_score,
    polynomial_kernel,
    prdc,
    sliced_wasserstein,
    unbiased_mmd2,
    wasserstein_1d,
)


def normal(n, d, seed, *, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Fréchet distance


def test_frechet_of_commuting_gaussians():
    """Diagonal covariances: the sum of (mean difference)^2 and (difference of deviations)^2."""
    a, b = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([0.5, 2.0, 3.0]).double()
    mean = torch.tensor([0.3, -1.0, 2.0]).double()
    expected = mean.square().sum() + (a - b).square().sum()
    got = frechet_distance(torch.zeros(3), torch.diag(a**2), mean, torch.diag(b**2))
    assert got == pytest.approx(float(expected), rel=1e-12)


def test_frechet_agrees_with_scipy_where_that_is_valid():
    from scipy.linalg import sqrtm

    x, y = normal(400, 12, 0) @ normal(12, 12, 1), normal(300, 12, 2, mean=0.2) @ normal(12, 12, 3)
    a, b = GaussianStats.of(x), GaussianStats.of(y)
    root = sqrtm(a.cov.numpy() @ b.cov.numpy()).real
    expected = float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()) - 2 * np.trace(root)
    assert frechet_distance(a.mean, a.cov, b.mean, b.cov) == pytest.approx(expected, rel=1e-8)


def test_frechet_is_symmetric_and_zero_for_equal_sets():
    x, y = normal(50, 8, 0), normal(40, 8, 1)
    metric = FrechetDistance(groups=0)
    assert metric(x, x)[0].value < 1e-12
    assert metric(x, y)[0].value == pytest.approx(metric(y, x)[0].value, rel=1e-10)


@pytest.mark.parametrize("n", [2, 3, 10, 60])
def test_frechet_is_finite_for_few_samples_and_duplicates(n):
    """Fewer samples than dimensions: covariances without full rank."""
    x, y = normal(n, 200, 0), normal(n, 200, 1)
    assert math.isfinite(FrechetDistance()(x, y)[0].value)
    same = x[:1].expand(n, -1)
    # All rows equal: no covariance, so the distance is that of the means and the other set's variance.
    stats = GaussianStats.of(y)
    expected = float((x[0] - stats.mean).square().sum() + stats.cov.trace())
    assert FrechetDistance(groups=0)(same, y)[0].value == pytest.approx(expected, rel=1e-10)


def test_frechet_of_disjoint_subspaces():
    """Rank-deficient and orthogonal: the cross term vanishes."""
    cov1, cov2 = torch.diag(torch.tensor([4.0, 0.0])), torch.diag(torch.tensor([0.0, 9.0]))
    assert frechet_distance(torch.zeros(2), cov1, torch.zeros(2), cov2) == pytest.approx(13.0, rel=1e-12)


def test_jackknife_removes_most_of_the_bias():
    """Two samples of one law: the true distance is 0, the plain value is biased upwards by about d (1/N + 1/M) / 2."""
    result = FrechetDistance()(normal(400, 10, 0), normal(400, 10, 1))[0]
    assert result.value > 0.02
    assert abs(result.details["bias_corrected"]) < 0.3 * result.value + 2 * result.stderr
    assert result.stderr > 0


def test_reference_statistics_survive_the_disk(tmp_path):
    x, y = normal(60, 5, 0), normal(70, 5, 1)
    stats = GaussianStats.of(FeatureSet(y, source="test split"))
    with pytest.raises(ValueError, match=r"\.npz"):
        stats.save(tmp_path / "reference.npy")
    loaded = GaussianStats.load(stats.save(tmp_path / "reference.npz"))
    assert loaded.n == 70 and loaded.source == "test split"
    direct = FrechetDistance(groups=0)(x, y)[0].value
    result = FrechetDistance(groups=5)(x, loaded)[0]
    assert result.value == direct and result.provenance["n_real"] == 70
    assert not (tmp_path / "reference.npz.tmp").exists()


# Kernel distances


def test_kernel_distance_is_unbiased():
    """Mean over many small draws of one law is zero within four standard errors; a biased estimate would be far off."""
    values = torch.stack(
        [unbiased_mmd2(normal(10, 3, 2 * i), normal(10, 3, 2 * i + 1), polynomial_kernel) for i in range(600)]
    )
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))


def test_unbiased_mmd_is_the_double_sum():
    x, y = normal(5, 2, 0), normal(4, 2, 1)
    k = lambda a, b: float((a @ b / 2 + 1) ** 3)  # noqa: E731
    xx = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    yy = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    xy = sum(k(a, b) for a in x for b in y) / 20
    assert float(unbiased_mmd2(x, y, polynomial_kernel)) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


@pytest.mark.parametrize("name", ["kid", "mmd"])
def test_kernel_distances_tell_laws_apart(name):
    metric = METRICS.build(name)
    same = metric(normal(500, 4, 0), normal(400, 4, 1))[0]
    moved = metric(normal(500, 4, 0), normal(400, 4, 1, mean=1.0))[0]
    assert abs(same.value) < 5 * same.stderr
    assert moved.value > 8 * moved.stderr


# Precision and recall


def test_precision_recall_extremes():
    real = normal(200, 3, 0)
    far = prdc(real + 1000, real)
    assert far == (0, 0, 0, 0)
    same = prdc(real, real)
    assert same.precision == same.recall == same.coverage == 1
    one_mode = prdc(real[:1].expand(200, -1) + 1e-6 * normal(200, 3, 1), real)
    assert one_mode.precision == 1 and one_mode.recall < 0.05 and one_mode.coverage < 0.15


def test_precision_and_recall_change_places():
    a, b = normal(120, 2, 0), normal(120, 2, 1, std=2.0)
    assert prdc(a, b).precision == prdc(b, a).recall
    assert prdc(a, b).recall == prdc(b, a).precision


def test_prdc_by_hand_and_in_chunks():
    """On a line with k = 1: the balls of 0, 1, 3 reach 1, 1, 2."""
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]).double(), torch.tensor([[0.5], [4.5], [9.0]]).double()
    expected = (2 / 3, 1.0, 3 / 3, 1.0)  # 0.5 lies in two balls, 4.5 in one
    for chunk in (1, 2, 100):
        assert prdc(fake, real, k=1, chunk=chunk) == pytest.approx(expected)


# Others


def test_wasserstein_of_shift_and_of_unequal_sizes():
    x = normal(50, 3, 0)
    assert torch.allclose(wasserstein_1d(x, x + 0.7), torch.full((3,), 0.49, dtype=torch.float64))
    from scipy.stats import wasserstein_distance

    y = normal(31, 3, 1)
    ours = wasserstein_1d(x, y, p=1.0)
    for j in range(3):
        assert float(ours[j]) == pytest.approx(wasserstein_distance(x[:, j].numpy(), y[:, j].numpy()), rel=1e-10)
    assert torch.allclose(wasserstein_1d(x, x.repeat(3, 1)), torch.zeros(3, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("copies", [1, 3])
def test_wasserstein_by_hand(copies):
    """0 and 1 go to 3 and 0 in either order: 0 to 0 and 1 to 3, (0 + 2^p) / 2; copies of all points change nothing."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [0.0]]).repeat(copies, 1)
    for p in (1.0, 2.0, 3.0):
        assert float(wasserstein_1d(x, y, p=p)) == pytest.approx(2**p / 2, rel=1e-12)


def test_sliced_wasserstein_of_a_shift():
    """Along a direction u the distance squared is (u.v)^2, whose mean over the sphere is |v|^2 / d."""
    x, v = normal(20, 4, 0), torch.tensor([1.0, 2.0, 0.0, -1.0]).double()
    values = sliced_wasserstein(x, x + v, projections=20_000)
    assert float(values.mean()) == pytest.approx(6 / 4, rel=0.03)


def test_inception_score_bounds():
    assert inception_score(torch.eye(5).repeat(4, 1)) == pytest.approx(5.0)
    assert inception_score(torch.full((10, 5), 0.2)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="softmax"):
        inception_score(torch.randn(4, 3))


def test_copy_rate_flags_copies_and_not_fresh_data():
    train, held_out, fresh = normal(300, 6, 0), normal(200, 6, 1), normal(400, 6, 2)
    metric = METRICS.build("copy_rate")
    honest = metric(fresh, held_out, train)[0]
    assert not honest.details["copies"] and honest.value < 0.15
    half = torch.cat([fresh[:200], train[:200] + 1e-3 * normal(200, 6, 3)])
    caught = metric(half, held_out, train)[0]
    assert caught.details["copies"] and caught.value > 0.45
    assert metric(train, held_out, train)[0].details["duplicates"] == 300
    with pytest.raises(ValueError, match="train="):
        metric(fresh, held_out)


# The frame around them


def test_every_metric_runs_on_the_same_call_and_names_its_origin():
    p = torch.softmax(normal(60, 4, 5), 1)
    fake = FeatureSet(normal(60, 6, 0), "f", "abc", source="samples", probabilities=p)
    real = FeatureSet(normal(50, 6, 1), "f", "abc", source="test split", probabilities=p[:50])
    train = FeatureSet(normal(55, 6, 2), "f", "abc")
    results = compare(fake, real, train=train, metrics=METRICS.names(), on_error="raise")
    assert len(results) >= len(METRICS.names())
    for result in results:
        assert result.provenance["n_fake"] == 60 and result.provenance["feature_hash"] == "abc"
        assert "settings" in result.provenance and result.label.endswith("@60")
        assert result.name not in ("fid", "kid", "inception_score")  # those names belong to Inception features
        assert str(result)
    import json

    json.dumps([r.as_dict() for r in results])
    again = compare(fake, real, train=train, metrics=METRICS.names())
    assert [r.value for r in again] == [r.value for r in results]


def test_a_failing_metric_is_recorded_with_its_reason():
    x = normal(30, 3, 0)
    results = compare(FeatureSet(x), FeatureSet(x), metrics=("fd(groups=0)", "inception_score"))
    assert results[0].error is None
    assert "class probabilities" in results[1].error and results[1].as_dict()["value"] is None
    with pytest.raises(ValueError, match="class probabilities"):
        compare(FeatureSet(x), FeatureSet(x), metrics=("inception_score",), on_error="raise")


def test_bad_features_are_named():
    x = normal(30, 3, 0)
    x[7, 1] = math.nan
    with pytest.raises(ValueError, match="sample 7"):
        FrechetDistance()(x, normal(30, 3, 1))
    with pytest.raises(ValueError, match="width"):
        FrechetDistance()(normal(30, 3, 0), normal(30, 4, 1))
    with pytest.raises(ValueError, match="different maps"):
        FrechetDistance()(FeatureSet(normal(9, 3, 0), "a"), FeatureSet(normal(9, 3, 0), "b"))
    with pytest.raises(ValueError, match="extract"):
        FrechetDistance()(torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 8))
    with pytest.raises(ValueError, match="came out as nan"):
        MetricResult("fd", math.nan)


def test_features_do_not_depend_on_batches_and_accept_levels():
    images = torch.randint(0, 17, (23, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    pixels = extract("pixels", images, levels=17)
    assert pixels.x.max() == 1 and pixels.x.shape == (23, 64) and pixels.data_hash
    net = RandomConv()
    a, b = extract(net, images, levels=17, batch_size=5), extract("random_conv", images, levels=17)
    assert torch.allclose(a.x, b.x, atol=1e-6) and a.fingerprint == b.fingerprint
    assert extract("random_conv(seed=1)", images, levels=17).fingerprint != a.fingerprint
    assert extract(lambda x: x.flatten(1).mean(1, keepdim=True), images, levels=17).x.shape == (23, 1)


@pytest.mark.parametrize("shape", [(2, 9), (3, 7, 5), (1, 4, 5, 6), (1, 1, 1)])
def test_random_features_of_any_shape(shape):
    features = RandomConv(channels=shape[0], rank=len(shape) - 1)(torch.rand(4, *shape))
    assert features.shape == (4, 96) and torch.isfinite(features).all()


@pytest.mark.parametrize("shape", [(6,), (2, 20), (1, 8, 8), (1, 6, 6, 6)])
def test_classifier_learns_and_is_deterministic(shape):
    """Three classes by brightness; the global generator must not move."""
    labels = torch.arange(150) % 3
    images = 0.2 * torch.rand(150, *shape) + labels.view(-1, *[1] * len(shape)) * 0.3
    before = torch.get_rng_state()
    first = SmallClassifier(width=8, epochs=15).fit(images, labels)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # weights come from the seed, not from where the global generator stands
    second = SmallClassifier(width=8, epochs=15).fit(images, labels)
    assert first.accuracy(images, labels) > 0.95
    a, b = extract(first, images), extract(second, images)
    assert torch.equal(a.x, b.x) and a.fingerprint == b.fingerprint
    assert a.x.shape == (150, 64) and torch.allclose(a.probabilities.sum(1), torch.ones(150).double())


def test_unfitted_classifier_says_what_to_write():
    with pytest.raises(ValueError, match="fit"):
        extract("classifier", torch.rand(3, 1, 8, 8))


def test_inception_names_the_missing_package(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match="pip install"):
        extract("inception", torch.rand(3, 3, 8, 8))
