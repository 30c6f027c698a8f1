"""Denoising score matching: its minimum is the score, its weightings agree, its importance sampler is unbiased."""

import math

import pytest
import torch

from sde_score.objectives import OBJECTIVES, TIME_SAMPLERS
from sde_score.sdes import SDES
from sde_score.tensors import GeneratorNoise, SampleNoise, expand_like

MU, VAR = 0.7, 0.4
KINDS = ["ve(sigma_max=10.)", "vp", "subvp", "cosine", "edm(T=20.)"]


class GaussianModel(torch.nn.Module):
    """The exact ε̂ of Gaussian data, off by a factor and a shift."""

    def __init__(self, sde, factor=1.0, shift=0.0):
        super().__init__()
        self.sde = sde
        self.factor = torch.nn.Parameter(torch.tensor(factor, dtype=torch.float64))
        self.shift = torch.nn.Parameter(torch.tensor(shift, dtype=torch.float64))

    def eps(self, x, t):
        m, std = (expand_like(c, x) for c in self.sde.marginal_coeffs(t))
        return self.factor * std * (x - m * MU) / (m**2 * VAR + std**2) + self.shift


def batch(n=4000, seed=0):
    noise = GeneratorNoise(torch.Generator().manual_seed(seed))
    return MU + math.sqrt(VAR) * noise(torch.empty(n, 3, dtype=torch.float64)), noise


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings", [{}, {"weighting": "edm", "times": "log_normal"}, {"weighting": "likelihood", "times": "importance"}]
)
def test_the_exact_score_is_the_minimum(kind, settings):
    # 12 000 numbers: the gradient at the truth is a mean of zero-mean terms; its own standard error is measured, bound
    # at five of it
    sde = SDES.build(kind)
    objective, model = OBJECTIVES.get("dsm")(sde, **settings), GaussianModel(sde)
    x0, noise = batch()
    per_sample = objective(model, x0, noise=noise)
    for parameter in (model.factor, model.shift):
        # finite differences per sample give the spread of the gradient
        with torch.no_grad():
            high, low = [], []
            for step, store in ((1e-4, high), (-1e-4, low)):
                parameter += step
                store.append(objective(model, x0, noise=GeneratorNoise(torch.Generator().manual_seed(3))))
                parameter -= step
        slope = (high[0] - low[0]) / 2e-4
        assert abs(float(slope.mean())) < 5 * float(slope.std()) / math.sqrt(len(slope))
    assert per_sample.shape == (4000,) and bool((per_sample >= 0).all())


def test_loss_at_the_truth_has_its_closed_form():
    # E‖ε̂ − z‖² per dimension for Gaussian data is m² VAR/(m² VAR + std²)
    sde = SDES.build("vp")
    x0, noise = batch(40_000)
    t = torch.full((len(x0),), 0.35, dtype=torch.float64)
    loss = OBJECTIVES.build("dsm", sde).loss_at(GaussianModel(sde), x0, t, noise(x0)).detach()
    m, std = (float(c[0]) for c in sde.marginal_coeffs(t[:1]))
    exact = m**2 * VAR / (m**2 * VAR + std**2)
    assert abs(float(loss.mean()) - exact) < 5 * float(loss.std()) / math.sqrt(len(loss))


@pytest.mark.parametrize("kind", KINDS)
def test_importance_sampling_is_unbiased_and_flat(kind):
    sde = SDES.build(kind) if "edm" not in kind else SDES.build("edm(T=20., t_min=0.05)")
    t_min = 0.05 * sde.T
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    importance = TIME_SAMPLERS.get("importance")(sde, t_min=t_min)
    t, factor = importance(u)
    uniform, _ = TIME_SAMPLERS.get("uniform")(sde, t_min=t_min)(u)
    # midpoint quadrature of any function must agree under both
    for func in (torch.sin, lambda s: s**2, lambda s: torch.exp(-s / sde.T)):
        assert abs(float((factor * func(t)).mean() / func(uniform).mean()) - 1) < 1e-5
    rate = (sde.diffusion_coeff(t) / sde.marginal_coeffs(t)[1]) ** 2
    weighted = factor * rate  # the likelihood weight times the factor does not depend on t
    assert float(weighted.std() / weighted.mean()) < 1e-6


@pytest.mark.parametrize("name", TIME_SAMPLERS.names())
@pytest.mark.parametrize("kind", KINDS)
def test_times_lie_in_their_interval(name, kind):
    sde = SDES.build(kind)
    t, factor = TIME_SAMPLERS.build(name, sde)(torch.rand(500))
    assert t.shape == factor.shape == (500,)
    assert float(t.min()) >= sde.t_min * (1 - 1e-6) and float(t.max()) <= sde.T  # float32 rounds 1e-5 down
    assert (factor > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_times_inverts_the_log_snr(kind):
    sampler = TIME_SAMPLERS.build("importance", SDES.build(kind))
    low, high, _ = sampler._table
    levels = torch.linspace(low, high, 3001, dtype=torch.float64)
    assert float((sampler.sde.log_snr(sampler._time(levels)) - levels).abs().max()) < 1e-4


def test_stratified_times_fill_every_stratum():
    t, _ = TIME_SAMPLERS.build("stratified", SDES.build("vp(t_min=0.)"))(torch.rand(64))
    assert torch.equal((t * 64).floor().long(), torch.arange(64))


def test_mixed_times_are_half_uniform_in_log_snr():
    sde = SDES.build("vp")
    t, _ = TIME_SAMPLERS.build("mixed(share=0.5)", sde)((torch.arange(1000) + 0.5) / 1000)
    below = float((sde.log_snr(t[:500].double()) > 0).double().mean())
    low, high = sde.log_snr(torch.tensor([1.0, 1e-5], dtype=torch.float64)).tolist()
    assert abs(below - high / (high - low)) < 0.01
    assert abs(float((t[500:] > 0.5).double().mean()) - 0.5) < 0.01


def test_log_normal_times_have_the_stated_law():
    sde = SDES.build("edm(T=1000., t_min=1e-6)")
    t, _ = TIME_SAMPLERS.build("log_normal(mean=-1., std=0.8)", sde)(
        (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    )
    assert abs(float(torch.log(t).mean()) + 1) < 1e-3 and abs(float(torch.log(t).std()) - 0.8) < 1e-2


def test_weightings_are_the_stated_functions_of_time():
    sde = SDES.build("subvp")
    x0, noise = batch(16)
    t, z = torch.linspace(0.1, 0.9, 16, dtype=torch.float64), noise(x0)
    model = GaussianModel(sde, 0.5)
    plain = OBJECTIVES.build("dsm", sde).loss_at(model, x0, t, z)
    m, std = sde.marginal_coeffs(t)
    likelihood = OBJECTIVES.build("dsm(weighting='likelihood')", sde).loss_at(model, x0, t, z)
    assert torch.allclose(likelihood / plain, (sde.diffusion_coeff(t) / std) ** 2)
    edm = OBJECTIVES.build("dsm(weighting='edm', sigma_data=0.3)", sde).loss_at(model, x0, t, z)
    sigma = std / m
    # λ(σ)‖D − x0‖² with λ = (σ² + σ_d²)/(σ σ_d)² and D − x0 = −σ (ε̂ − z)
    assert torch.allclose(edm / plain, (sigma**2 + 0.09) / (sigma * 0.3) ** 2 * sigma**2)
    half = OBJECTIVES.build("dsm(reduce='half_sum')", sde).loss_at(model, x0, t, z)
    assert torch.allclose(half, 1.5 * plain)


def test_a_plain_score_function_gives_the_same_loss():
    sde = SDES.build("vp")
    exact = GaussianModel(sde)
    x0, _ = batch(50)
    objective = OBJECTIVES.build("dsm", sde)

    def score(x, t):
        return -exact.eps(x, t) / expand_like(sde.marginal_coeffs(t)[1], x)

    losses = [objective(model, x0, noise=SampleNoise(1, range(50))) for model in (exact, score)]
    assert torch.allclose(*losses)


def test_refusals():
    sde = SDES.build("vp")
    with pytest.raises(ValueError, match="Did you mean 'sigma2'"):
        OBJECTIVES.build("dsm(weighting='sigma')", sde)
    with pytest.raises(ValueError, match="Did you mean 'half_sum'"):
        OBJECTIVES.build("dsm(reduce='halfsum')", sde)
    with pytest.raises(ValueError, match="Did you mean 'uniform'"):
        OBJECTIVES.build("dsm(times='unifrom')", sde)
    with pytest.raises(ValueError, match="share"):
        OBJECTIVES.build("dsm(times='mixed(share=2.)')", sde)
