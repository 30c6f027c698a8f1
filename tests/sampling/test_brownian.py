"""Brownian paths: their law, that they refine, that they belong to the samples; what the sampler `sde` asks."""

import pytest
import torch

from sde_score.sampling import PCSampler, SDESampler
from sde_score.sampling.brownian import BrownianPaths, hashed_normals
from sde_score.sdes import SDE, SDES
from sde_score.tensors import SampleNoise, expand_like, mix_seed

SEEDS = [mix_seed(7, i) for i in range(20000)]


def score_of(sde):
    def score(x, t):
        m, std = (expand_like(c, x) for c in sde.marginal_coeffs(t))
        return -(x - m * 0.4) / (m**2 * 0.25 + std**2) + 0.1 * torch.tanh(x.flip(-1))

    return score


@pytest.mark.parametrize("end, cuts", [(1.0, 1), (2.0, 3), (0.5, 8), (1.0, 7)])
def test_increments_and_areas_have_their_law(end, cuts):
    """W ~ N(0, h), U = ∫ (W − W(start)) with var h³/3 and cov(W, U) = h²/2, pieces independent of one another.

    20,000 paths: s.e. of a variance 1 % and of a correlation 0.7 %; bounds at five of them (false alarm 6e-7 each).
    """
    paths = BrownianPaths(SEEDS, torch.zeros(20000, 1, dtype=torch.float64), end)
    h, pieces = end / cuts, []
    for k in range(cuts):
        w, u = paths.increment(h * k, h * (k + 1))
        pieces += [w[:, 0] / h**0.5, u[:, 0] / h**1.5]
    table = torch.stack(pieces)
    covariance = torch.cov(table)
    block = torch.tensor([[1.0, 0.5], [0.5, 1 / 3]], dtype=torch.float64)
    exact = torch.block_diag(*[block] * cuts)
    scale = exact.diagonal().sqrt()
    assert ((covariance - exact).abs() / torch.outer(scale, scale)).max() < 0.05
    assert (table.mean(1).abs() / scale).max() < 5 / 20000**0.5


def test_a_path_does_not_depend_on_where_it_is_cut():
    paths = BrownianPaths(SEEDS[:50], torch.zeros(50, 3, dtype=torch.float64), 2.0)
    whole, area = paths.increment(0.3, 1.9)
    (first, area_1), (second, area_2) = paths.increment(0.3, 0.7), paths.increment(0.7, 1.9)
    assert torch.allclose(first + second, whole, atol=1e-12)
    # times are resolved to 2^-20 of the interval
    assert torch.allclose(area_1 + area_2 + 1.2 * first, area, atol=1e-5)
    again = BrownianPaths(SEEDS[20:22], torch.zeros(2, 3, dtype=torch.float64), 2.0)
    assert torch.allclose(again.increment(0.7, 1.9)[0], second[20:22], atol=1e-12)


def test_small_steps_keep_their_areas_in_single_precision():
    seeds = SEEDS[:200]
    wide = BrownianPaths(seeds, torch.zeros(200, 1, dtype=torch.float64), 1.0)
    narrow = BrownianPaths(seeds, torch.zeros(200, 1), 1.0)
    for k in (3, 700):
        exact, found = (p.increment(k / 1000, (k + 1) / 1000) for p in (wide, narrow))
        for a, b in zip(exact, found):
            assert float((a - b).abs().max() / a.std()) < 1e-4


def test_samples_have_paths_of_their_own():
    """Those of different samples, dimensions and seeds are uncorrelated: 40 paths of 400 steps, s.e. 0.05."""
    paths = BrownianPaths(SEEDS[:20], torch.zeros(20, 2, dtype=torch.float64), 1.0)
    steps = torch.stack([paths.increment(k / 400, (k + 1) / 400)[0].flatten() for k in range(400)])
    correlation = torch.corrcoef(steps.T).fill_diagonal_(0)
    assert correlation.abs().max() < 0.27  # 5.4 s.e.: 780 pairs, false alarm 5e-5


def test_hashed_normals_are_normal():
    from scipy import stats

    z = hashed_normals(torch.tensor(SEEDS[:2000]), list(range(20)), 3, torch.float64)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-4  # false alarm 1e-4 for a fresh seed
    assert abs(float((z[:, 0] * z[:, 1]).mean())) < 5 / 120000**0.5
    one = hashed_normals(torch.tensor(SEEDS[5:6]), [7], 3, torch.float64)
    assert torch.equal(one[0, :, 0], z[7, :, 5])


@pytest.mark.parametrize("solver, per_step", [("euler", 1), ("milstein", 1), ("srk", 2), ("heun", 2), ("midpoint", 2)])
def test_the_network_is_asked_for_distinct_states_only(solver, per_step):
    sde, asked = SDES.build("vp"), []

    def score(x, t):
        asked.append((float(t[0]), x.clone()))
        return score_of(sde)(x, t)

    result = SDESampler(sde, solver, steps=20, t_min=0.05)(score, torch.randn(4, 3))
    assert result.nfe == len(asked) <= 20 * per_step + 1
    for i, (t, x) in enumerate(asked):
        assert not any(t == s and torch.equal(x, y) for s, y in asked[:i])


def test_srk_where_the_noise_depends_on_x_asks_three_times():
    class Multiplicative(SDE):
        def drift(self, x, t):
            return -x

        def diffusion(self, x, t):
            return torch.sqrt(1 + x**2)

        def diffusion_sq_divergence(self, x, t):
            return 2 * x

        def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
            return noise(torch.empty(shape))

        def prior_logp(self, x):
            return -0.5 * (x**2).flatten(1).sum(1)

    sampler = SDESampler(Multiplicative(), "srk", steps=10, denoise="none")
    assert sampler(lambda x, t: -x, torch.randn(4, 2, dtype=torch.float64)).nfe <= 31


@pytest.mark.parametrize("solver, order", [("euler", 1.0), ("srk", 1.5), ("heun", 1.0)])
def test_strong_order_on_one_path(solver, order):
    """The error on the same paths falls with the solver's strong order (euler has 1, not 1/2, for additive noise)."""
    sde = SDES.build("vp(beta_max=4.)")
    x_T = torch.randn(40, 2, dtype=torch.float64)

    def run(steps):
        sampler = SDESampler(sde, solver, steps=steps, t_min=0.1, denoise="none")
        return sampler(score_of(sde), x_T, noise=SampleNoise(1, range(40))).x

    reference = run(1024)
    errors = [float((run(n) - reference).norm()) for n in (16, 64)]
    slope = torch.log(torch.tensor(errors[0] / errors[1])).item() / torch.log(torch.tensor(4.0)).item()
    assert slope > order - 0.25, errors


def test_the_global_generator_is_left_alone():
    sde = SDES.build("vp")
    before = torch.get_rng_state()
    for method in (SDESampler(sde, "srk", steps=4), PCSampler(sde, steps=4)):
        method(score_of(sde), torch.ones(2, 3), noise=SampleNoise(0, range(2)))
    assert torch.equal(torch.get_rng_state(), before)
