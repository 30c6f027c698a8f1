"""Derived quantities of linear SDEs against closed forms, differential equations and each other."""

import math

import pytest
import torch

from sde_score.sdes import SDES, GaussianPathSDE, LinearSDE

NAMES = ["ve", "vp", "subvp", "cosine", "edm"]


def relative(a, b):
    return float(((a - b) / b).abs().max())


@pytest.mark.parametrize("name", ["ve", "vp", "subvp", "edm"])
def test_quadrature_meets_closed_forms(name):
    sde = SDES.build(name)
    t = torch.logspace(-5, 0, 60, dtype=torch.float64) * sde.T
    for exact, derived in (
        (sde.marginal_coeffs(t), LinearSDE.marginal_coeffs(sde, t)),
        (sde.transition(0.6 * t, t), LinearSDE.transition(sde, 0.6 * t, t)),
    ):
        assert relative(derived[0], exact[0]) < 1e-10
        assert relative(derived[1], exact[1]) < 1e-10


class OU(LinearSDE):
    """dx = −a x dt + b dw."""

    def drift_coeff(self, t):
        return -1.5

    def diffusion_coeff(self, t):
        return 0.7


def test_constant_coefficients_may_be_plain_numbers():
    t = torch.tensor([0.01, 0.3, 1.0], dtype=torch.float64)
    mean, std = OU().marginal_coeffs(t)
    assert relative(mean, torch.exp(-1.5 * t)) < 1e-14
    assert relative(std**2, 0.49 / 3 * -torch.expm1(-3 * t)) < 1e-13


class Diagonal(LinearSDE):
    """A rate for each of two channels."""

    rates = torch.tensor([1.0, 3.0], dtype=torch.float64)

    def drift_coeff(self, t):
        return -t[:, None] * self.rates.to(t)

    def diffusion_coeff(self, t):
        return torch.sqrt(2 * t)[:, None] * torch.ones(2).to(t)


def test_diagonal_coefficients_act_channel_by_channel():
    sde, t = Diagonal(), torch.tensor([0.2, 0.9], dtype=torch.float64)
    mean, std = sde.marginal_coeffs(t)
    exact = torch.exp(-0.5 * t[:, None] ** 2 * Diagonal.rates)
    assert mean.shape == std.shape == (2, 2)
    assert relative(mean, exact) < 1e-12
    # d v/dt = −2 t r v + 2 t  =>  v = (1 − e^{−r t²})/r
    assert relative(std**2, -torch.expm1(-Diagonal.rates * t[:, None] ** 2) / Diagonal.rates) < 1e-12
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    assert torch.allclose(sde.marginal_prob(x, t)[0], x * exact[:, :, None, None])
    assert sde.prior_logp(x).shape == (2,)


@pytest.mark.parametrize("name", NAMES)
def test_marginals_solve_their_differential_equations(name):
    sde = SDES.build(name)
    t = torch.linspace(0.05, 0.95, 40, dtype=torch.float64) * sde.T
    (mean, std), (dmean, dstd) = torch.func.jvp(sde.marginal_coeffs, (t,), (torch.ones_like(t),))
    f, g = sde.drift_coeff(t), sde.diffusion_coeff(t)
    assert torch.allclose(dmean, f * mean, rtol=1e-9)
    assert torch.allclose(2 * std * dstd, 2 * f * std**2 + g**2, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_transitions_compose_and_lead_to_the_marginal(name):
    sde = SDES.build(name)
    r, s, t = (torch.full((1,), q * sde.T, dtype=torch.float64) for q in (0.2, 0.5, 0.9))
    (a, v), (b, w), (c, u) = sde.transition(r, s), sde.transition(s, t), sde.transition(r, t)
    assert relative(c, a * b) < 1e-12
    assert relative(u**2, b**2 * v**2 + w**2) < 1e-10
    (m, std_s), (n, std_t) = sde.marginal_coeffs(s), sde.marginal_coeffs(t)
    assert relative(n, m * b) < 1e-12
    assert relative(std_t**2, b**2 * std_s**2 + w**2) < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_log_snr_falls_and_is_inverted(name):
    sde = SDES.build(name)
    t = torch.linspace(sde.t_min, sde.T, 200, dtype=torch.float64)
    log_snr = sde.log_snr(t)
    assert (log_snr.diff() < 0).all()
    assert relative(sde.time_of_log_snr(log_snr), t) < 1e-9


class PathVP(GaussianPathSDE):
    """VP written as a Gaussian path: its drift and diffusion must come back."""

    def alpha(self, t):
        return torch.exp(-0.25 * t**2 * 19.9 - 0.05 * t)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-0.5 * t**2 * 19.9 - 0.1 * t))


def test_gaussian_path_gives_back_drift_and_diffusion():
    path, vp, t = PathVP(), SDES.build("vp"), torch.linspace(0.01, 1, 50, dtype=torch.float64)
    assert relative(path.drift_coeff(t), vp.drift_coeff(t)) < 1e-10
    assert relative(path.diffusion_coeff(t), vp.diffusion_coeff(t)) < 1e-10
    assert relative(path.transition(0.5 * t, t)[1], vp.transition(0.5 * t, t)[1]) < 1e-9


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 7), (3, 1, 4, 5), (3, 2, 3, 4, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_any_rank(name, shape):
    sde = SDES.build(name)
    x, t = torch.randn(shape), torch.rand(3) * 0.9 * sde.T + 0.01
    assert sde.drift(x, t).shape == shape
    assert (sde.diffusion(x, t) * x).shape == shape
    mean, std = sde.marginal_prob(x, t)
    assert mean.shape == shape and (std * x).shape == shape
    z = sde.prior_sampling(shape)
    normal = torch.distributions.Normal(0.0, sde.prior_std)
    assert torch.allclose(sde.prior_logp(z), normal.log_prob(z).flatten(1).sum(1), rtol=1e-4)


def test_eta_family_shares_its_marginals():
    # Fokker-Planck in one dimension: the η-drift minus half its own diffusion term must be the probability-flow drift
    # for every η
    sde = SDES.build("vp")
    x, t = torch.randn(50, 1, dtype=torch.float64), torch.full((50,), 0.4, dtype=torch.float64)

    def score(x, t):
        return -(x - 0.3) / 0.8

    flow = sde.reverse(score, eta=0.0).drift(x, t)
    for eta in (0.3, 1.0):
        reverse = sde.reverse(score, eta=eta)
        assert torch.allclose(reverse.drift(x, t) + 0.5 * reverse.diffusion(x, t) ** 2 * score(x, t), flow)


def test_methods_called_f_and_g_are_pointed_out():
    with pytest.raises(TypeError, match="drift_coeff"):

        class Wrong(LinearSDE):
            def f(self, t):
                return t

    with pytest.raises(ValueError, match="first axis must be the batch"):

        class Constant(LinearSDE):
            def drift_coeff(self, t):
                return torch.ones(3)

            def diffusion_coeff(self, t):
                return torch.ones_like(t)

        Constant().drift(torch.zeros(2, 3), torch.zeros(2))


def test_bad_settings_and_times():
    for spec in ("ve(sigma_min=2., sigma_max=1.)", "vp(beta_min=-1.)", "cosine(T=1.)", "vp(t_min=2.)", "edm(T=0.001)"):
        with pytest.raises(ValueError):
            SDES.build(spec)
    sde = SDES.build("vp")
    for bad in (-0.1, 1.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="lives on"):
            sde.check_time(torch.tensor([0.5, bad]))
    sde.check_time(torch.empty(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_last_time_is_a_time_in_any_precision(dtype):
    """T = 0.995 of the cosine process is 0.996 in bfloat16."""
    for kind in ("cosine", "edm", "vp"):
        sde = SDES.build(kind)
        sde.check_time(torch.tensor([0.0, sde.T], dtype=dtype))
        with pytest.raises(ValueError, match="lives on"):
            sde.check_time(torch.tensor([1.02 * sde.T], dtype=dtype))
