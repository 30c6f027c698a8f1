"""Losses and training times at given draws, by hand: nothing random is left to hide a wrong factor."""

import math
from statistics import NormalDist

import pytest
import torch

from sde_score.objectives import OBJECTIVES, TIME_SAMPLERS
from sde_score.objectives.times import log_snr_ends
from sde_score.sdes import SDES
from sde_score.tensors import SampleNoise

U = (torch.arange(400, dtype=torch.float64) + 0.5) / 400


class Draws:
    """Noise that hands out given uniform and normal numbers."""

    def __init__(self, u, z):
        self.u, self.z = u, z

    def __call__(self, like):
        return self.z.to(like)

    def uniform(self, like):
        return self.u.to(like)


class Asked(torch.nn.Module):
    """Says ε̂ = 0.3 x + shift, and keeps what it was asked at."""

    def eps(self, x, t, shift=0.1):
        self.x, self.at = x, t
        return 0.3 * x + shift

    eps_at_index = eps


@pytest.mark.parametrize("spec", ["vp", "ve"])
def test_the_discrete_loss_is_the_squared_error_at_the_drawn_state(spec):
    sde, n = SDES.build(spec), 50
    # the last is what rounding makes of a number just below 1
    u = torch.tensor([0.0, 0.019, 0.021, 0.5, 0.99, 1.0])
    x0, z = torch.randn(6, 4), torch.randn(6, 4)
    model = Asked()
    for reduce, factor in (("mean", 0.25), ("sum", 1.0), ("half_sum", 0.5)):
        objective = OBJECTIVES.get("discrete_dsm")(sde, n=n, reduce=reduce)
        loss = objective(model, x0, noise=Draws(u, z), shift=0.2)
        assert model.at.tolist() == [0, 0, 1, 25, 49, 49]
        m, std = (c[:, None] for c in sde.chain(n).marginal(model.at))
        assert torch.allclose(model.x, m * x0 + std * z)
        assert torch.allclose(loss, factor * ((0.3 * model.x + 0.2 - z) ** 2).sum(1))
    assert OBJECTIVES.get("discrete_dsm")(sde).n == 1000
    with pytest.raises(TypeError, match="eps_at_index"):
        objective(torch.nn.Linear(4, 4), x0, noise=Draws(u, z))


@pytest.mark.parametrize("reduce, factor", [("mean", 0.25), ("sum", 1.0), ("half_sum", 0.5)])
def test_the_continuous_loss_is_the_weighted_squared_error_at_the_drawn_time(reduce, factor):
    sde = SDES.build("subvp(t_min=0.1)")
    u, x0, z = torch.tensor([0.0, 0.25, 1.0]).double(), *torch.randn(2, 3, 4, dtype=torch.float64)
    t = torch.tensor([0.1, 0.325, 1.0], dtype=torch.float64)
    m, std = (c[:, None] for c in sde.marginal_coeffs(t))
    for weighting, weight in (
        ("sigma2", torch.ones(3, 1)),
        ("likelihood", (sde.diffusion_coeff(t)[:, None] / std) ** 2),
        ("edm", ((std / m) ** 2 + 0.25) / 0.25),
    ):
        model = Asked()
        loss = OBJECTIVES.get("dsm")(sde, weighting=weighting, reduce=reduce)(model, x0, noise=Draws(u, z), shift=0.4)
        assert torch.allclose(model.at, t) and torch.allclose(model.x, m * x0 + std * z)
        assert torch.allclose(loss, factor * (weight * (0.3 * model.x + 0.4 - z) ** 2).sum(1))


def test_the_factor_of_the_times_multiplies_the_loss():
    sde = SDES.build("vp(t_min=0.05)")
    u, x0, z = torch.tensor([0.1, 0.6]).double(), *torch.randn(2, 2, 3, dtype=torch.float64)
    times = TIME_SAMPLERS.build("importance", sde)
    t, factor = times(u)
    objective = OBJECTIVES.get("dsm")(sde, weighting="likelihood", times="importance")
    assert torch.allclose(objective(Asked(), x0, noise=Draws(u, z)), factor * objective.loss_at(Asked(), x0, t, z))
    low, high = log_snr_ends(sde, 0.05)
    # the density of t is the rate over the whole range of the log-SNR; uniform times have 1/(T − t_min)
    assert torch.allclose(factor, (high - low) / sde.log_snr_rate(t) / 0.95)
    assert torch.allclose(sde.log_snr(t), low + (high - low) * u, rtol=1e-6)


def test_data_that_are_not_scaled_are_refused():
    for name in ("dsm", "discrete_dsm"):
        with pytest.raises(TypeError, match="x0 holds torch.uint8"):
            OBJECTIVES.build(name, SDES.build("vp"))(
                Asked(), torch.zeros(2, 3, dtype=torch.uint8), noise=torch.randn_like
            )


# --- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_mixed_times_are_two_uniform_laws_side_by_side(share):
    sde = SDES.build("vp(t_min=0.001)")
    t, factor = TIME_SAMPLERS.build(f"mixed(share={share})", sde)(U)
    first = share > U
    low, high = log_snr_ends(sde, 0.001)
    assert torch.allclose(sde.log_snr(t[first]), low + (high - low) * U[first] / share, atol=1e-4)
    assert torch.allclose(t[~first], 0.001 + 0.999 * (U[~first] - share) / (1 - share))
    assert torch.equal(factor, torch.ones(400).double())
    for wrong in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match="share must lie between 0"):
            TIME_SAMPLERS.get("mixed")(sde, share=wrong)
    assert TIME_SAMPLERS.build("mixed", sde).share == 0.5


def test_log_normal_times_are_the_quantiles_of_the_stated_law():
    """Of the defaults of Karras et al. 2022, ln σ ~ N(−1.2, 1.2²), with σ = t in EDM; clipped to the interval."""
    sde = SDES.build("edm")
    t, factor = TIME_SAMPLERS.build("log_normal", sde)(U)
    law = NormalDist(-1.2, 1.2)
    exact = torch.tensor([math.exp(law.inv_cdf(float(u))) for u in U], dtype=torch.float64)
    assert torch.allclose(t, exact.clamp(0.002, 80), rtol=1e-6)
    assert torch.equal(factor, torch.ones(400).double())
    ends, _ = TIME_SAMPLERS.build("log_normal(std=9.)", sde)(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.allclose(ends, torch.tensor([0.002, 80.0]).double(), rtol=1e-9)
    # σ = std/m where the data shrink
    vp = SDES.build("vp(t_min=1e-6)")
    t, _ = TIME_SAMPLERS.build("log_normal(mean=0., std=0.5)", vp)(U)
    m, std = vp.marginal_coeffs(t)
    law = NormalDist(0.0, 0.5)
    exact = torch.tensor([law.inv_cdf(float(u)) for u in U], dtype=torch.float64)
    assert torch.allclose(torch.log(std / m), exact, atol=1e-4)


def test_strata_are_those_of_the_whole_batch_where_places_are_known():
    times = TIME_SAMPLERS.build("stratified", SDES.build("vp(t_min=0.)"))
    alone, _ = times.draw(SampleNoise(3, range(4)), torch.empty(4))
    assert (alone * 4).long().tolist() == [0, 1, 2, 3]
    part, _ = times.draw(SampleNoise(3, range(4), places=torch.tensor([5, 0, 7, 2]), size=8), torch.empty(4))
    assert (part * 8).long().tolist() == [5, 0, 7, 2]
    u = SampleNoise(3, range(4)).uniform(torch.empty(4))
    assert torch.allclose(alone * 4 % 1, u, atol=1e-6) and torch.allclose(part * 8 % 1, u, atol=1e-6)


@pytest.mark.parametrize("name", ["uniform", "stratified", "importance", "mixed", "log_normal"])
def test_an_interval_of_ones_own(name):
    sde = SDES.build("vp")
    t, _ = TIME_SAMPLERS.get(name)(sde, t_min=0.2)(U)
    assert 0.2 <= float(t.min()) < 0.25 and (0.65 if name == "log_normal" else 0.99) < float(t.max()) <= 1
    for wrong in (-0.1, 1.0, 2.0):
        with pytest.raises(ValueError, match=r"t_min in \[0, 1\)"):
            TIME_SAMPLERS.get(name)(sde, t_min=wrong)


def test_an_infinite_log_snr_is_refused():
    sde = SDES.build("vp")
    low, high = log_snr_ends(sde, 1e-3)
    assert low < 0 < high and math.isfinite(low) and math.isfinite(high)
    for name in ("importance", "mixed"):
        with pytest.raises(ValueError, match="finite log-SNR at both ends; at t_min = 0"):
            TIME_SAMPLERS.get(name)(sde, t_min=0.0)(U)


def test_times_by_log_snr_reach_down_to_zero_where_the_data_are_noisy_there():
    """In VE log σ is linear in t: uniform in log-SNR, which rises with u, is uniform in t, to t_min = 0."""
    sde = SDES.build("ve")
    t, factor = TIME_SAMPLERS.get("importance")(sde, t_min=0.0)(U)
    assert torch.allclose(t, 1 - U, atol=1e-9) and torch.allclose(factor, torch.ones(400).double())
    ends, _ = TIME_SAMPLERS.get("importance")(sde, t_min=0.0)(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.allclose(ends, torch.tensor([1.0, 0.0]).double(), atol=1e-9)
