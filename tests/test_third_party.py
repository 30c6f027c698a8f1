"""Our metrics against the implementations of others, on the same features: values, and standard errors where they have
any. No network weights are needed. A package that is missing skips its tests.

Tolerances are rounding: 1e-9 relative in float64, 1e-5 where the other side computes in float32.
"""

import math

import numpy as np
import pytest
import torch

from sde_score.metrics import (
    METRICS,
    MMD,
    CategoricalMixture,
    Classes,
    FeatureSet,
    FrechetDistance,
    GaussianStats,
    InceptionScore,
    IndependentPixels,
    KernelDistance,
    SmallClassifier,
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
from sde_score.metrics.errors import block_indices


def needs(module):
    """The module, or a skip with the reason (a torchvision that does not fit torch breaks imports in its own way)."""
    import importlib

    try:
        return importlib.import_module(module)
    except Exception as error:
        pytest.skip(f"{module} cannot be imported ({type(error).__name__}: {error})")


def normal(n, d, seed, *, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FAKE, REAL = normal(180, 6, 0, mean=0.3, std=1.2) @ normal(6, 6, 9), normal(130, 6, 1) @ normal(6, 6, 9)
LOGITS = normal(210, 5, 2, std=2.0)


class Given(torch.nn.Module):
    """Hands features that come as images on to a third party's metric."""

    num_features = FAKE.shape[1]

    def forward(self, x):
        return x.flatten(1).double()


def as_images(x):
    return x.view(len(x), 3, 1, -1)


# Fréchet distance


def test_frechet_distance_of_torchmetrics():
    fid = needs("torchmetrics.image.fid").FrechetInceptionDistance
    other = fid(feature=Given(), normalize=False, input_img_size=(3, 1, 2)).set_dtype(torch.float64)
    other.update(as_images(REAL), real=True)
    other.update(as_images(FAKE), real=False)
    assert FrechetDistance()(FAKE, REAL)[0].value == pytest.approx(float(other.compute()), rel=1e-9)


def test_frechet_distance_of_torch_fidelity():
    fid = needs("torch_fidelity.metric_fid")
    theirs = fid.fid_statistics_to_metric(
        fid.fid_features_to_statistics(FAKE), fid.fid_features_to_statistics(REAL), verbose=False
    )
    assert FrechetDistance()(FAKE, REAL)[0].value == pytest.approx(theirs[fid.KEY_METRIC_FID], rel=1e-9)


def test_frechet_distance_of_scipy():
    linalg = needs("scipy.linalg")
    (m1, c1), (m2, c2) = ((x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)) for x in (FAKE, REAL))
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    stats = GaussianStats.of(FAKE), GaussianStats.of(REAL)
    np.testing.assert_allclose(stats[0].cov, c1, rtol=1e-12)
    assert frechet_distance(stats[0].mean, stats[0].cov, stats[1].mean, stats[1].cov) == pytest.approx(
        expected, rel=1e-9
    )


def test_jackknife_of_the_frechet_distance_with_others_values():
    """Their distances on the sets with one group left out, put together by the textbook's formula."""
    fid = needs("torch_fidelity.metric_fid")
    result = FrechetDistance(groups=7, seed=3)(FAKE, REAL)[0]
    ours, theirs = block_indices(len(FAKE), 7, 3), block_indices(len(REAL), 7, 4)
    values = []
    for a, b in zip(ours, theirs, strict=True):
        stats = (fid.fid_features_to_statistics(np.delete(x, i, 0)) for x, i in ((FAKE, a), (REAL, b)))
        values.append(fid.fid_statistics_to_metric(*stats, verbose=False)[fid.KEY_METRIC_FID])
    assert result.stderr == pytest.approx(math.sqrt(6 * np.var(values)), rel=1e-8)
    assert result.details["bias_corrected"] == pytest.approx(7 * result.value - 6 * np.mean(values), rel=1e-8)


# Kernel distances


def test_kernel_distance_of_torchmetrics_and_torch_fidelity_block_by_block():
    mmd, kid = needs("torchmetrics.image.kid").poly_mmd, needs("torch_fidelity.metric_kid")
    fake = FAKE[:130]  # both want sets of one size
    values = {"torchmetrics": [], "torch_fidelity": []}
    for a, b in zip(block_indices(130, 5, 0), block_indices(130, 5, 1), strict=True):
        values["torchmetrics"].append(float(mmd(REAL[b], fake[a])))
        found = kid.kid_features_to_metric(fake[a], REAL[b], kid_subsets=1, kid_subset_size=len(a), verbose=False)
        values["torch_fidelity"].append(found[kid.KEY_METRIC_KID_MEAN])
    result = KernelDistance(blocks=5)(fake, REAL)[0]
    for theirs in values.values():
        assert result.value == pytest.approx(np.mean(theirs), rel=1e-9)
        assert result.stderr == pytest.approx(np.std(theirs, ddof=1) / math.sqrt(5), rel=1e-9)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomial_kernel_of_scikit_learn(degree):
    kernel = needs("sklearn.metrics.pairwise").polynomial_kernel
    theirs = kernel(FAKE.numpy(), REAL.numpy(), degree=degree, gamma=1 / 6, coef0=1)
    np.testing.assert_allclose(polynomial_kernel(FAKE, REAL, degree=degree), theirs, rtol=1e-9)


def test_mmd_with_kernels_of_scikit_learn_in_a_double_loop():
    rbf, distance = needs("sklearn.metrics.pairwise").rbf_kernel, needs("scipy.spatial.distance")
    x, y = FAKE[:9].numpy(), REAL[:7].numpy()  # 21 pairs: their median is one of them
    median = np.median(distance.pdist(y))
    k = lambda a, b: np.mean([rbf(a[None], b[None], 1 / (2 * (c * median) ** 2))[0, 0] for c in (0.5, 1.5)])  # noqa: E731
    xx = np.mean([k(x[i], x[j]) for i in range(9) for j in range(9) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(7) for j in range(7) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    result = MMD(scales=(0.5, 1.5), blocks=1)(torch.from_numpy(x), torch.from_numpy(y))[0]
    assert result.value == pytest.approx(xx + yy - 2 * xy, rel=1e-9) and result.stderr is None
    assert result.details["median_distance"] == pytest.approx(median, rel=1e-12)


def test_gaussian_mmd_of_torch_fidelity():
    kid = needs("torch_fidelity.metric_kid")
    fake = FAKE[:130].numpy()
    median = MMD()(FAKE[:130], REAL)[0].details["median_distance"]
    theirs = kid.kernel_mmd(fake, REAL.numpy(), kid_kernel="rbf", kid_kernel_rbf_sigma=2 * median)
    assert MMD(scales=(2.0,), blocks=1)(FAKE[:130], REAL)[0].value == pytest.approx(theirs, rel=1e-9)


# Inception score and classes


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_inception_score_of_torch_fidelity_split_by_split(splits):
    """They give the mean and the deviation (over n) of the splits, in the order of the samples."""
    isc = needs("torch_fidelity.metric_isc")
    p = LOGITS.softmax(1)
    whole = isc.isc_features_to_metric(LOGITS, 1, False)[isc.KEY_METRIC_ISC_MEAN]
    assert inception_score(p) == pytest.approx(whole, rel=1e-9)
    result = InceptionScore(splits=splits)(FeatureSet(FAKE[:1].expand(210, -1), probabilities=p))[0]
    order = torch.cat(block_indices(210, splits, 0))
    theirs = isc.isc_features_to_metric(LOGITS[order], splits, False)
    assert result.value == pytest.approx(whole, rel=1e-9)
    if splits == 1:
        assert result.stderr is None
    else:
        deviation = theirs[isc.KEY_METRIC_ISC_STD] * math.sqrt(splits / (splits - 1))
        assert result.stderr == pytest.approx(deviation / math.sqrt(splits), rel=1e-9)


def test_inception_score_of_torchmetrics():
    other = needs("torchmetrics.image.inception").InceptionScore

    class Logits(torch.nn.Module):
        num_features = 5

        def forward(self, x):
            return x.flatten(1)

    other = other(feature=Logits(), splits=1)
    other.update(LOGITS.view(210, 5, 1, 1))
    assert inception_score(LOGITS.softmax(1)) == pytest.approx(float(other.compute()[0]), rel=1e-5)


def test_classes_of_scipy():
    entropy = needs("scipy.stats").entropy
    p = LOGITS.softmax(1)
    recognised, classes = Classes(threshold=0.7)(FeatureSet(FAKE[:1].expand(210, -1), probabilities=p))
    counts = np.bincount(p.argmax(1).numpy(), minlength=5)
    assert classes.value == pytest.approx(entropy(counts, base=2), rel=1e-12)
    assert classes.details["histogram"] == counts.tolist()
    assert recognised.value == pytest.approx((p.numpy().max(1) > 0.7).mean(), rel=1e-12)


def test_accuracy_of_scikit_learn():
    """A classifier of two overlapping clouds, so that some predictions are wrong."""
    accuracy = needs("sklearn.metrics").accuracy_score
    labels = torch.arange(200) % 2
    x = (0.4 + 0.1 * labels[:, None] + 0.1 * normal(200, 3, 5)).float()
    classifier = SmallClassifier(hidden=8, max_steps=30).fit(x[:100], labels[:100])
    predicted = extract(classifier, x[100:]).probabilities.argmax(1)
    ours = classifier.accuracy(x[100:], labels[100:])
    assert ours == pytest.approx(accuracy(labels[100:], predicted)) and 0.5 < ours < 1


# Precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_coverage_of_prdc(k):
    theirs = needs("prdc").compute_prdc(REAL.numpy(), FAKE.numpy(), nearest_k=k)
    assert prdc(FAKE, REAL, k=k, chunk=50)._asdict() == pytest.approx(theirs, rel=1e-12)
    assert 0 < theirs["precision"] < 1 and 0 < theirs["recall"] < 1 and 0 < theirs["coverage"] < 1


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_of_torch_fidelity(k):
    prc = needs("torch_fidelity.metric_prc")
    found = prc.prc_features_to_metric(
        FAKE, REAL, prc_neighborhood=k, prc_batch_size=1000, save_cpu_ram=False, verbose=False
    )
    ours = prdc(FAKE, REAL, k=k)
    assert ours.precision == pytest.approx(found[prc.KEY_METRIC_PRECISION], rel=1e-6)
    assert ours.recall == pytest.approx(found[prc.KEY_METRIC_RECALL], rel=1e-6)


def test_errors_of_prdc_with_others_values():
    other = needs("prdc").compute_prdc
    values = []
    for a, b in zip(block_indices(len(FAKE), 4, 5), block_indices(len(REAL), 4, 6), strict=True):
        values.append(other(REAL[b].numpy(), FAKE[a].numpy(), nearest_k=3))
    for result in METRICS.build("prdc(k=3, blocks=4, seed=5)")(FAKE, REAL):
        deviation = np.std([v[result.name] for v in values], ddof=1)
        assert result.stderr == pytest.approx(deviation / 2, rel=1e-9)


# Wasserstein distances


def test_sliced_wasserstein_with_distances_of_scipy():
    """The mean over SciPy's distances along directions of our own lies within four of both sides' standard errors
    (false alarm 1e-4); directions that are not uniform on the sphere, or not of length 1, would not."""
    distance = needs("scipy.stats").wasserstein_distance
    directions = np.random.default_rng(0).normal(size=(6, 400))
    directions /= np.linalg.norm(directions, axis=0)
    theirs = [distance(a, b) for a, b in zip((FAKE.numpy() @ directions).T, (REAL.numpy() @ directions).T)]
    ours = sliced_wasserstein(FAKE, REAL, projections=400, p=1.0)
    error = math.hypot(np.std(theirs), float(ours.std())) / math.sqrt(400)
    assert float(ours.mean()) == pytest.approx(np.mean(theirs), abs=4 * error)


def test_wasserstein_of_scipy_column_by_column():
    distance = needs("scipy.stats").wasserstein_distance
    for y in (REAL, REAL.repeat(2, 1)[:180]):  # other size, equal size with duplicates
        theirs = [distance(FAKE[:, j].numpy(), y[:, j].numpy()) for j in range(6)]
        np.testing.assert_allclose(wasserstein_1d(FAKE, y, p=1.0), theirs, rtol=1e-9)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_wasserstein_of_any_order_is_the_best_assignment_of_scipy(p):
    """Equal sizes: the least mean cost over all pairings, no sorting involved."""
    optimize = needs("scipy.optimize")
    cost = (FAKE[:40, :1].numpy() - REAL[:40, 0].numpy()) ** 2
    cost = cost ** (p / 2)
    best = cost[optimize.linear_sum_assignment(cost)].mean()
    assert float(wasserstein_1d(FAKE[:40, :1], REAL[:40, :1], p=p)) == pytest.approx(best, rel=1e-9)


# Copies


def test_copies_with_neighbours_of_scikit_learn():
    neighbours = needs("sklearn.neighbors").NearestNeighbors
    train, fake = normal(90, 6, 4) @ normal(6, 6, 9), torch.cat([FAKE, FAKE[:20] * 0])
    nearest = neighbours(n_neighbors=1).fit(train.numpy())
    (ours, index), (theirs, their_index) = nearest_distance(fake, train, chunk=17), nearest.kneighbors(fake.numpy())
    np.testing.assert_allclose(ours, theirs[:, 0], rtol=1e-9)
    assert torch.equal(index, torch.from_numpy(their_index[:, 0]))
    held_out = nearest.kneighbors(REAL.numpy())[0][:, 0]
    threshold = np.quantile(held_out, 0.1)
    rate, q = (theirs[:, 0] <= threshold).mean(), (held_out <= threshold).mean()
    result = METRICS.build("copy_rate(quantile=0.1)")(fake, REAL, train)[0]
    assert result.value == pytest.approx(rate) and result.details["held_out"] == pytest.approx(q)
    assert result.details["threshold"] == pytest.approx(threshold, rel=1e-9)
    assert result.details["median_ratio"] == pytest.approx(
        np.sort(theirs[:, 0])[99] / np.sort(held_out)[64],
        rel=1e-9,  # the lower median
    )
    assert result.stderr == pytest.approx(math.sqrt(rate * (1 - rate) / 200 + q * (1 - q) / 130))


# Likelihood baselines


def test_independent_pixels_of_scikit_learn():
    """One class of naive Bayes for categories, the same smoothing."""
    bayes = needs("sklearn.naive_bayes").CategoricalNB
    x = torch.randint(0, 4, (60, 7), generator=torch.Generator().manual_seed(0))
    other = bayes(alpha=0.3, min_categories=5).fit(x.numpy(), np.zeros(60))
    ours = IndependentPixels(5, smoothing=0.3).fit(x).log_prob(x)
    np.testing.assert_allclose(ours, other.predict_joint_log_proba(x.numpy())[:, 0], rtol=1e-12)


def test_mixture_of_clusters_far_apart_is_naive_bayes_of_scikit_learn():
    """EM finds the clusters, so its tables are those of the classifier that is told them; its weights are smoothed."""
    bayes = needs("sklearn.naive_bayes").CategoricalNB
    g = torch.Generator().manual_seed(0)
    label = (torch.rand(90, generator=g) < 0.3).long()
    x = 6 * label[:, None] + torch.randint(0, 3, (90, 12), generator=g)
    other = bayes(alpha=0.1, min_categories=9).fit(x.numpy(), label.numpy())
    model = CategoricalMixture(9, 2, smoothing=0.1, tolerance=1e-12).fit(x)
    order = model.log_weights.argsort(descending=True)  # the larger cluster first, which is label 0
    for d in range(12):
        np.testing.assert_allclose(model.log_table[d][:, order].T, other.feature_log_prob_[d], atol=1e-6)
    counts = torch.bincount(label).double()
    np.testing.assert_allclose(model.log_weights[order].exp(), (counts + 0.1) / (90 + 0.2), atol=1e-8)


def test_unbiased_mmd_with_a_precomputed_kernel_of_torchmetrics():
    other = needs("torchmetrics.image.kid").maximum_mean_discrepancy
    x, y = FAKE[:50], REAL[:50]
    kernel = lambda a, b: torch.exp(-torch.cdist(a, b, p=1))  # noqa: E731
    theirs = other(kernel(x, x), kernel(x, y), kernel(y, y))
    assert float(unbiased_mmd2(x, y, kernel)) == pytest.approx(float(theirs), rel=1e-9)
