"""What a user writes outside of the package works with every sampler and with likelihoods.

The toys beside this file use nothing but the public interfaces, in at most 40 lines each.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from sde_score.likelihood import log_likelihood
from sde_score.models import MODELS, PARAMETERIZATIONS, ScoreModel
from sde_score.objectives import OBJECTIVES
from sde_score.sampling import PREDICTORS, PCSampler, make_sampler
from sde_score.score import Score
from sde_score.sdes import SDES
from sde_score.tensors import GeneratorNoise, expand_like
from sde_score.testing.problems import Gaussian

HERE = Path(__file__).parent
TOYS = ("third_order", "guidance", "energy")
third_order = guidance = energy = None  # imported by `plugged_in`
SAMPLERS = {
    "pc": ("pc", {"steps": 200, "corrector": "ald(snr=0.05)", "times": "log_snr"}),
    "ancestral": ("pc", {"steps": 200, "predictor": "ancestral_sampling", "times": "log_snr"}),
    "ode": ("ode", {"solver": "dopri5(rtol=1e-5, atol=1e-5)"}),
    "heun": ("ode", {"solver": "heun(steps=60, power=2)"}),
    "sde": ("sde", {"steps": 200}),
    "published": ("published", {"steps": 300}),
}


def load(name):
    spec = importlib.util.spec_from_file_location(f"outside_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def plugged_in():
    """The toys, registered while this file runs."""
    registries = (PREDICTORS, PARAMETERIZATIONS, MODELS)
    before = [dict(registry._components) for registry in registries]
    globals().update({name: load(name) for name in TOYS})
    yield
    for registry, components in zip(registries, before):
        registry._components = components


@pytest.mark.parametrize("name", TOYS)
def test_forty_lines_are_enough(name):
    assert len((HERE / f"{name}.py").read_text().splitlines()) <= 40


# --- the multistep predictor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vp", "ve(sigma_max=5.)", "subvp"])
def test_the_multistep_predictor_has_its_order(kind):
    sde, law = SDES.build(kind), Gaussian(torch.full((1,), 0.4, dtype=torch.float64), 0.25)
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    m, std = sde.marginal_coeffs(torch.tensor([0.01, sde.T], dtype=torch.float64))
    width = torch.sqrt(m**2 * 0.25 + std**2)
    exact = m[0] * 0.4 + (x_T - m[1] * 0.4) * width[0] / width[1]  # the flow of a Gaussian is affine
    errors = []
    for steps in (100, 200, 400):
        sampler = PCSampler(sde, "ab3", steps=steps, times="log_snr", t_min=0.01, denoise="none")
        first, second = (sampler(law.score_fn(sde), x_T).x for _ in range(2))
        assert torch.equal(first, second)  # nothing of a run stays on the object
        errors.append(float((first - exact).abs().max()))
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
    assert all(2.6 < slope < 3.6 for slope in slopes), errors


# --- guidance -------------------------------------------------------------------------------------------------------


class TwoClasses(Score):
    """The exact score of N(μ_y, 0.25), with y = 2 for the mixture's stand-in N(0, 1)."""

    means, variances = torch.tensor([-1.0, 1.0, 0.0]), torch.tensor([0.25, 0.25, 1.0])

    def __init__(self, sde):
        self.sde = sde

    def __call__(self, x, t, *, y):
        m, std = (expand_like(c, x) for c in self.sde.marginal_coeffs(t))
        mean, variance = (expand_like(table.to(x)[y], x) for table in (self.means, self.variances))
        return -(x - m * mean) / (m**2 * variance + std**2)

    def no_condition(self, cond):
        return {"y": torch.full_like(cond["y"], 2)}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_guidance_reaches_both_branches_in_every_sampler(name, scale):
    # scale 1 gives N(±1, 0.25), scale 0 N(0, 1); 3000 samples: s.e. at most 0.018 (mean) and 1.3 % (std), bounds at
    # five of them plus 0.03 and 3 % of discretisation and of the prior
    sde = SDES.build("vp")
    y = torch.arange(3000) % 2
    score = guidance.Guidance(TwoClasses(sde).bind(y=y), scale)
    noise = GeneratorNoise(torch.Generator().manual_seed(3))
    method, settings = SAMPLERS[name]
    x = make_sampler(method, sde, **settings)(score, sde.prior_sampling((3000, 1), noise=noise), noise=noise).x
    for label in (0, 1):
        mean, std = (float(getattr(x[y == label], moment)()) for moment in ("mean", "std"))
        assert abs(mean - (2 * label - 1) * scale) < 0.13, (label, mean)
        assert abs(std - (0.5 if scale else 1.0)) < 0.1 * (1 if scale else 2), (label, std)


def test_guidance_without_a_condition_is_refused():
    sde = SDES.build("vp")
    with pytest.raises(ValueError, match="no condition bound"):
        guidance.Guidance(TwoClasses(sde), 2.0).inner.unconditional()


def test_samples_are_told_apart_where_each_is_solved_alone():
    """SciPy's samples and adaptive steps of the SDE sampler see their own condition, through a transform as well."""
    sde = SDES.build("vp(t_min=1e-2)")
    y = torch.tensor([0, 1, 1, 0])
    score = guidance.Guidance(TwoClasses(sde).bind(y=y), 1.0)
    for method, settings in (
        ("ode", {"solver": "scipy(rtol=1e-6, atol=1e-6)"}),
        ("sde", {"steps": 20, "adaptive": True, "eta": 0.0, "rtol": 1e-4, "atol": 1e-4}),
    ):
        x = make_sampler(method, sde, **settings)(score, torch.zeros(4, 1)).x
        assert torch.equal(torch.sign(x[:, 0]), 2.0 * y - 1), method


def test_likelihood_with_bound_conditions_is_that_of_the_class():
    sde = SDES.build("vp")
    x, y = torch.tensor([[0.3], [0.3]], dtype=torch.float64), torch.tensor([0, 1])
    score = guidance.Guidance(TwoClasses(sde).bind(y=y), 1.0)
    found = log_likelihood(sde, score, x, trace="exact", solver="dopri5(rtol=1e-7, atol=1e-7)").logp
    exact = torch.distributions.Normal(torch.tensor([-1.0, 1.0]), 0.5).log_prob(x[:, 0])
    # the prior leaves out the mean's rest at T, m(T) = 0.0066: up to 0.0066 · |z| nats
    assert float((found - exact).abs().max()) < 0.03


# --- the energy model -----------------------------------------------------------------------------------------------


def energy_model(a=0.5):
    sde = SDES.build("ve(sigma_min=0.01, sigma_max=10.)")
    return ScoreModel(energy.Quadratic(a), sde, "energy"), sde


def test_the_score_of_an_energy_is_its_gradient():
    model, sde = energy_model()
    x, t = torch.randn(5, 3), torch.rand(5) * 0.9 + 0.05
    std = expand_like(sde.marginal_coeffs(t)[1], x)
    assert torch.allclose(model.score_fn()(x, t), -x / (0.25 + std**2), rtol=1e-5)
    wrong = ScoreModel(torch.nn.Identity(), sde, "energy")
    wrong.network.forward = lambda x, c_noise: x
    with pytest.raises(ValueError, match="one number per sample"):
        wrong(x, t)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_energy_samples_with_every_sampler(name):
    # 4000 numbers: s.e. of the std 1.1 %; bound at five of them plus 4 %
    model, sde = energy_model()
    noise = GeneratorNoise(torch.Generator().manual_seed(4))
    method, settings = SAMPLERS[name]
    x = make_sampler(method, sde, **settings)(
        model.score_fn(), sde.prior_sampling((2000, 2), noise=noise), noise=noise
    ).x
    assert not x.requires_grad
    assert abs(float(x.std()) / 0.5 - 1) < 0.1


def test_an_energy_has_a_likelihood_and_trains():
    model, sde = energy_model()
    x = torch.randn(6, 2) * 0.5
    result = log_likelihood(sde, model.score_fn(), x, trace="exact")
    exact = torch.distributions.Normal(0.0, math.sqrt(0.25 + 1e-4)).log_prob(x).sum(1)
    assert torch.allclose(result.logp, exact, atol=5e-3)
    wrong, _ = energy_model(a=2.0)
    optimizer = torch.optim.Adam(wrong.parameters(), lr=0.05)
    objective, noise = OBJECTIVES.build("dsm", sde), GeneratorNoise(torch.Generator().manual_seed(5))
    for _ in range(150):
        optimizer.zero_grad()
        objective(wrong, 0.5 * noise(torch.empty(256, 2)), noise=noise).mean().backward()
        optimizer.step()
    assert abs(float(wrong.network.log_a.detach().exp()) - 0.5) < 0.05
