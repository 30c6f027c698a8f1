"""Are the standard errors those of the values? Against closed forms, a bootstrap and fresh draws from the law."""

import math

import numpy as np
import pytest
import torch

from sde_score.metrics import METRICS, FeatureSet, FrechetDistance, GaussianStats, sliced_wasserstein
from sde_score.metrics.errors import block_indices, jackknife, jackknife_error, standard_error


def normal(n, d, seed, *, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_standard_error_of_a_mean():
    assert standard_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4), rel=1e-12)
    assert standard_error([1.0]) is None and standard_error(torch.empty(0)) is None


def test_jackknife_of_a_mean_is_its_standard_error():
    """With a group for each row exactly, in any order of the rows; one number or several."""
    x = normal(23, 2, 0) + torch.tensor([0, 5])
    values = jackknife(lambda x: x.mean(0), x, groups=23, seed=0)
    torch.testing.assert_close(jackknife_error(values), x.std(0) / math.sqrt(23))
    torch.testing.assert_close(values.mean(0), x.mean(0))
    one = jackknife(lambda x: x[:, 1].mean(), x, groups=23, seed=5)
    torch.testing.assert_close(jackknife_error(one), x[:, 1].std() / math.sqrt(23))


def test_jackknife_leaves_every_row_out_once_and_adds_the_variances_of_two_sets():
    x, y = torch.arange(11.0)[:, None], 100 + torch.arange(7.0)[:, None]
    seen = []
    jackknife(lambda a, b: seen.append((set(a[:, 0].tolist()), set(b[:, 0].tolist()))) or 0.0, x, y, groups=4, seed=1)
    for i, (whole, sizes) in enumerate([(set(x[:, 0].tolist()), {8, 9}), (set(y[:, 0].tolist()), {5, 6})]):
        assert {len(kept[i]) for kept in seen} == sizes
        left_out = [whole - kept[i] for kept in seen]
        assert sorted(v for group in left_out for v in group) == sorted(whole)
    # independent sets: the mean square over data sets is var/n + var/m, within five of its errors sqrt(2 / (9 * 200))
    squares = [
        float(jackknife_error(jackknife(lambda a, b: a.mean() - b.mean(), normal(40, 1, s), normal(20, 1, s + 500),
                                        groups=10, seed=0))) ** 2
        for s in range(200)
    ]  # fmt: skip
    assert np.mean(squares) == pytest.approx(1 / 40 + 1 / 20, rel=0.17)


def test_jackknife_of_two_sets_uses_different_partitions():
    """Paired partitions of paired sets would subtract what must add."""
    x = normal(50, 1, 0)
    values = jackknife(lambda a, b: a.mean() - b.mean(), x, x, groups=10, seed=0)
    assert float(jackknife_error(values)) > 0.5 * float(x.std()) / math.sqrt(50)


def test_jackknife_refuses_what_tells_nothing():
    statistic = lambda x: float(len(x))  # noqa: E731
    assert jackknife(statistic, normal(9, 1, 0), groups=0, seed=0) is None
    assert jackknife(statistic, normal(2, 1, 0), groups=10, seed=0) is None, "one row would stay"
    assert jackknife(statistic, normal(3, 1, 0), groups=10, seed=0).tolist() == [2, 2, 2]
    assert jackknife(statistic, normal(9, 1, 0), groups=2, seed=0, least=5) is None, "four rows may stay"
    assert jackknife(statistic, normal(10, 1, 0), groups=2, seed=0, least=5).tolist() == [5, 5]


def test_jackknife_of_the_frechet_distance_on_the_line():
    """d = 1 and a law fixed at N(0, 0): FD = mean^2 + s^2, a U-statistic but for mean^2, of which the jackknife with a
    group for each sample takes exactly the bias s^2 / n away; the error follows from the leave-one-out values."""
    x = normal(12, 1, 0, mean=0.4)
    fixed = GaussianStats(torch.zeros(1).double(), torch.zeros(1, 1).double(), n=1000)
    result = FrechetDistance(groups=12)(x, fixed)[0]
    v = x[:, 0].numpy()
    assert result.value == pytest.approx(v.mean() ** 2 + v.var(ddof=1), rel=1e-10)
    assert result.details["bias_corrected"] == pytest.approx(v.mean() ** 2 + v.var(ddof=1) * 11 / 12, rel=1e-9)
    without = [np.delete(v, i) for i in range(12)]
    without = np.array([w.mean() ** 2 + w.var(ddof=1) for w in without])
    assert result.stderr == pytest.approx(math.sqrt(11 / 12 * ((without - without.mean()) ** 2).sum()), rel=1e-9)
    assert result.details["groups"] == 12 and FrechetDistance(groups=40)(x, fixed)[0].details["groups"] == 12


def test_jackknife_of_both_sets_on_the_line():
    """d = 1: FD = (m1 - m2)^2 + (s1 - s2)^2, with a group of both sets left out at once."""
    x, y = normal(21, 1, 0, mean=0.4), normal(17, 1, 1, std=1.7)
    line = lambda a, b: (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2  # noqa: E731
    pairs = zip(block_indices(21, 4, 9), block_indices(17, 4, 10), strict=True)
    left_out = np.array([line(np.delete(x[:, 0].numpy(), i), np.delete(y[:, 0].numpy(), j)) for i, j in pairs])
    result = FrechetDistance(groups=4, seed=9)(x, y)[0]
    assert result.value == pytest.approx(line(x[:, 0].numpy(), y[:, 0].numpy()), rel=1e-9)
    assert result.stderr == pytest.approx(math.sqrt(3 * left_out.var()), rel=1e-8)
    assert result.details["bias_corrected"] == pytest.approx(4 * result.value - 3 * left_out.mean(), rel=1e-8)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_sliced_wasserstein_error_adds_samples_and_directions_in_squares(p):
    x, y = normal(21, 3, 0, mean=0.4), normal(17, 3, 1, std=1.7)
    root = lambda a, b: float(sliced_wasserstein(a, b, projections=30, p=p, seed=9).mean()) ** (1 / p)  # noqa: E731
    pairs = zip(block_indices(21, 4, 9), block_indices(17, 4, 10), strict=True)
    left_out = np.array([root(np.delete(x, i, 0), np.delete(y, j, 0)) for i, j in pairs])
    along = sliced_wasserstein(x, y, projections=30, p=p, seed=9).numpy()
    # the root's derivative, by a difference
    slope = ((along.mean() + 1e-6) ** (1 / p) - (along.mean() - 1e-6) ** (1 / p)) / 2e-6
    directions = slope * along.std(ddof=1) / math.sqrt(30)
    result = METRICS.build(f"sliced_wasserstein(projections=30, p={p}, groups=4, seed=9)")(x, y)[0]
    assert result.value == pytest.approx(root(x, y), rel=1e-10)
    assert result.details["direction_error"] == pytest.approx(directions, rel=1e-6)
    assert result.stderr == pytest.approx(math.sqrt(3 * left_out.var() + directions**2), rel=1e-6)


def test_groups_of_the_frechet_distance():
    x, y = normal(30, 3, 0), normal(25, 3, 1)
    result = FrechetDistance()(x, y)[0]
    assert result.details["groups"] == 10 and result.stderr > 0
    none = FrechetDistance(groups=0)(x, y)[0]
    assert none.stderr is None and none.value == result.value and "bias_corrected" not in none.details
    assert FrechetDistance()(normal(4, 512, 0), y := normal(4, 512, 1))[0].stderr is not None
    assert FrechetDistance()(normal(4, 513, 0), torch.cat([y, y[:, :1]], 1))[0].stderr is None


def law(seed, n=150, m=120):
    """Features and class probabilities of a generator that is off, and of the data."""
    p = torch.softmax(3 * normal(n, 3, seed + 20_000) + torch.tensor([3.0, 1.0, 0.0]), 1)
    fake = FeatureSet(normal(n, 3, seed, mean=0.6, std=1.3), probabilities=p)
    return fake, FeatureSet(normal(m, 3, seed + 10_000))


def resampled(features, seed):
    index = torch.randint(len(features), (len(features),), generator=torch.Generator().manual_seed(seed))
    return features.take(index)


# Errors with 9 degrees of freedom: the root mean square of 16 of them has a relative error of 6 %.
SMOOTH = [
    "fd",
    "kid",
    "mmd(scales=(1.,))",
    "inception_score",
    "sliced_wasserstein(projections=64)",
    "classes(threshold=0.8)",
]


def of_samples(result):
    """The part of a standard error that resampling sees: directions are the same in every resample."""
    return math.sqrt(result.stderr**2 - result.details.get("direction_error", 0.0) ** 2)


@pytest.mark.parametrize("spec", SMOOTH)
def test_standard_errors_agree_with_a_bootstrap(spec):
    """Deviation of the value over 30 resamples, with replacement, of both sets of the same features. Bounds: five
    relative errors of 16 such comparisons; false alarm below 1e-5."""
    quick = METRICS.build(spec)
    if hasattr(quick, "groups"):
        quick.groups = 0  # the resamples need no errors
    ours, bootstrap = [], []
    for s in range(16):
        fake, real = law(s)
        ours.append([of_samples(r) for r in METRICS.build(spec)(fake, real)])
        values = [[r.value for r in quick(resampled(fake, b), resampled(real, b + 999))] for b in range(30)]
        bootstrap.append(np.std(values, axis=0, ddof=1))
    ratio = np.sqrt(np.mean(np.square(ours), 0) / np.mean(np.square(bootstrap), 0))
    assert (ratio > 0.7).all() and (ratio < 1.35).all(), ratio


@pytest.mark.parametrize("spec, high", [*((spec, 1.4) for spec in SMOOTH), ("prdc", 2.0), ("copy_rate", 1.4)])
def test_standard_errors_agree_with_fresh_draws(spec, high):
    """Deviation of the value over 60 independent data sets, itself known to 9 %: bounds are three and a half of those
    (false alarm 1e-3 for each), but for recall, which is near 1 and so fluctuates more on small sets. Neighbours do not
    survive a bootstrap, whose duplicates have distance 0."""
    train = FeatureSet(normal(200, 3, 77))
    values, errors = [], []
    for s in range(60):
        fake, real = law(s)
        if spec == "copy_rate":  # the training set is fixed; the error is that of fresh data
            fake, real = FeatureSet(normal(150, 3, s)), FeatureSet(normal(120, 3, s + 10_000))
        results = METRICS.build(spec)(fake, real, train)
        values.append([r.value for r in results])
        errors.append([of_samples(r) for r in results])
    ratio = np.sqrt(np.mean(np.square(errors), 0)) / np.std(values, axis=0, ddof=1)
    assert (ratio > 0.7).all() and (ratio < high).all(), ratio


def test_directions_count_in_the_sliced_wasserstein_error():
    """A pure shift v and equal sets but for it: every sample gives the same, so the error is that of the directions.
    (u.v)^2 has the mean |v|^2 / d and, on the sphere in d = 3, the variance |v|^4 (3 / 15 - 1 / 9)."""
    x, v = normal(40, 3, 0), torch.tensor([2.0, 0.0, 0.0]).double()
    result = METRICS.build("sliced_wasserstein(projections=4000)")(x, x + v)[0]
    spread = 4 * math.sqrt(3 / 15 - 1 / 9) / math.sqrt(4000)
    root = 2 / math.sqrt(3)
    assert result.value == pytest.approx(root, rel=0.02)
    assert result.details["direction_error"] == pytest.approx(spread / (2 * root), rel=0.06)
    assert result.stderr >= result.details["direction_error"]
    one = METRICS.build("sliced_wasserstein(projections=1)")(x, x + v)[0]
    assert one.stderr is None and one.details["direction_error"] is None
    third = METRICS.build("sliced_wasserstein(projections=4000, p=1.)")(x, x + v)[0]
    # |u.v| is uniform on [0, 2]
    assert third.value == pytest.approx(1.0, rel=0.04)
    assert third.details["direction_error"] == pytest.approx(2 / math.sqrt(12) / math.sqrt(4000), rel=0.06)
