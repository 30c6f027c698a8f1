"""Likelihood baselines: exact sums, monotone EM, and the known numbers on the digits."""

import itertools
import math

import pytest
import torch

from sde_score.metrics import CategoricalMixture, IndependentPixels, Uniform, bits_per_dim, likelihood_baselines


@pytest.fixture(scope="module")
def digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(data.images).long()[:, None]
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return x[:1500], x[1500:]


def toy(n, seed=0):
    """Two clusters of binary-like patterns on three levels."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 2, (n, 1), generator=g)
    flip = (torch.rand(n, 6, generator=g) < 0.15).long()
    return (kind * 2 - flip).abs() % 3


@pytest.mark.parametrize("components", [1, 3])
def test_probabilities_sum_to_one(components):
    model = CategoricalMixture(3, components, iterations=20).fit(toy(50)[:, :4])
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    assert float(model.log_prob(every).exp().sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_em_never_lowers_the_penalised_likelihood(seed):
    model = CategoricalMixture(3, 4, seed=seed, tolerance=1e-9, iterations=60).fit(toy(200))
    gains = torch.tensor(model.history).diff()
    assert len(gains) > 3 and float(gains.min()) > -1e-9 * abs(model.history[-1])


def test_a_mixture_beats_independent_pixels_on_clusters():
    train, test = toy(600), toy(300, seed=1)
    alone = bits_per_dim(IndependentPixels(3).fit(train), test).mean()
    mixed = bits_per_dim(CategoricalMixture(3, 2).fit(train), test).mean()
    assert mixed < alone - 0.2


def test_independent_pixels_are_smoothed_frequencies():
    x = torch.tensor([[0, 1], [0, 2], [1, 1], [0, 1]])
    model = IndependentPixels(3, smoothing=1.0).fit(x)
    expected = math.log((3 + 1) / (4 + 3)) + math.log((1 + 1) / (4 + 3))
    assert float(model.log_prob(torch.tensor([[0, 2]]))) == pytest.approx(expected, rel=1e-12)


def test_known_numbers_on_the_digits(digits):
    """log2 17 = 4.087; independent pixels 2.43 and ten components 2.21, each within 0.03 for another split or start."""
    train, test = digits
    results = likelihood_baselines(train, test, levels=17, components=(10,))
    values = {r.name: r.value for r in results}
    assert values["uniform"] == pytest.approx(math.log2(17), rel=1e-12)
    assert values["independent pixels"] == pytest.approx(2.430, abs=0.03)
    assert values["mixture of 10"] == pytest.approx(2.209, abs=0.03)
    for result in results[1:]:
        assert 0.005 < result.stderr < 0.03
        assert result.provenance["n_test"] == 297 and result.provenance["levels"] == 17
    again = likelihood_baselines(train, test, levels=17, components=(10,))
    assert [r.value for r in again] == [r.value for r in results]


def test_wrong_levels_are_named():
    with pytest.raises(ValueError, match="levels=3"):
        Uniform(2).log_prob(torch.tensor([[0, 2]]))
    with pytest.raises(ValueError, match="integer"):
        IndependentPixels(17).fit(torch.rand(5, 4))
    with pytest.raises(ValueError, match="fit"):
        CategoricalMixture(3).log_prob(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="smoothing"):
        CategoricalMixture(3, smoothing=0.0)
