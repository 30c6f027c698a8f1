"""Derived quantities of linear SDEs against closed forms, differential equations and each other."""

import math

import pytest
import torch

from sde_score.sdes import SDE, SDES, GaussianPathSDE, LinearSDE, prior_gap
from sde_score.tensors import GeneratorNoise

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


# --- rough coefficients ---------------------------------------------------------------------------------------------


class Rough(LinearSDE):
    """VP with a β that is not smooth; `rate` is β, `total` its integral from 0."""

    def drift_coeff(self, t):
        return -0.5 * self.rate(t)

    def diffusion_coeff(self, t):
        return torch.sqrt(self.rate(t))


class Kink(Rough):
    def rate(self, t):
        return 2 + 60 * (t - 0.4).clamp(min=0)

    def total(self, t):
        return 2 * t + 30 * (t - 0.4).clamp(min=0) ** 2


class Jump(Rough):
    def rate(self, t):
        return torch.where(t < 1 / 3, 1.0, 25.0).to(t)

    def total(self, t):
        return t + 24 * (t - 1 / 3).clamp(min=0)


class TwoJumps(Rough):
    """A pulse a hundredth wide, which 32 nodes over the whole interval see badly."""

    def rate(self, t):
        return 1 + 400.0 * ((t > 0.7) & (t < 0.71)).to(t)

    def total(self, t):
        return t + 400 * (t.clamp(0.7, 0.71) - 0.7)


class Root(Rough):
    def rate(self, t):
        return 12 * (t - 0.5).abs().sqrt()

    def total(self, t):
        return 8 * (0.5**1.5 + torch.sign(t - 0.5) * (t - 0.5).abs() ** 1.5)


@pytest.mark.parametrize("cls", [Kink, Jump, TwoJumps, Root])
def test_rough_coefficients_are_integrated_to_rounding(cls):
    sde, t = cls(), torch.cat([torch.logspace(-5, -1, 9), torch.linspace(0.3, 1, 71)]).double()
    # on either side of what is rough
    t = torch.cat([t, torch.tensor([1 / 3 - 1e-9, 1 / 3 + 1e-9, 0.4 + 1e-7, 0.70001, 0.70999, 0.5 - 1e-6]).double()])
    mean, std = sde.marginal_coeffs(t)
    assert relative(mean, torch.exp(-0.5 * sde.total(t))) < 1e-11
    assert relative(std**2, -torch.expm1(-sde.total(t))) < 1e-10
    a, step = sde.transition(0.5 * t, t)
    assert relative(a, torch.exp(-0.5 * (sde.total(t) - sde.total(0.5 * t)))) < 1e-11
    assert relative(step**2, -torch.expm1(sde.total(0.5 * t) - sde.total(t))) < 1e-10


def test_smooth_coefficients_take_one_panel_and_long_ones_as_many_as_they_need():
    sde = OU()
    sde.marginal_coeffs(torch.ones(1))
    assert sde._panel_ends == [0.0, 1.0]
    long = OU(T=1000.0)
    mean, std = long.marginal_coeffs(torch.tensor([0.5, 30.0, 1000.0], dtype=torch.float64))
    assert relative(std**2, 0.49 / 3 * -torch.expm1(-3 * torch.tensor([0.5, 30.0, 1000.0]).double())) < 1e-11


def test_what_cannot_be_integrated_is_said_with_the_size_of_the_error():
    class Wild(Rough):
        def rate(self, t):
            return 5 + 4 * torch.sin(1e6 * t)

    with pytest.warns(UserWarning, match="Wild: f or g is too rough.*relative error of about"):
        Wild().marginal_coeffs(torch.tensor([0.5], dtype=torch.float64))


# --- forward paths, the semi-linear structure, the prior ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_simulated_states_have_the_marginal_law(name):
    # 20,000 draws: s.e. of a mean 0.007 std, of a std 0.5 %; bounds at five of them
    sde = SDES.build(name)
    t = torch.full((20000,), 0.6 * sde.T)
    x = sde.simulate(torch.full((20000, 1), 1.5), t, torch.randn_like)
    mean, std = (float(c[0]) for c in sde.marginal_coeffs(t))
    assert abs(float(x.mean()) - 1.5 * mean) < 5 * std / 20000**0.5 and abs(float(x.std()) / std - 1) < 0.025


def test_a_general_sde_is_simulated_from_its_drift_and_diffusion():
    class Geometric(SDE):
        """dx = −x dt + 0.5 x dw: E x_t = x_0 e^{−t}, E x_t² = x_0² e^{(−2 + 0.25) t}."""

        def drift(self, x, t):
            return -x

        def diffusion(self, x, t):
            return 0.5 * x

        def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
            return noise(torch.empty(shape))

        def prior_logp(self, x):
            return -0.5 * (x**2).flatten(1).sum(1)

    t = torch.cat([torch.full((20000,), 0.5), torch.full((20000,), 1.0)])
    x = Geometric().simulate(torch.full((40000, 1), 2.0), t, torch.randn_like)[:, 0]
    for part, time in ((x[:20000], 0.5), (x[20000:], 1.0)):
        # s.e. of the mean 0.005, of the second moment 0.02; 200 steps leave 0.3 %
        assert abs(float(part.mean()) - 2 * math.exp(-time)) < 0.03
        assert abs(float(part.square().mean()) - 4 * math.exp(-1.75 * time)) < 0.12
    with pytest.raises(ValueError, match="at least one step"):
        Geometric().simulate(torch.ones(1, 1), torch.ones(1), steps=0)


@pytest.mark.parametrize("sde", [*map(SDES.build, NAMES), Diagonal()], ids=[*NAMES, "diagonal"])
def test_linear_and_nonlinear_part_make_the_drift(sde):
    x, t = torch.randn(2, 2, 3, dtype=torch.float64), torch.tensor([0.3, 0.8], dtype=torch.float64) * sde.T
    for eta in (0.0, 0.6, 1.0):
        reverse = sde.reverse(lambda x, t: torch.sin(x), eta=eta)
        assert torch.allclose(reverse.linear_coeff(x, t) * x + reverse.nonlinear(x, t), reverse.drift(x, t))
    # the propagator solves dy/dt = f(t) y, either way
    s = 0.5 * t
    forth, back = reverse.propagator(x, s, t), reverse.propagator(x, t, s)
    assert torch.allclose(forth * back, torch.ones_like(forth))
    h = 1e-6
    slope = (reverse.propagator(x, s, t + h) - reverse.propagator(x, s, t - h)) / (2 * h)
    assert torch.allclose(slope, reverse.linear_coeff(x, t) * forth, rtol=1e-5)


def test_a_path_may_return_plain_numbers():
    class Plain(GaussianPathSDE):
        def alpha(self, t):
            return 1.0

        def sigma(self, t):
            return 3 * t

    sde, t = Plain(), torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert torch.equal(sde.marginal_coeffs(t)[0], torch.ones(2, dtype=torch.float64))
    assert torch.allclose(sde.transition(0.5 * t, t)[1], 3 * t * math.sqrt(0.75))
    assert torch.allclose(sde.log_snr(t), -2 * torch.log(3 * t))


@pytest.mark.parametrize(
    "spec, mean, std, words",
    [
        ("vp(beta_max=0.1)", 3.0, 0.5, "mean is off by 2.*beta_max, now 0.1"),  # m(1) = 0.951: 2.85
        ("ve(sigma_max=1.)", 0.0, 2.0, "sigma_max, now 1"),
        ("ve(sigma_max=1.)", 3.0, 0.1, "mean is off by 2.*Centre the data"),
        ("vp", 3.0, 0.5, None),
        ("ve(sigma_max=50.)", 0.0, 2.0, None),
        ("cosine", 0.0, 1.0, None),
    ],
)
def test_a_prior_far_from_the_data_at_T_is_seen(spec, mean, std, words):
    import re

    sde, generator = SDES.build(spec), torch.Generator().manual_seed(0)
    x0 = mean + std * torch.randn(1000, 4, generator=generator)
    said = prior_gap(sde, x0).warning(sde)
    assert said is None if words is None else re.search(words, said), said


def test_the_prior_of_a_general_sde_is_compared_by_simulation():
    class Still(SDE):
        """dx = 0.1 dw: the data hardly move."""

        def drift(self, x, t):
            return torch.zeros_like(x)

        def diffusion(self, x, t):
            return 0.1 * torch.ones_like(x)

        def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
            return noise(torch.empty(shape, dtype=dtype, device=device))

        def prior_logp(self, x):
            return -0.5 * (x**2).flatten(1).sum(1)

    gap = prior_gap(Still(), 2 + 0.5 * torch.randn(1000, 3))
    # five standard errors are taken off: 0.22 of the mean, a factor 1.17 of the ratio
    assert 1.6 < gap.mean < 2.0 and abs(math.log(gap.std_ratio / (1.17 * math.sqrt(0.25 + 0.01)))) < 0.15
    assert "larger T" in gap.warning(Still())


@pytest.mark.parametrize("n", [20, 60, 300])
def test_few_samples_of_a_fitting_law_raise_no_alarm(n):
    # 20 draws for each n; five standard errors are allowed for
    sde = SDES.build("vp")
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x0 = torch.randn(n, 16, generator=generator)
        gap = prior_gap(sde, x0, noise=GeneratorNoise(generator))
        assert gap.warning(sde) is None, (seed, gap)
    with pytest.raises(ValueError, match="at least 20 finite samples; got 3"):
        prior_gap(sde, torch.randn(3, 16))
