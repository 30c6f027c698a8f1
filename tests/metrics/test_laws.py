"""Small cases worked out by hand: which value, which error, which sample, which setting."""

import json
import math

import numpy as np
import pytest
import torch

from sde_score.metrics import (
    METRICS,
    CategoricalMixture,
    Classes,
    CopyRate,
    FeatureSet,
    FrechetDistance,
    GaussianStats,
    InceptionScore,
    MetricResult,
    bits_per_dim,
    compare,
    extract,
    frechet_distance,
    likelihood_baselines,
    nearest_distance,
    polynomial_kernel,
    unbiased_mmd2,
)
from sde_score.metrics.base import module_hash
from sde_score.metrics.errors import block_indices, number_of_blocks
from sde_score.metrics.mmd import RBF, block_mmd2


def normal(n, d, seed, *, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


# Copies

TRAIN = column(0, 100, 200)
HELD_OUT = torch.arange(1.0, 21)[:, None]  # at distances 1 .. 20 from 0


def test_nearest_distance_on_a_line():
    distance, index = nearest_distance(column(98, 3, -4, 150), TRAIN, chunk=3)
    assert distance.tolist() == [2, 3, 4, 50] and index.tolist() == [1, 0, 0, 1]


def test_copy_rate_by_hand():
    """The 0.25 quantile of 1 .. 20 is 5.75, below which lie 5 of 20."""
    fake = column(200, 200.5, 105, 6, 50, -5.75, 140, 17)
    result = CopyRate(quantile=0.25)(fake, HELD_OUT, TRAIN)[0]
    assert result.value == 4 / 8 and result.details["threshold"] == 5.75, (
        "0, 0.5, 5, 5.75 are within; 6, 17, 40, 50 not"
    )
    assert result.details["held_out"] == 5 / 20 and result.details["excess"] == 0.25
    assert result.stderr == pytest.approx(math.sqrt(0.5 * 0.5 / 8 + 0.25 * 0.75 / 20), rel=1e-12)
    assert result.details["duplicates"] == 1 and not result.details["copies"]
    assert result.details["median_ratio"] == 5.75 / 10
    assert [i for i, _, _ in result.details["closest"]] == [0, 1, 2, 5, 3, 7, 6, 4]
    assert result.details["closest"][:3] == [[0, 2, 0.0], [1, 2, 0.5], [2, 1, 5.0]]
    assert result.provenance["n_train"] == 3 and result.provenance["n_real"] == 20
    many = CopyRate()(torch.arange(40.0)[:, None], HELD_OUT, TRAIN)[0]
    assert [i for i, _, _ in many.details["closest"]] == list(range(16))


@pytest.mark.parametrize("near, copies", [(0, False), (20, False), (23, False), (36, True), (80, True)])
def test_copies_are_flagged_beyond_four_errors_and_twice_the_expected_rate(near, copies):
    """100 held-out samples and q = 0.1; of 80 generated ones so many lie near the training set. Four errors: 0.1 + 4 *
    sqrt(r (1 - r) / 80 + 0.0009) is passed between r = 0.4 and 0.45."""
    held_out = torch.arange(1.0, 101)[:, None]
    fake = torch.cat([torch.full((near, 1), 0.1), torch.full((80 - near, 1), -60.0)])
    result = CopyRate(quantile=0.1)(fake, held_out, column(0))[0]
    assert result.value == near / 80 and result.details["copies"] is copies
    assert result.details["excess"] == pytest.approx(near / 80 - 0.1, rel=1e-12)


def test_twice_the_expected_rate_is_needed_even_when_the_excess_is_certain():
    """q = 0.6 can never be doubled."""
    fake, held_out = torch.zeros(5000, 1), torch.arange(1.0, 5001)[:, None]
    result = CopyRate(quantile=0.6)(fake, held_out, column(0))[0]
    assert result.details["excess"] > 4 * result.stderr and not result.details["copies"]


# Blocks


@pytest.mark.parametrize(
    "n, m, asked, expected",
    [
        (500, 100, None, 10),
        (10_000, 50, None, 10),
        (10_001, 5000, None, 11),
        (5000, 20_000, None, 20),
        (20_000, 5000, None, 20),
        (500, 15, None, 7),
        (9, 500, None, 4),
        (500, 500, 3, 3),
        (500, 500, 400, 250),
        (2, 3, None, 1),
        (2, 3, 5, 1),
    ],
)
def test_number_of_blocks(n, m, asked, expected):
    assert number_of_blocks(n, m, asked) == expected


def test_blocks_are_a_seeded_partition_of_nearly_equal_sizes():
    parts = block_indices(23, 5, 7)
    assert sorted(torch.cat(parts).tolist()) == list(range(23)) and sorted(map(len, parts)) == [4, 4, 5, 5, 5]
    assert torch.cat(parts).tolist() != list(range(23))
    again, other = block_indices(23, 5, 7), block_indices(23, 5, 8)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not torch.equal(torch.cat(parts), torch.cat(other))


@pytest.mark.parametrize("spec", ["kid(blocks=4, seed=3)", "mmd(scales=(0.7, 2.), blocks=4, seed=3)"])
def test_kernel_distances_are_means_over_blocks(spec):
    x, y = normal(40, 2, 0, mean=0.5), normal(36, 2, 1, std=2.0)
    distances = (y[:, None] - y).norm(dim=2)
    median = float(distances[distances > 0].median())
    kernel = polynomial_kernel if spec.startswith("kid") else RBF((0.7 * median, 2 * median))
    values = [
        float(unbiased_mmd2(x[i], y[j], kernel)) for i, j in zip(block_indices(40, 4, 3), block_indices(36, 4, 4))
    ]
    torch.testing.assert_close(block_mmd2(x, y, kernel, blocks=4, seed=3).tolist(), values)
    result = METRICS.build(spec)(x, y)[0]
    assert result.value == pytest.approx(np.mean(values), rel=1e-10) and result.details["n_blocks"] == 4
    assert result.stderr == pytest.approx(np.std(values, ddof=1) / 2, rel=1e-10)
    assert METRICS.build(spec.replace("seed=3", "seed=4"))(x, y)[0].value != result.value
    assert not np.isclose(METRICS.build(spec)(y, x)[0].value, result.value, rtol=1e-6), "blocks of x and y differ"


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_degree_of_the_polynomial_kernel(degree):
    x, y = normal(6, 2, 0), normal(6, 2, 1)
    expected = sum(((x[i] @ y[j]) / 2 + 1) ** degree for i in range(6) for j in range(6))
    assert float(polynomial_kernel(x, y, degree=degree).sum()) == pytest.approx(float(expected), rel=1e-12)
    whole = float(unbiased_mmd2(x, y, lambda a, b: (a @ b.T / 2 + 1) ** degree))
    assert METRICS.build(f"kid(degree={degree}, blocks=1)")(x, y)[0].value == pytest.approx(whole, rel=1e-12)


def test_gaussian_kernel_is_a_mean_over_scales():
    k = RBF((0.5, 3.0))(column(0, 1), column(2))
    expected = [(math.exp(-(d**2) / (2 * 0.25)) + math.exp(-(d**2) / 18)) / 2 for d in (2, 1)]
    assert k[:, 0].tolist() == pytest.approx(expected, rel=1e-12)


# Neighbours


def slow_prdc(fake, real, k):
    """The definitions, sample by sample."""
    radius = lambda s, i: sorted(math.dist(s[i], s[j]) for j in range(len(s)) if j != i)[k - 1]  # noqa: E731
    real_radii, fake_radii = [radius(real, i) for i in range(len(real))], [radius(fake, i) for i in range(len(fake))]
    inside = np.array([[math.dist(f, r) <= radius for r, radius in zip(real, real_radii)] for f in fake])
    recall = np.mean([any(math.dist(f, r) <= radius for f, radius in zip(fake, fake_radii)) for r in real])
    return inside.any(1).mean(), recall, inside.sum() / (k * len(fake)), inside.any(0).mean()


@pytest.mark.parametrize("k, blocks, seed", [(1, 3, 0), (3, 2, 5)])
def test_precision_and_recall_from_their_definitions(k, blocks, seed):
    fake, real = normal(44, 2, 0, mean=0.8), normal(41, 2, 1)
    results = METRICS.build(f"prdc(k={k}, blocks={blocks}, seed={seed})")(fake, real)
    assert [r.value for r in results] == pytest.approx(slow_prdc(fake.tolist(), real.tolist(), k), rel=1e-12)
    pairs = zip(block_indices(44, blocks, seed), block_indices(41, blocks, seed + 1))
    parts = np.array([slow_prdc(fake[i].tolist(), real[j].tolist(), k) for i, j in pairs])
    assert [r.stderr for r in results] == pytest.approx(list(parts.std(0, ddof=1) / math.sqrt(blocks)), rel=1e-9)
    assert [r.name for r in results] == ["precision", "recall", "density", "coverage"]
    assert {r.better for r in results} == {"higher"} and {r.details["n_blocks"] for r in results} == {blocks}


@pytest.mark.parametrize(
    "n, m, k, blocks", [(60, 60, 5, 2), (59, 80, 5, 1), (80, 59, 5, 1), (60, 60, 6, 1), (700, 450, 5, 10)]
)
def test_blocks_of_precision_and_recall_have_five_times_as_many_samples_as_they_need(n, m, k, blocks):
    result = METRICS.build(f"prdc(k={k})")(normal(n, 2, 0), normal(m, 2, 1))[0]
    assert result.details["n_blocks"] == blocks and (result.stderr is None) == (blocks == 1)


# Classes and inception score


def test_inception_score_by_hand():
    """p = (1, 0), (1/2, 1/2): the marginal is (3/4, 1/4)."""
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    kl = [math.log(4 / 3), 0.5 * math.log(2 / 3) + 0.5 * math.log(2)]
    found = InceptionScore()(FeatureSet(column(0, 0), probabilities=p), FeatureSet(column(0), probabilities=p[:1]))[0]
    assert found.value == pytest.approx(math.exp(sum(kl) / 2), rel=1e-12) and found.better == "higher"
    assert found.details == {"n_splits": 1, "real_value": 1.0} and found.stderr is None


@pytest.mark.parametrize(
    "n, splits, expected", [(19, 10, 1), (20, 10, 2), (99, 10, 9), (500, 10, 10), (500, 3, 3), (500, 1, 1)]
)
def test_splits_of_the_inception_score(n, splits, expected):
    p = torch.softmax(normal(n, 4, 0), 1)
    metric = InceptionScore(splits=splits, seed=2)
    result = metric(FeatureSet(torch.zeros(n, 1), probabilities=p))[0]
    assert result.details["n_splits"] == expected
    q = p.numpy()
    score = lambda part: math.exp((part * np.log(part / part.mean(0))).sum(1).mean())  # noqa: E731
    assert result.value == pytest.approx(score(q), rel=1e-10)
    if expected > 1:
        parts = [score(q[i.numpy()]) for i in block_indices(n, expected, 2)]
        assert result.stderr == pytest.approx(np.std(parts, ddof=1) / math.sqrt(expected), rel=1e-9)


def test_classes_by_hand():
    p = torch.tensor(
        [[0.7, 0.3, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0], [0.2, 0.75, 0.05, 0.0], [0.5, 0.3, 0.2, 0.0]]
    ).double()
    real = torch.tensor([[0.2, 0.8, 0.0, 0.0], [0.1, 0.65, 0.25, 0.0], [0.6, 0.3, 0.1, 0.0]])
    fake = FeatureSet(torch.zeros(4, 1), probabilities=p)
    recognised, entropy = Classes(threshold=0.7)(fake, FeatureSet(torch.zeros(3, 1), probabilities=real))
    assert recognised.value == 0.5 and recognised.stderr == pytest.approx(0.25), "0.7 does not exceed 0.7"
    assert recognised.details["histogram"] == [3, 1, 0, 0] and recognised.details["real_histogram"] == [1, 2, 0, 0]
    assert recognised.details["real_value"] == pytest.approx(1 / 3) and recognised.better == "higher"
    h = 0.75 * math.log2(4 / 3) + 0.25 * 2
    assert entropy.value == pytest.approx(h, rel=1e-12) and entropy.better is None
    second = 0.75 * math.log2(4 / 3) ** 2 + 0.25 * 4
    assert entropy.stderr == pytest.approx(math.sqrt((second - h * h) / 4), rel=1e-9)
    assert entropy.details["histogram"] == [3, 1, 0, 0]


# Fréchet distance


def test_reference_statistics_are_the_usual_ones_and_survive_the_disk_whole(tmp_path):
    x = normal(9, 3, 0, mean=2.0)
    stats = GaussianStats.of(FeatureSet(x, "f", "abc", source="test"))
    np.testing.assert_allclose(stats.mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.cov, np.cov(x.numpy(), rowvar=False), rtol=1e-10)
    (tmp_path / "new").mkdir()
    loaded = GaussianStats.load(stats.save(tmp_path / "new" / "a.npz"))
    assert torch.equal(loaded.mean, stats.mean) and torch.equal(loaded.cov, stats.cov)
    assert (loaded.n, loaded.feature, loaded.fingerprint, loaded.source) == (9, "f", "abc", "test")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.npz"]
    result = FrechetDistance()(FeatureSet(normal(8, 3, 1), "f", "abc"), loaded)[0]
    assert result.provenance["n_real"] == 9 and result.provenance["real_feature_hash"] == "abc"


def test_rounding_gives_no_negative_distance():
    """An asymmetry and an eigenvalue of the size of rounding, and equal arguments."""
    cov = torch.tensor([[1.0, 2.0], [2.0, 4.0]]).double() + torch.tensor([[0, 1e-15], [0, -1e-15]]).double()
    for scale in (1.0, 3.3, 1e5):
        value = frechet_distance(torch.zeros(2), scale * cov, torch.zeros(2), scale * cov)
        assert 0 <= value < 1e-7 * scale


def test_hashes_of_any_type():
    for dtype in (torch.bfloat16, torch.bool, torch.int64):
        assert extract("pixels", torch.zeros(2, 1, 2, 2, dtype=dtype)).data_hash
    hashes = {extract("pixels", torch.zeros(2, 4, dtype=dtype)).data_hash for dtype in (torch.int32, torch.float32)}
    assert len(hashes) == 2, "the same bytes"
    x = torch.rand(2, 6)
    assert extract("pixels", x[:, ::2]).data_hash == extract("pixels", x[:, ::2].clone()).data_hash


def test_seed_and_groups_reach_the_jackknife():
    x, y = normal(40, 3, 0), normal(30, 3, 1)
    for first, second in (("fd", "fd(seed=1)"), ("fd(groups=5)", "fd(groups=6)"),
                          ("sliced_wasserstein(groups=5)", "sliced_wasserstein(groups=6)")):  # fmt: skip
        a, b = METRICS.build(first)(x, y)[0], METRICS.build(second)(x, y)[0]
        assert a.value == b.value and a.stderr != b.stderr


def test_seed_of_the_sliced_wasserstein_distance():
    x, y = normal(40, 3, 0), normal(30, 3, 1)
    values = {
        METRICS.build(f"sliced_wasserstein(projections={p}, seed={s})")(x, y)[0].value for p in (20, 21) for s in (0, 1)
    }
    assert len(values) == 4


# Likelihood baselines


def test_weights_of_a_mixture():
    """Kinds far apart, 30 to 10: w = (n_k + a) / (N + 2 a), and the tables likewise."""
    x = torch.cat([torch.zeros(30, 6), torch.full((10, 6), 4)]).long()
    model = CategoricalMixture(5, 2, smoothing=0.5, tolerance=1e-13).fit(x)
    assert sorted(model.log_weights.exp().tolist()) == pytest.approx([10.5 / 41, 30.5 / 41], abs=1e-6)
    zero = math.log(30.5 / 41) + 6 * math.log(30.5 / 32.5)
    assert float(model.log_prob(x[:1])) == pytest.approx(zero, abs=1e-6)


def test_em_stands_still_at_soft_responsibilities():
    """At a fixed point the tables are the smoothed frequencies under the posterior of the components, which is soft
    here: hard assignment, or a posterior that is not normalised, stands elsewhere."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (60, 4), generator=g) * torch.randint(0, 2, (60, 1), generator=g)
    model = CategoricalMixture(3, 2, smoothing=0.2, tolerance=1e-14, iterations=3000).fit(x)
    w, table = model.log_weights.exp().numpy(), model.log_table.exp().numpy()  # (K,), (D, L, K)
    joint = np.array(
        [[w[k] * np.prod([table[d, row[d], k] for d in range(4)]) for k in range(2)] for row in x.tolist()]
    )
    r = joint / joint.sum(1, keepdims=True)
    assert 0.1 < r.max(1).min() < 0.9, "soft"
    np.testing.assert_allclose(w, (r.sum(0) + 0.2) / (60 + 0.4), atol=1e-5)
    for d in range(4):
        for v in range(3):
            n = r[(x[:, d] == v).numpy()].sum(0)
            np.testing.assert_allclose(table[d, v], (n + 0.2) / (r.sum(0) + 0.6), atol=1e-5)
    np.testing.assert_allclose(model.log_prob(x), np.log(joint.sum(1)), rtol=1e-10)
    penalty = 0.2 * (np.log(table).sum() + np.log(w).sum())
    assert model.history[-1] == pytest.approx(np.log(joint.sum(1)).sum() + penalty, abs=1e-6)


def test_em_stops_by_its_gain_per_sample():
    x = torch.randint(0, 3, (80, 5), generator=torch.Generator().manual_seed(0))
    loose, tight = (CategoricalMixture(3, 3, tolerance=t, iterations=500).fit(x) for t in (1e-2, 1e-5))
    for model, tolerance in ((loose, 1e-2), (tight, 1e-5)):
        gains = np.diff(model.history) / 80
        assert gains[-1] < tolerance and (gains[:-1] >= tolerance).all() and len(gains) < 499
    assert len(loose.history) < len(tight.history)
    assert len(CategoricalMixture(3, 3, iterations=4, tolerance=0.0).fit(x).history) == 4
    assert len(CategoricalMixture(3, 1).fit(x).history) == 1


def test_a_mixture_starts_at_images_that_lie_far_apart():
    """Three tight kinds of very different size: EM from such a start finds all three, whatever the seed."""
    x = torch.cat([torch.zeros(80, 8), torch.full((10, 8), 5), torch.full((10, 8), 9)]).long()
    for seed in range(12):
        model = CategoricalMixture(10, 3, seed=seed).fit(x)
        assert sorted(model.log_weights.exp().tolist()) == pytest.approx(
            [10.1 / 100.3, 10.1 / 100.3, 80.1 / 100.3], abs=1e-3
        )


def test_large_sets_are_counted_in_chunks():
    """More than five million values: the counts must not depend on the pieces."""
    x = torch.randint(0, 2, (70_000, 80), generator=torch.Generator().manual_seed(0))
    model = CategoricalMixture(2, 1, smoothing=1.0).fit(x)
    expected = (x.double().sum(0) + 1) / (70_000 + 2)
    torch.testing.assert_close(model.log_table[:, 1, 0].exp(), expected, rtol=1e-10, atol=0)


def test_bits_per_dim_and_its_error():
    g = torch.Generator().manual_seed(0)
    train, test = (torch.randint(0, 4, (n, 1, 3, 2), generator=g).clamp(max=2) for n in (50, 30))
    results = likelihood_baselines(train, test, levels=4, components=(2, 3), smoothing=0.7, seed=5)
    models = [CategoricalMixture(4, k, 0.7, seed=5).fit(train) for k in (1, 2, 3)]
    assert results[0].value == pytest.approx(2.0, rel=1e-12) and results[0].stderr is None
    for result, model in zip(results[1:], models, strict=True):
        values = -model.log_prob(test) / math.log(2) / 6
        torch.testing.assert_close(bits_per_dim(model, test), values)
        assert result.value == pytest.approx(float(values.mean()), rel=1e-12)
        assert result.stderr == pytest.approx(float(values.std()) / math.sqrt(30), rel=1e-12)
    assert results[1].provenance["n_train"] == 50 and results[1].provenance["dimension"] == 6


# The frame


def test_a_result_in_words_and_as_json():
    result = MetricResult("fd", 1.23456, 0.0123, n=500)
    assert str(result) == "fd@500 = 1.235 ± 0.012"
    assert str(MetricResult("fd", 2.0)) == "fd = 2"
    assert result.as_dict()["label"] == "fd@500" and result.as_dict()["value"] == 1.23456
    failed = MetricResult("fd", math.nan, n=3, error="ValueError: no")
    assert json.loads(json.dumps(failed.as_dict()))["value"] is None
    assert str(failed) == "fd@3 failed: ValueError: no"


def test_the_origin_of_a_number_is_complete():
    fake, real, train = (FeatureSet(normal(n, 2, n), "f", "abc", f"hash {n}", f"set {n}") for n in (30, 25, 21))
    for result in compare(fake, real, train=train, metrics=("kid(blocks=3)", "copy_rate"), on_error="raise"):
        p = result.provenance
        assert (p["n_fake"], p["fake"], p["fake_hash"]) == (30, "set 30", "hash 30") and result.n == 30
        assert (p["n_real"], p["real"], p["real_hash"]) == (25, "set 25", "hash 25")
        assert (p["feature"], p["feature_hash"], p["dimension"]) == ("f", "abc", 2)
        assert result.better == "lower"
    assert compare(fake, real, metrics=("kid(blocks=3)",))[0].provenance["settings"] == {
        "degree": 3,
        "blocks": 3,
        "seed": 0,
    }
    assert (p["n_train"], p["train"], p["train_hash"]) == (21, "set 21", "hash 21")


def test_a_fingerprint_is_that_of_the_weights():
    layer = torch.nn.Linear(2, 2)
    first = module_hash(layer)
    assert first == module_hash(layer) and len(first) == 12
    with torch.no_grad():
        layer.bias[0] += 1
    assert module_hash(layer) != first
    images = torch.rand(9, 2)
    a = extract(layer, images)
    with torch.no_grad():
        layer.weight[0, 0] += 1
    with pytest.raises(ValueError, match="different maps"):
        compare(extract(layer, images), a, metrics=("fd",), on_error="raise")
    assert compare(FeatureSet(a.x), a, metrics=("fd",), on_error="raise"), "given features are taken at their word"
    assert compare(a, FeatureSet(a.x), metrics=("fd",), on_error="raise")
