"""The exact problems are exact: each formula against a second derivation."""

import pytest
import torch

from sde_score.sdes import SDES, VPSDE
from sde_score.solvers import solve_ode
from sde_score.testing import ODE_PROBLEMS, Gaussian, GaussianMixture, OrnsteinUhlenbeck

GENERATOR = torch.Generator().manual_seed(0)
ROOTS = torch.randn(3, 4, 4, dtype=torch.float64, generator=GENERATOR)
MEANS = torch.randn(3, 4, dtype=torch.float64, generator=GENERATOR)
LAWS = {
    "isotropic": GaussianMixture([0.2, 0.5, 0.3], MEANS, stds=[0.3, 0.5, 0.8]),
    "diagonal": GaussianMixture([1, 2, 1], MEANS.reshape(3, 2, 2), stds=0.2 + ROOTS[:, 0].abs().reshape(3, 2, 2)),
    "full": GaussianMixture([1, 1, 2], MEANS, covs=ROOTS @ ROOTS.mT + 0.1 * torch.eye(4)),
}


@pytest.mark.parametrize("name", ["ve", "vp", "subvp", "cosine", "edm"])
@pytest.mark.parametrize("kind", LAWS)
def test_score_is_the_gradient_and_tweedie_the_posterior_mean(kind, name):
    sde, law = SDES.build(name), LAWS[kind]
    x = torch.randn(5, *law.shape, dtype=torch.float64, generator=GENERATOR).requires_grad_(True)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64) * sde.T
    (gradient,) = torch.autograd.grad(law.log_prob_t(sde, x, t).sum(), x)
    assert torch.allclose(law.score_fn(sde)(x, t), gradient)
    tweedie = sde.denoise(law.score_fn(sde), x, t)
    assert torch.allclose(tweedie, law.posterior_mean(sde, x, t), atol=1e-6)


@pytest.mark.parametrize("kind", LAWS)
def test_density_against_torch_and_samples_against_moments(kind):
    law = LAWS[kind]
    parts = torch.distributions.MultivariateNormal(law.means.reshape(3, 4), covariance_matrix=law.covs())
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(law.weights), parts)
    x = law.sample(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(law.log_prob(x[:50]), mixture.log_prob(x[:50].reshape(50, 4)))
    rows = x.reshape(-1, 4)
    spread = torch.diagonal(law.cov()).sqrt()
    assert ((rows.mean(0) - law.mean().reshape(4)).abs() < 5 * spread / 20_000**0.5).all()
    # covariances: 5 standard errors of products of variables with kurtosis near the Gaussian's
    assert ((rows.T.cov() - law.cov()).abs() < 5 * 1.7 * spread[:, None] * spread / 20_000**0.5).all()


def test_conditioning_is_bayes():
    """log p(x | y) = log p(y | x) + log p(x) + const, over many x."""
    law = LAWS["full"]
    matrix = torch.randn(2, 4, dtype=torch.float64, generator=GENERATOR)
    y = torch.tensor([0.3, -0.5], dtype=torch.float64)
    posterior = law.condition(matrix, y, 0.4)
    x = law.sample(30, generator=GENERATOR, dtype=torch.float64)
    likelihood = -0.5 * ((y - x @ matrix.T) / 0.4).square().sum(1)
    constant = posterior.log_prob(x) - law.log_prob(x) - likelihood
    assert (constant - constant[0]).abs().max() < 1e-8


@pytest.mark.parametrize("name", ["ve", "vp", "subvp", "cosine", "edm"])
def test_gaussian_flow_is_the_solution_of_the_ode(name):
    sde, law = SDES.build(name), Gaussian(torch.tensor([0.4, -1.0]), torch.tensor([0.3, 0.1]))
    x = sde.prior_sampling((4, 2), dtype=torch.float64)
    drift = sde.reverse(law.score_fn(sde), eta=0.0).drift
    solved = solve_ode(drift, x, sde.T, sde.t_min, solver="dopri5(rtol=1e-8, atol=1e-9)").x
    assert (solved - law.flow(sde, x, sde.T, sde.t_min)).abs().max() < 1e-5


def test_ornstein_uhlenbeck_closed_form():
    sde, t = OrnsteinUhlenbeck(0.7, 1.3), torch.linspace(1e-4, 5, 20, dtype=torch.float64)
    for derived, exact in zip(sde.marginal_coeffs(t), sde.exact_coeffs(t)):
        assert torch.allclose(derived, exact, rtol=1e-10)


@pytest.mark.parametrize("problem", ODE_PROBLEMS, ids=lambda p: p.name)
def test_ode_solutions_satisfy_their_equation(problem):
    x = torch.tensor([[0.3, 0.7], [0.9, 0.2]], dtype=torch.float64)
    t, h = 0.5 * (problem.t0 + problem.t1), 1e-5
    ahead, behind = (problem.exact(x, problem.t0, t + s * h) for s in (1, -1))
    slope = problem.func(problem.exact(x, problem.t0, t), torch.full((2,), t, dtype=torch.float64))
    assert torch.allclose((ahead - behind) / (2 * h), slope, atol=1e-8)


def test_errors():
    with pytest.raises(ValueError, match="either stds or covs"):
        GaussianMixture([1.0], torch.zeros(1, 2))
    with pytest.raises(ValueError, match="one per mean"):
        GaussianMixture([0.5, 0.5], torch.zeros(1, 2), stds=1.0)
    with pytest.raises(ValueError, match="shape"):
        LAWS["full"].score_fn(VPSDE())(torch.zeros(2, 3), torch.ones(2))
