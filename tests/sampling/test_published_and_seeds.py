"""Steps of the published chains by hand, paths that a seed names, what callbacks see, and the settings by default."""

import math

import pytest
import torch

from sde_score.sampling import (
    CORRECTORS,
    PREDICTORS,
    SAMPLERS,
    TIMES,
    ODESampler,
    PCSampler,
    Progress,
    ProgressBar,
    PublishedODESampler,
    PublishedSampler,
    SDESampler,
    Trajectory,
    callbacks,
    make_times,
)
from sde_score.sampling.brownian import BrownianPaths, hashed_normals
from sde_score.sampling.published import PUBLISHED_CORRECTORS, PUBLISHED_PREDICTORS
from sde_score.sdes import SDES
from sde_score.tensors import SampleNoise, mix_seed

X, Z = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
N = 50


def score(x, t):
    return torch.cos(x) - t[:, None]


def noise(like):
    return Z


# --- the published chains ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spec", ["vp", "ve", "subvp", "edm(T=2.)"])
def test_published_steps_of_any_eta(spec, eta):
    sde = SDES.build(spec)
    rule = PUBLISHED_PREDICTORS.build(f"euler_maruyama(eta={eta})", sde, N)
    x, x_mean = rule.step(score, X, T, T, noise)
    dt, g = sde.T / N, sde.diffusion_coeff(T)[:, None]
    drift = sde.drift_coeff(T)[:, None] * X - 0.5 * (1 + eta**2) * g**2 * score(X, T)
    assert torch.allclose(x_mean, X - drift * dt)
    assert torch.allclose(x, x_mean + eta * g * math.sqrt(dt) * Z)
    rule = PUBLISHED_PREDICTORS.build(f"reverse_diffusion(eta={eta})", sde, N)
    x, x_mean = rule.step(score, X, T, T, noise)
    shift, scale = sde.chain(N).forward(X, T)
    assert torch.allclose(x_mean, X - shift + 0.5 * (1 + eta**2) * scale**2 * score(X, T))
    assert torch.allclose(x, x_mean + eta * scale * Z)


@pytest.mark.parametrize("spec", ["vp", "ve"])
def test_published_ancestral_and_langevin_steps(spec):
    sde = SDES.build(spec)
    mean, std = sde.chain(N).posterior(score(X, T), X, T)
    x, x_mean = PUBLISHED_PREDICTORS.build("ancestral_sampling", sde, N).step(score, X, T, T, noise)
    assert torch.allclose(x_mean, mean) and torch.allclose(x, mean + std * Z)
    alpha, s = sde.chain(N).langevin_factor(T)[:, None], score(X, T)
    ratio = Z.norm(dim=1).mean() / s.norm(dim=1).mean()
    sizes = {
        "langevin(snr=0.1)": 2 * alpha * (0.1 * ratio) ** 2,
        "ald(snr=0.1)": 2 * alpha * (0.1 * sde.marginal_coeffs(T)[1][:, None]) ** 2,
    }
    for rule, size in sizes.items():
        x, x_mean = PUBLISHED_CORRECTORS.build(rule, sde, N).step(score, X, T, noise)
        assert torch.allclose(x_mean, X + size * s) and torch.allclose(x, x_mean + torch.sqrt(2 * size) * Z)


def test_the_published_ode_ends_with_the_mean_of_a_step_of_the_chain():
    sde = SDES.build("vp(t_min=1e-3)")
    plain, mean, tweedie = (
        PublishedODESampler(sde, "rk4(steps=20)", n=N, denoise=d)(score, X).x for d in ("none", "mean", "tweedie")
    )
    t = torch.full((3,), 1e-3, dtype=torch.float64)
    shift, scale = sde.chain(N).forward(plain, t)
    assert torch.allclose(mean, plain - shift + scale**2 * score(plain, t))
    assert torch.allclose(tweedie, sde.posterior_mean(plain, t, score(plain, t)))
    assert PublishedODESampler(sde).last.n == 1000


def test_the_published_sampler_walks_its_grid():
    """N times from T to t_min, both included; the result is the mean of the last predictor step."""
    sde, seen = SDES.build("vp(t_min=0.1)"), []
    sampler = PublishedSampler(sde, steps=30)
    run = [sampler(score, X, noise=SampleNoise(0, range(3)), callback=seen.append).x]
    assert [p.step for p in seen] == list(range(1, 31)) and {p.steps for p in seen} == {30}
    assert torch.allclose(torch.tensor([p.t for p in seen]), torch.linspace(1, 0.1, 30))
    assert torch.equal(run[0], seen[-1].x_mean) and not torch.equal(run[0], seen[-1].x)
    last = PublishedSampler(sde, steps=30, denoise="none")(score, X, noise=SampleNoise(0, range(3))).x
    assert torch.equal(last, seen[-1].x)
    with pytest.raises(ValueError, match="at least two times"):
        PublishedSampler(sde, steps=1)
    assert PublishedSampler(SDES.build("ve"), steps=2).grid.tolist() == [1.0, pytest.approx(1e-5)]


# --- paths named by seeds ---------------------------------------------------------------------------------------------


def split_mix(word):
    """The finaliser of SplitMix64 on whole numbers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
    return word ^ (word >> 31)


def test_a_seed_names_the_same_normals_for_ever():
    """By another arithmetic: unbounded whole numbers. Places count from 1, nodes from the whole interval's 0."""
    seeds, nodes = [3, 2**62 + 5], [0, 1, 6]
    z = hashed_normals(torch.tensor(seeds), nodes, 2, torch.float64)
    for i, node in enumerate(nodes):
        for j, seed in enumerate(seeds):
            key = split_mix((seed + (node + 1) * 0x9E3779B97F4A7C15) % 2**64)
            for place in (1, 2):
                word = split_mix((key + place * 0xBF58476D1CE4E5B9) % 2**64)
                size = math.sqrt(-2 * math.log(((word >> 33) + 1) / 2**31))
                angle = 2 * math.pi * (word % 2**32) / 2**32
                pair = torch.tensor([size * math.cos(angle), size * math.sin(angle)], dtype=torch.float64)
                assert torch.allclose(z[i, :, j, place - 1], pair, rtol=1e-12)


def test_the_sampler_sde_is_driven_by_the_path_that_its_noise_names():
    """Without a score and a drift x_end = x_T + ∫ g dW, by Euler's sums over the path of three words of 24 bits."""
    sde = SDES.build("ve(sigma_min=0.1, sigma_max=2., t_min=0.1)")
    for dtype in (torch.float64, torch.float32):
        x_T = X.to(dtype)
        x = SDESampler(sde, "euler", steps=6, denoise="none")(
            lambda x, t: torch.zeros_like(x), x_T, noise=SampleNoise(5, range(3))
        ).x
        words = (SampleNoise(5, range(3)).uniform(torch.empty(3, 3)) * 2**24).long().tolist()
        path = BrownianPaths([mix_seed(*row) for row in words], x_T, 0.9)
        exact = x_T
        for k in range(6):
            g = sde.diffusion_coeff(torch.tensor([1 - 0.9 * k / 6], dtype=torch.float64)).to(dtype)
            exact = exact + g * path.increment(0.9 * k / 6, 0.9 * (k + 1) / 6)[0]
        assert torch.allclose(x, exact, rtol=1e-5)


# --- what callbacks see -----------------------------------------------------------------------------------------------


def test_a_trajectory_keeps_evenly_spaced_steps():
    sde, seen, kept, noisy = SDES.build("vp"), [], Trajectory(5), Trajectory(5, mean=False)
    PCSampler(sde, steps=20)(score, X, callback=callbacks(seen.append, None, kept, noisy))
    chosen = [p for p in seen if p.step in (4, 8, 12, 16, 20)]
    assert kept.times == noisy.times == [p.t for p in chosen]
    assert torch.equal(kept.states, torch.stack([p.x_mean for p in chosen]))
    assert torch.equal(noisy.states, torch.stack([p.x for p in chosen]))
    assert callbacks() is None and callbacks(None, None) is None and Trajectory().frames == 12
    with pytest.raises(ValueError, match="recorded nothing yet"):
        kept = Trajectory().states


def test_a_trajectory_of_unknown_length_is_thinned_as_it_grows():
    trajectory = Trajectory(3)
    for k in range(1, 101):
        trajectory(Progress(k, None, float(k), X, X, 0))
        assert len(trajectory.kept) <= 12
    assert len(trajectory.times) == 3 and trajectory.times[-1] > 90


def test_a_bar_lasts_until_the_last_step(capsys):
    bar = ProgressBar("drawing", disable=False)
    for k in (1, 2, 3):
        assert k == 1 or bar.bar.n == k - 1
        bar(Progress(k, 3, 0.5, X, X, 2 * k))
    assert bar.bar is None and "drawing" in capsys.readouterr().err
    bar = ProgressBar(disable=False)
    for k in (1, 5):
        bar(Progress(k, None, 0.25, X, X, 7))
    assert bar.bar.n == 5 and "t=0.25 nfe=7" in bar.bar.postfix  # who knows how many there will be
    bar.close()
    assert bar.bar is None
    bar.close()


def test_the_callback_of_an_ode_sees_the_slowest_sample():
    sde, seen = SDES.build("vp"), []
    ODESampler(sde)(score, X, callback=seen.append)
    times = [p.t for p in seen]
    assert times == sorted(times, reverse=True) and times[-1] == pytest.approx(sde.t_min)
    assert [p.step for p in seen] == list(range(1, len(seen) + 1)) and {p.steps for p in seen} == {None}
    seen.clear()
    ODESampler(sde, "rk4(steps=9)")(score, X, callback=seen.append)
    assert [p.steps for p in seen] == [9] * 9 and [p.nfe for p in seen] == list(range(4, 40, 4))


# --- settings ---------------------------------------------------------------------------------------------------------


def test_components_by_name():
    assert set(SAMPLERS.names()) >= {"pc", "ode", "sde", "published", "published_ode"}
    rules = {"euler_maruyama", "reverse_diffusion", "ancestral_sampling", "none"}
    assert set(PREDICTORS.names()) >= rules and set(PUBLISHED_PREDICTORS.names()) == rules
    assert set(CORRECTORS.names()) >= {"langevin", "ald", "none"} == set(PUBLISHED_CORRECTORS.names())


def test_the_settings_are_the_published_ones_unless_told():
    sde = SDES.build("vp")
    for name in ("euler_maruyama", "reverse_diffusion", "ancestral_sampling"):
        assert PREDICTORS.build(name, sde).eta == PUBLISHED_PREDICTORS.build(name, sde, 50).eta == 1
    for registry, extra in ((CORRECTORS, ()), (PUBLISHED_CORRECTORS, (50,))):
        for name, coupled in (("langevin", True), ("ald", False)):
            corrector = registry.build(name, sde, *extra)
            assert (corrector.snr, corrector.n_steps, corrector.batch_coupled) == (0.16, 1, coupled)
        assert not registry.build("none", sde, *extra).moves and not registry.build("none", sde, *extra).batch_coupled
    assert not CORRECTORS.build("langevin(norms='expected')", sde).batch_coupled
    assert SDESampler(sde).steps == 200 and SDESampler(sde).method == "srk" and not SDESampler(sde).adaptive
    assert SDESampler(sde).eta == 1 and (SDESampler(sde).rtol, SDESampler(sde).atol) == (1e-3, 1e-3)
    assert len(PublishedSampler(sde).grid) == 1000 and PublishedSampler(sde).denoise == "mean"
    assert PCSampler(sde).denoise == ODESampler(sde).denoise == "tweedie"


@pytest.mark.parametrize("name", ["euler_maruyama", "reverse_diffusion", "ancestral_sampling"])
def test_without_noise_none_is_asked_for(name):
    def refuse(like):
        raise AssertionError

    sde = SDES.build("vp")
    for eta in (0.0, 1e-3, 1.0):
        rule = PREDICTORS.build(f"{name}(eta={eta})", sde)
        if eta == 0:
            x, x_mean = rule.step(score, X, T, 0.9 * T, refuse)
            assert torch.equal(x, x_mean)
        else:
            with pytest.raises(AssertionError):
                rule.step(score, X, T, 0.9 * T, refuse)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="eta must lie between 0"):
            PREDICTORS.get(name)(sde, eta=wrong)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"snr": 0.0}, "positive"),
        ({"snr": math.nan}, "positive"),
        ({"n_steps": 0}, "at least 1"),
        ({"n_steps": 1.5}, "whole number"),
    ],
)
def test_wrong_settings_of_langevin_steps(wrong, words):
    with pytest.raises(ValueError, match=words):
        CORRECTORS.get("langevin")(SDES.build("vp"), **wrong)


def test_grids_are_equal_steps_of_what_they_are_named_after():
    sde, t_min = SDES.build("vp"), 0.01
    equal = {
        "uniform": lambda t: t,
        "power": lambda t: t**0.5,
        "power(rho=3.)": lambda t: t ** (1 / 3),
        "log_snr": sde.log_snr,
        "karras": lambda t: torch.exp(-0.5 * sde.log_snr(t)) ** (1 / 7),
        "karras(rho=2.)": lambda t: torch.exp(-0.5 * sde.log_snr(t)) ** 0.5,
    }
    for name, level in equal.items():
        grid = make_times(name, sde, steps=11, t_min=t_min)
        steps = level(torch.cat([grid[:, 0], grid[-1:, 1]])).diff()
        assert torch.allclose(steps, steps.mean().expand(11), rtol=1e-6), name
        assert make_times(name, sde, steps=1, t_min=t_min).tolist() == [[1.0, t_min]]
    assert set(TIMES.names()) == {name.split("(")[0] for name in equal}
    for wrong in (0, -1, 2.5):
        with pytest.raises(ValueError, match="at least one step|whole number"):
            make_times("uniform", sde, steps=wrong, t_min=t_min)
