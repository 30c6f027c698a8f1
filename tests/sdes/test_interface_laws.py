"""What every SDE owes by its interface: the reverse drift, Tweedie's formula, simulated paths, doors and defaults."""

import math

import pytest
import torch

from sde_score.sdes import SDE, SDES, GaussianPathSDE, LinearSDE, prior_gap
from sde_score.sdes.base import require_sde

NAMES = ["ve", "vp", "subvp", "cosine", "edm"]


class Given(SDE):
    """dx = f dt + g dw with given functions."""

    def __init__(self, f, g, divergence=None, **options):
        super().__init__(**options)
        self.f, self.g, self.divergence = f, g, divergence

    def drift(self, x, t):
        return self.f(x, t[:, None])

    def diffusion(self, x, t):
        return self.g(x, t[:, None])

    def diffusion_sq_divergence(self, x, t):
        return self.divergence(x, t[:, None]) if self.divergence else super().diffusion_sq_divergence(x, t)

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return noise(torch.empty(shape, device=device, dtype=dtype))

    def prior_logp(self, x):
        return torch.distributions.Normal(0, 1).log_prob(x).sum(1)


@pytest.mark.parametrize("name", NAMES)
def test_the_posterior_mean_is_bayes_rule_for_normal_data(name):
    """Data N(a, v): x_t is N(m a, m² v + std²), and E[x_0 | x] = a + m v/(m² v + std²) (x − m a)."""
    sde, a, v = SDES.build(name), 0.7, 0.4
    t = torch.tensor([0.02, 0.3, 0.8], dtype=torch.float64) * sde.T
    m, std = (c[:, None] for c in sde.marginal_coeffs(t))
    law = m**2 * v + std**2
    x = m * a + torch.sqrt(law) * torch.randn(3, 5, dtype=torch.float64)
    exact = a + m * v / law * (x - m * a)
    assert torch.allclose(sde.posterior_mean(x, t, -(x - m * a) / law), exact)
    assert torch.allclose(sde.denoise(lambda x, t: -(x - m * a) / law, x, t), exact)


def test_the_reverse_drift_of_noise_that_depends_on_x():
    """dx = f dt + G(x) dw backwards: f − ½(1 + η²)(G² s + ∇·G²) (Anderson 1982), G = 1 + x²/2, ∇·G² = 2 G x."""
    sde = Given(lambda x, t: t - x, lambda x, t: 1 + x**2 / 2, lambda x, t: 2 * (1 + x**2 / 2) * x)
    x, t = torch.randn(4, 1, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    g, v = 1 + x**2 / 2, torch.randn(4, 1, dtype=torch.float64)
    for eta in (0.0, 0.5, 1.0, 2.0):
        reverse = sde.reverse(lambda x, t: torch.cos(x), eta=eta)
        exact = t[:, None] - x - 0.5 * (1 + eta**2) * (g**2 * torch.cos(x) + 2 * g * x)
        assert torch.allclose(reverse.drift(x, t), exact)
        assert torch.allclose(reverse.diffusion(x, t), eta * g)
        assert torch.allclose(reverse.apply_diffusion(x, t, v), eta * g * v)
    assert torch.equal(sde.apply_diffusion(x, t, v), g * v)
    assert torch.allclose(sde.apply_diffusion_sq(x, t, v), g**2 * v)
    with pytest.raises(ValueError, match="at least 0"):
        sde.reverse(torch.cos, eta=-0.1)


def test_simulated_paths_meet_coefficients_at_their_times():
    """Without noise Euler's rule is the left Riemann sum; with g = √(2t) the variance is t² (as the sum Σ 2 t_k dt)."""
    t = torch.tensor([0.5, 2.0], dtype=torch.float64)
    sde = Given(lambda x, t: 3 * t**2 + 0 * x, lambda x, t: torch.zeros_like(x), T=2.0)
    for steps in (1, 7):
        dt = t / steps
        exact = sum(3 * (k * dt) ** 2 * dt for k in range(steps))
        assert torch.allclose(sde.simulate(torch.ones(2, 1).double(), t, steps=steps), (1 + exact)[:, None])
    default = sde.simulate(torch.zeros(2, 1).double(), t)
    assert torch.allclose(default, sde.simulate(torch.zeros(2, 1).double(), t, steps=200))
    sde = Given(lambda x, t: torch.zeros_like(x), lambda x, t: torch.sqrt(2 * t), T=2.0)
    ends = sde.simulate(torch.zeros(2, 20000).double(), t, steps=20)
    # 20,000 draws: s.e. of a variance 1 %, bound at four and a half
    assert torch.allclose(ends.var(1), t**2 * (1 - 1 / 20), rtol=0.045)
    with pytest.raises(FloatingPointError, match="200 Euler-Maruyama steps"):
        Given(lambda x, t: x**9, lambda x, t: x).simulate(torch.full((1, 1), 1e3), torch.ones(1))


def test_only_an_instance_is_an_sde():
    sde = SDES.build("vp")
    assert require_sde(sde) is sde
    with pytest.raises(TypeError, match=r"VPSDE is a class; give an instance: VPSDE\(\)"):
        require_sde(type(sde))
    for other in (int, 3, "vp"):
        with pytest.raises(TypeError, match="Expected an SDE"):
            require_sde(other)


def test_ends_of_time():
    for bad in (dict(T=1.0, t_min=1.0), dict(t_min=-1e-9), dict(T=math.inf), dict(T=0.0, t_min=0.0), dict(T=math.nan)):
        with pytest.raises(ValueError, match="t_min must lie in"):
            Given(None, None, **bad)
    sde = Given(None, None, T=4.0, t_min=0.0)
    assert (sde.T, sde.t_min) == (4.0, 0.0) and (Given(None, None).T, Given(None, None).t_min) == (1.0, 1e-5)
    sde.check_time(torch.tensor([0, 4]))  # whole numbers too
    sde.check_time(torch.tensor([-3e-6, 4 + 3e-6], dtype=torch.float64))  # rounding, relative to T
    for beyond in (-5e-6, 4 + 5e-6):
        with pytest.raises(ValueError, match=r"lives on \[0, 4\]"):
            sde.check_time(torch.tensor([1.0, beyond], dtype=torch.float64))


def test_the_settings_are_the_published_ones():
    ve, vp, cosine, edm = (SDES.build(name) for name in ("ve", "vp", "cosine", "edm"))
    assert (ve.sigma_min, ve.sigma_max, ve.T, ve.t_min, ve.prior_std) == (0.01, 50.0, 1.0, 1e-5, 50.0)
    for sde in (vp, SDES.build("subvp")):
        assert (sde.beta_min, sde.beta_max, sde.T, sde.t_min, sde.prior_std) == (0.1, 20.0, 1.0, 1e-5, 1.0)
        assert not sde.published_rounding
    assert (cosine.s, cosine.T, cosine.t_min, cosine.prior_std) == (0.008, 0.995, 1e-4, 1.0)
    assert (edm.T, edm.t_min) == (80.0, 0.002) and math.isclose(edm.prior_std, 80.0)


@pytest.mark.parametrize(
    "right", ["vp(beta_min=0.)", "vp(beta_min=3., beta_max=3.)", "cosine(s=0.)", "ve(sigma_min=1e-9)", "edm(t_min=0.)"]
)
def test_settings_at_the_edge(right):
    sde = SDES.build(right)
    _, std = sde.marginal_coeffs(torch.tensor([0.5 * sde.T]))
    assert torch.isfinite(std).all() and std > 0


@pytest.mark.parametrize(
    "wrong",
    ["vp(beta_min=0., beta_max=0.)", "vp(beta_min=2., beta_max=1.)", "vp(beta_min=-1.)", "ve(sigma_min=0.)",
     "ve(sigma_min=1., sigma_max=1.)", "ve(sigma_max=1e999)", "cosine(s=-0.1)", "cosine(T=1.)"],
)  # fmt: skip
def test_settings_beyond_the_edge(wrong):
    with pytest.raises(ValueError, match="needs"):
        SDES.build(wrong)


# --- linear SDEs ------------------------------------------------------------------------------------------------------


class Diagonal(LinearSDE):
    """A rate for each of two channels: dx_c = −r_c x dt + √(2 r_c) dw, std² = 1 − e^{−2 r t}."""

    rates = torch.tensor([0.5, 3.0], dtype=torch.float64)

    def drift_coeff(self, t):
        return -self.rates.expand(len(t), 2)

    def diffusion_coeff(self, t):
        return torch.sqrt(2 * self.rates).expand(len(t), 2)


def test_the_log_snr_of_a_diagonal_is_the_mean_over_it():
    sde, t = Diagonal(), torch.tensor([0.1, 0.6], dtype=torch.float64)
    each = -2 * t[:, None] * sde.rates - torch.log(-torch.expm1(-2 * t[:, None] * sde.rates))
    assert torch.allclose(sde.log_snr(t), each.mean(1))
    rate = 2 * sde.rates / -torch.expm1(-2 * t[:, None] * sde.rates)
    assert torch.allclose(sde.log_snr_rate(t), rate.mean(1))


def test_the_prior_of_a_diagonal_is_a_normal_for_each_channel():
    sde = Diagonal()
    std = torch.sqrt(-torch.expm1(-2 * sde.rates))
    unit = torch.randn(3, 2, 4, dtype=torch.float64)
    x = sde.prior_sampling((3, 2, 4), noise=lambda like: unit, dtype=torch.float64)
    assert torch.allclose(x, unit * std[:, None])
    normal = torch.distributions.Normal(0, std[:, None].expand(2, 4))
    assert torch.allclose(sde.prior_logp(x), normal.log_prob(x).sum((1, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_of_the_log_snr_is_its_derivative(name):
    sde = SDES.build(name)
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64) * sde.T
    _, slope = torch.func.jvp(sde.log_snr, (t,), (torch.ones_like(t),))
    assert torch.allclose(sde.log_snr_rate(t), -slope)


def test_a_log_snr_outside_the_interval_gives_its_end():
    for name in NAMES:
        sde = SDES.build(name)
        ends = sde.time_of_log_snr(torch.tensor([[-1e3, 1e3]], dtype=torch.float64))
        assert torch.allclose(ends, torch.tensor([[sde.T, 0.0]], dtype=torch.float64), atol=1e-12)


def test_expanded_times_give_what_single_ones_give():
    t = torch.tensor([0.3])
    for sde in (Diagonal(), Diagonal(T=2.0)):
        one, many = sde.marginal_coeffs(t), sde.marginal_coeffs(t.expand(4))
        for a, b in zip(one, many):
            assert b.shape == (4, 2) and b.dtype == torch.float32 and torch.equal(a.expand(4, 2), b)
    # one side expanded is not both
    s = torch.tensor([0.1, 0.2, 0.25])
    for a, b in zip(Diagonal().transition(s, t.expand(3)), Diagonal().transition(s, t.repeat(3))):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"shape \(B,\); got \(1, 1\)"):
        Diagonal().marginal_coeffs(t[None])


def path(alpha, sigma, **options):
    kind = type("Path", (GaussianPathSDE,), {"alpha": lambda self, t: alpha(t), "sigma": lambda self, t: sigma(t)})
    return kind(**options)


@pytest.mark.parametrize(
    "alpha, sigma, words",
    [
        (lambda t: 0.9 - 0.1 * t, lambda t: t, r"alpha\(0\) must be 1.*it is 0\.9\."),
        (lambda t: 1 + 1e-5 - t, lambda t: t, r"alpha\(0\) must be 1"),
        (lambda t: 1 - 2 * t, lambda t: t, r"positive on \[0, T\], but not at t = 0\.5\. End earlier: T=0\.4995"),
        (lambda t: 1 - t, lambda t: t, r"not at t = 1\. End earlier: T=0\.999"),
        (lambda t: 1 - 0 * t, lambda t: t * (1 - t) + 1e-3, r"must fall with t, but rises at t = 0\.5;"),
        (lambda t: 1 - 0 * t, lambda t: 1 / (1 + t), r"rises at t = 0\.015625;"),
    ],
)
def test_a_path_that_no_sde_has_is_refused_with_its_place(alpha, sigma, words):
    for ask in ("drift_coeff", "diffusion_coeff"):
        with pytest.raises(ValueError, match=words):
            getattr(path(alpha, sigma), ask)(torch.tensor([0.2]))


def test_paths_at_the_edge_are_taken():
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    straight = path(lambda t: 1 - t, lambda t: t, T=0.99)
    # f = −1/(1−t), g² = 2t − 2 f t² = 2t/(1−t)
    assert torch.allclose(straight.drift_coeff(t), -1 / (1 - t))
    assert torch.allclose(straight.diffusion_coeff(t) ** 2, 2 * t / (1 - t))
    still = path(lambda t: torch.exp(-t), lambda t: 0.5 * torch.exp(-t))  # the ratio stays: no noise at all
    assert torch.allclose(still.diffusion_coeff(t), torch.zeros(5, dtype=torch.float64), atol=1e-7)
    mean, std = straight.transition(t, t)
    assert torch.allclose(mean, torch.ones(5).double()) and torch.equal(std, torch.zeros(5).double())


# --- the prior and the data at T --------------------------------------------------------------------------------------


def test_the_gap_is_measured_in_prior_standard_deviations():
    """4000 draws: five standard errors are taken off, √(2/n) of a difference of means and 1/√n of a log ratio."""
    x0 = torch.tensor([3.0, 0.0]) + torch.tensor([0.1, 2.0]) * torch.randn(4000, 2)
    sde = SDES.build("ve(sigma_max=1.)")
    gap = prior_gap(sde, x0)
    assert abs(gap.mean - (3 - 5 * (2 / 4000) ** 0.5)) < 0.1
    assert abs(math.log(gap.std_ratio) - (math.log(5) / 2 - 5 / 4000**0.5)) < 0.05
    seen = x0[:512]
    assert abs(gap.reach / float(torch.cdist(seen, seen).max()) - 1) < 0.05
    assert gap.to_dict() == {"mean": gap.mean, "std_ratio": gap.std_ratio, "reach": gap.reach}
    broken = torch.cat([x0, torch.tensor([[math.nan, 0.0]])])
    assert math.isfinite(prior_gap(sde, broken).mean)
    fits = prior_gap(SDES.build("ve(sigma_max=100.)"), x0)
    assert fits.mean == 0 and fits.std_ratio == 1 and fits.warning(sde) is None


def test_a_prior_that_is_too_wide_is_seen_as_one_that_is_too_narrow():
    wide = Given(lambda x, t: -3 * x, lambda x, t: torch.full_like(x, 0.1))
    gap = prior_gap(wide, torch.randn(500, 2))
    # e^{−3} of the data and noise of variance 0.01/6 are left: 0.064, in whose logarithm five errors are allowed for
    assert abs(gap.std_ratio - 0.064 * math.exp(5 / 500**0.5)) < 0.01 and gap.reach < 0.5
    assert "standard deviation is 0.07" in gap.warning(wide)


def test_twenty_samples_are_the_least_that_can_be_compared():
    sde = SDES.build("vp")
    assert math.isfinite(prior_gap(sde, torch.randn(20, 3)).reach)
    with pytest.raises(ValueError, match="at least 20 finite samples; got 19"):
        prior_gap(sde, torch.cat([torch.randn(19, 1), torch.full((1, 1), math.inf)]))


def test_one_time_for_all_samples_is_integrated_once():
    asked = []

    class Counting(Diagonal):
        def drift_coeff(self, t):
            asked.append(len(t))
            return super().drift_coeff(t)

    sde, t = Counting(), torch.tensor([0.3])
    sde.marginal_coeffs(t)  # finds the panels
    for times, nodes in ((t, 32), (t.expand(1000), 32), (t.repeat(5), 5 * 32)):
        asked.clear()
        sde.marginal_coeffs(times)
        assert asked == [nodes]


def test_noise_already_in_the_data_decays_with_the_drift():
    """dx = −r x dt + √(2r) dw from std_0: std² = e^{−2 r t} std_0² + 1 − e^{−2 r t}; a step from s starts without."""

    class Noisy(Diagonal):
        std_0 = 0.3

    t = torch.tensor([1e-3, 0.2, 1.0], dtype=torch.float64)
    m, std = Noisy().marginal_coeffs(t)
    decay = torch.exp(-2 * t[:, None] * Diagonal.rates)
    assert torch.allclose(m, decay.sqrt()) and torch.allclose(std**2, decay * 0.09 + 1 - decay)
    assert torch.allclose(Noisy().transition(0 * t, t)[1] ** 2, 1 - decay)


def test_a_path_is_checked_once():
    asked = []

    def alpha(t):
        asked.append(len(t))
        return 1 - t

    sde, t = path(alpha, lambda t: t, T=0.9), torch.tensor([0.2, 0.5])
    for _ in range(3):
        sde.drift_coeff(t)
    assert sorted(asked) == [2, 2, 2, 65]
