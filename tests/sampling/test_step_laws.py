"""Single steps on Gaussian laws, where a step is affine and its law can be written down: every eta, every factor."""

import math

import pytest
import torch

from sde_score.sampling import CORRECTORS, PREDICTORS, SDESampler
from sde_score.sdes import SDES, LinearSDE
from sde_score.tensors import GeneratorNoise, expand_like

ETAS = [0.0, 0.3, 0.7, 1.0]
ALL = ["euler_maruyama", "reverse_diffusion", "ancestral_sampling"]


class Long(LinearSDE):
    """dx = −0.4 x dt + 0.8 dw on [0, 10], with noise in the data already."""

    std_0 = 0.3

    def __init__(self, t_min=1e-2):
        super().__init__(T=10.0, t_min=t_min)

    def drift_coeff(self, t):
        return -0.4

    def diffusion_coeff(self, t):
        return 0.8


def test_noise_at_time_zero_decays_with_the_drift():
    # var = m² std_0² + (g²/2|f|)(1 − m²), m = e^{−0.4 t}
    t = torch.tensor([1e-3, 0.5, 3.0, 10.0], dtype=torch.float64)
    m, std = Long().marginal_coeffs(t)
    assert torch.allclose(m, torch.exp(-0.4 * t), rtol=1e-12)
    assert torch.allclose(std**2, m**2 * 0.09 + 0.8 * (1 - m**2), rtol=1e-12)


def gaussian(sde, mean, variance):
    def score(x, t):
        m, std = (expand_like(c, x) for c in sde.marginal_coeffs(t))
        return -(x - m * mean) / (m**2 * variance + std**2)

    return score


def affine(step, times, sde_dtype=torch.float64):
    """Offset, and the coefficients of x and of the noise, of a step that is affine in both."""
    t = [torch.full((1,), v, dtype=sde_dtype) for v in times]

    def at(x, w):
        out = step(torch.full((1, 1), x, dtype=sde_dtype), *t, lambda like: torch.full_like(like, w))
        return float(out[0]), float(out[1])

    (origin, mean), (moved, moved_mean), (kicked, kicked_mean) = at(0.0, 0.0), at(1.0, 0.0), at(0.0, 1.0)
    assert origin == mean and moved == moved_mean  # x_mean is the state before its noise
    assert kicked_mean == mean
    return origin, moved - origin, kicked - origin


SDE_CASES = ["vp", "ve(sigma_max=8.)", "subvp", "cosine", "edm(T=10.)", "long"]


def build(name):
    return Long() if name == "long" else SDES.build(name)


@pytest.mark.parametrize("predictor", ALL)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("kind", SDE_CASES)
def test_mean_and_variance_of_a_step_are_right_to_first_order(predictor, eta, kind):
    """The error of mean and variance at t − Δ falls as Δ², whatever eta: a wrong factor anywhere makes it fall as Δ."""
    sde, mean, variance = build(kind), 0.7, 0.25
    score, t = gaussian(sde, mean, variance), 0.5 * sde.T
    rule = PREDICTORS.build(f"{predictor}(eta={eta})", sde)
    errors = []
    for delta in (0.02 * sde.T, 0.01 * sde.T):
        offset, a, b = affine(lambda x, t, s, w: rule.step(score, x, t, s, w), (t, t - delta))
        (m, std), (m_next, std_next) = (
            [float(c) for c in sde.marginal_coeffs(torch.tensor([v], dtype=torch.float64))] for v in (t, t - delta)
        )
        before, after = m**2 * variance + std**2, m_next**2 * variance + std_next**2
        assert (b == 0) == (eta == 0)
        errors.append((abs(offset + a * m * mean - m_next * mean), abs(a**2 * before + b**2 - after) / after))
    for first, second in zip(*errors):
        assert second < 0.3 * first + 1e-12, errors
    assert errors[1][1] < 0.1


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("kind", SDE_CASES)
def test_ancestral_steps_of_any_length_are_exact_for_a_single_point(eta, kind):
    """Where the posterior mean is the datum, mean and variance at t_next are those of x_t given x_0."""
    sde, mean = build(kind), 0.7
    rule = PREDICTORS.build(f"ancestral_sampling(eta={eta})", sde)
    t, s = 0.9 * sde.T, 0.2 * sde.T
    offset, a, b = affine(lambda x, t, s, w: rule.step(gaussian(sde, mean, 0.0), x, t, s, w), (t, s))
    (m, std), (m_next, std_next) = (
        [float(c) for c in sde.marginal_coeffs(torch.tensor([v], dtype=torch.float64))] for v in (t, s)
    )
    assert math.isclose(offset + a * m * mean, m_next * mean, rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(a**2 * std**2 + b**2, std_next**2, rel_tol=1e-9)
    step = float(sde.transition(*(torch.tensor([v], dtype=torch.float64) for v in (s, t)))[1])
    assert math.isclose(b, eta * step * std_next / std, rel_tol=1e-9, abs_tol=1e-12)  # the declared share of noise


@pytest.mark.parametrize("spec", ["ald(snr=0.1)", "langevin(snr=0.1, norms='expected')", "ald(snr=0.1, n_steps=3)"])
def test_langevin_steps_are_e_s_and_root_2e(spec):
    """x_mean = x + e s with e = 2 (snr std)², and noise √(2e): so p_t is kept to first order in e; n_steps in a row."""
    sde, score = SDES.build("vp"), gaussian(SDES.build("vp"), 0.0, 0.25)
    corrector, t = CORRECTORS.build(spec, sde), 0.6
    m, std = (float(c) for c in sde.marginal_coeffs(torch.tensor([t], dtype=torch.float64)))
    e, variance = 2 * (0.1 * std) ** 2, m**2 * 0.25 + std**2
    steps = corrector.n_steps
    x = torch.full((1, 1), 1.0, dtype=torch.float64)
    time = torch.full((1,), t, dtype=torch.float64)
    quiet, quiet_mean = corrector.step(score, x, time, torch.zeros_like)
    assert math.isclose(float(quiet), (1 - e / variance) ** steps, rel_tol=1e-12) and torch.equal(quiet, quiet_mean)
    kicked, kicked_mean = corrector.step(score, 0 * x, time, torch.ones_like)
    shrink = 1 - e / variance
    assert math.isclose(float(kicked), sum(shrink**k for k in range(steps)) * math.sqrt(2 * e), rel_tol=1e-12)
    assert math.isclose(float(kicked - kicked_mean), math.sqrt(2 * e), rel_tol=1e-12)


def test_two_names_of_one_rule():
    sde = SDES.build("subvp")
    first, second = (CORRECTORS.build(s, sde) for s in ("ald(snr=0.2)", "langevin(snr=0.2, norms='expected')"))
    x, t = torch.randn(3, 2), torch.full((3,), 0.4)
    noise = torch.randn(3, 2)
    for a, b in zip(*(c.step(gaussian(sde, 0.0, 1.0), x, t, lambda like: noise) for c in (first, second))):
        assert torch.equal(a, b)
    assert not first.batch_coupled and not second.batch_coupled


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_long_process_through_the_sampler_sde(eta):
    # 4000 samples: s.e. of the mean 0.009, of the std 1.1 %; bounds at five of them plus 1 % of steps
    sde, noise = Long(), GeneratorNoise(torch.Generator().manual_seed(2))
    x_T = sde.prior_sampling((4000, 1), noise=noise, dtype=torch.float64)
    sampler = SDESampler(sde, "srk", steps=60, eta=eta, denoise="none")
    x = sampler(gaussian(sde, 0.7, 0.25), x_T, noise=noise).x
    m, std = (float(c) for c in sde.marginal_coeffs(torch.tensor([sde.t_min])))
    width = math.sqrt(m**2 * 0.25 + std**2)
    # what the prior leaves out of the mean, e^{−4} · 0.7 = 0.013 at T, comes back shrunk by the way
    assert abs(float(x.mean()) - m * 0.7) < 0.06 and abs(float(x.std()) / width - 1) < 0.07
