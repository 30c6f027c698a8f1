"""The discrete chains as Markov chains: their steps make their marginals, their posteriors are Bayes' rule."""

import pytest
import torch

from sde_score.sdes import SDE, SDES
from sde_score.sdes.base import Chain

N = 40


def states(chain, n=N):
    """A time that each state's number is truncated to."""
    return (torch.arange(n, dtype=torch.float64) + 0.25).clamp(max=n - 1) / (n - 1) * chain.sde.T


@pytest.mark.parametrize("spec", ["ve", "vp"])
def test_times_are_numbered_from_the_data_to_the_prior(spec):
    chain = SDES.build(spec).chain(N)
    assert chain.index(states(chain)).tolist() == list(range(N))
    assert chain.index(torch.tensor([0.0, 0.999 / (N - 1), 1.001 / (N - 1), 1.0])).tolist() == [0, 0, 1, N - 1]


@pytest.mark.parametrize("spec", ["ve", "vp"])
def test_steps_make_the_marginals(spec):
    """x_{i+1} = x_i + F + G z: the mean is carried by 1 + F/x, the variance gathers G²."""
    chain = SDES.build(spec).chain(N)
    shift, scale = chain.forward(torch.ones(N, 1, dtype=torch.float64), states(chain))
    mean, variance, exact = torch.ones(1), torch.zeros(1), chain.marginal(torch.arange(N))
    for k in range(N):
        factor = 1 + shift[k]
        mean, variance = factor * mean, factor**2 * variance + scale[k] ** 2
        assert torch.allclose(mean, exact[0][k].double(), rtol=1e-5)
        assert torch.allclose(variance, exact[1][k].double() ** 2, rtol=1e-4)


def test_the_posterior_of_smld_is_bayes_rule():
    """Given x_i and x_0, the precision of x_{i−1} is the sum of those of its law and of the step; its mean weighs both.

    The score of the law of x_i given x_0 is −(x_i − x_0)/σ_i²."""
    chain = SDES.build("ve(sigma_max=2., sigma_min=0.1)").chain(N)
    t = states(chain)[1:]
    sigma = chain.sigmas.double()
    before, step = sigma[:-1] ** 2, sigma[1:] ** 2 - sigma[:-1] ** 2
    x0, x = torch.randn(2, N - 1, 3, dtype=torch.float64)
    mean, std = chain.posterior(-(x - x0) / sigma[1:, None] ** 2, x, t)
    assert torch.allclose(std[:, 0] ** -2, 1 / before + 1 / step, rtol=1e-5)
    weighed = (x0 / before[:, None] + x / step[:, None]) / (1 / before + 1 / step)[:, None]
    assert torch.allclose(mean, weighed, rtol=1e-4, atol=1e-5)
    # the first state comes from the data, where nothing is left to draw
    mean, std = chain.posterior(-(x[:1] - x0[:1]) / sigma[0] ** 2, x[:1], torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(mean, x0[:1]) and float(std) == 0


def test_the_posterior_of_ddpm_is_the_mean_of_the_state_before():
    """With data N(0, v), x_{i−1} and x_i are jointly Gaussian: E[x_{i−1} | x_i] = √(1−β) V_{i−1}/V_i x_i."""
    chain, v = SDES.build("vp").chain(N), 0.3
    t, beta = states(chain)[1:], chain.betas.double()[1:]
    m, std = (c.double() for c in chain.marginal(torch.arange(N)))
    law = m**2 * v + std**2
    x = torch.randn(N - 1, 2, dtype=torch.float64)
    mean, noise = chain.posterior(-x / law[1:, None], x, t)
    exact = (torch.sqrt(1 - beta) * law[:-1] / law[1:])[:, None] * x
    assert torch.allclose(mean, exact, rtol=1e-4, atol=1e-6)
    assert torch.allclose(noise[:, 0] ** 2, beta, rtol=1e-5)
    assert torch.allclose(chain.langevin_factor(t), 1 - beta, rtol=1e-5)


def test_the_tables_have_the_published_ends():
    betas = SDES.build("vp").chain(1000).betas
    assert torch.allclose(betas[[0, -1]], torch.tensor([1e-4, 0.02])) and len(betas) == 1000
    sigmas = SDES.build("ve").chain(1000).sigmas
    assert torch.allclose(sigmas[[0, -1]], torch.tensor([0.01, 50.0])) and len(sigmas) == 1000


def test_a_chain_without_tables_takes_euler_maruyama_steps():
    sde = SDES.build("edm")
    chain, x, t = sde.chain(160), torch.randn(3, 2), torch.tensor([1.0, 20.0, 80.0])
    shift, scale = chain.forward(x, t)
    assert torch.equal(shift, torch.zeros(3, 2))
    assert torch.allclose(scale[:, 0], torch.sqrt(2 * t * 0.5))  # g² dt, dt = 80/160
    shift, _ = Chain(SDES.build("subvp"), 10).forward(x, t / 80)
    assert torch.allclose(shift, -0.05 * (0.1 + 19.9 * t / 80)[:, None] * x)
    assert torch.equal(chain.langevin_factor(t), torch.ones(3))
    for refused in (lambda: chain.posterior(x, x, t), lambda: chain.marginal(torch.zeros(1, dtype=torch.long))):
        with pytest.raises(ValueError, match="no published discrete chain"):
            refused()


def test_chains_that_cannot_be_are_refused():
    for n in (0, -1):
        with pytest.raises(ValueError, match="at least one step"):
            SDES.build("edm").chain(n)
    assert SDES.build("edm").chain(1).n == 1
    with pytest.raises(ValueError, match="more than beta_max = 20"):
        SDES.build("vp").chain(20)  # 1 − β of the last step would be 0
    assert float(SDES.build("vp").chain(21).alphas.min()) > 0

    class Matrix(SDE):
        def drift(self, x, t):
            return -x

        def diffusion(self, x, t):
            return 1.0

        def apply_diffusion(self, x, t, v):
            return v.flip(1)

        def prior_sampling(self, shape, **kwargs):
            return torch.randn(shape)

        def prior_logp(self, x):
            return x.sum(1)

    with pytest.raises(ValueError, match="has a matrix"):
        Matrix().chain(10).forward(torch.ones(1, 2), torch.ones(1))
