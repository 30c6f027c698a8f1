"""Samplers: seeds, counting, orders of convergence, what they refuse, what they report."""

import math

import pytest
import torch

from sde_score.sampling import (
    SAMPLERS,
    ODESampler,
    PCSampler,
    Progress,
    PublishedSampler,
    SDESampler,
    Trajectory,
    make_sampler,
    make_times,
)
from sde_score.sampling.times import TIMES
from sde_score.sdes import SDE, SDES, GaussianPathSDE
from sde_score.tensors import GeneratorNoise, SampleNoise, expand_like

MU, VAR = 0.4, 0.25


def gaussian_score(sde):
    def score(x, t):
        m, std = (expand_like(c, x) for c in sde.marginal_coeffs(t))
        return -(x - m * MU) / (m**2 * VAR + std**2)

    return score


def coupled_score(sde):
    """A score that mixes the dimensions of a sample, so that mistakes in shapes show."""
    base = gaussian_score(sde)
    return lambda x, t: base(x, t) + 0.1 * torch.tanh(x.flip(-1))


ALL = {
    "pc": lambda sde: PCSampler(sde, "reverse_diffusion", "langevin(snr=0.1, norms='expected')", steps=20),
    "ancestral": lambda sde: PCSampler(sde, "ancestral_sampling", "ald(snr=0.1)", steps=20),
    "ode": lambda sde: ODESampler(sde, "dopri5(rtol=1e-4, atol=1e-4)"),
    "scipy": lambda sde: ODESampler(sde, "scipy(rtol=1e-4, atol=1e-4)"),
    "sde": lambda sde: SDESampler(sde, "srk", steps=20),
    "sde adaptive": lambda sde: SDESampler(sde, "srk", steps=8, adaptive=True, rtol=1e-1, atol=1e-1),
}


@pytest.mark.parametrize("name", ALL)
def test_sample_i_depends_on_seed_and_i_only(name):
    sde = SDES.build("vp(t_min=1e-2)")
    sampler, total = ALL[name](sde), 6

    def draw(batch):
        parts = []
        for start in range(0, total, batch):
            members = range(start, min(start + batch, total))
            noise = SampleNoise(3, members)
            parts.append(
                sampler(coupled_score(sde), sde.prior_sampling((len(members), 2, 3), noise=noise), noise=noise).x
            )
        return torch.cat(parts)

    whole = draw(total)
    for batch in (1, 3):
        assert torch.allclose(draw(batch), whole, atol=2e-5), batch


@pytest.mark.parametrize("name", ["pc", "ode"])
def test_the_same_image_for_batches_of_1_7_and_64(name):
    sde = SDES.build("vp(t_min=1e-2)")
    sampler = ALL[name](sde)

    def draw(batch):
        parts = []
        for start in range(0, 64, batch):
            noise = SampleNoise(3, range(start, min(start + batch, 64)))
            x_T = sde.prior_sampling((len(noise.generators), 1, 4, 4), noise=noise)
            parts.append(sampler(coupled_score(sde), x_T, noise=noise).x)
        return torch.cat(parts)

    whole = draw(64)
    for batch in (1, 7):
        assert torch.allclose(draw(batch), whole, atol=2e-5)


def test_published_langevin_rule_couples_the_batch_and_says_so():
    sde = SDES.build("vp")
    coupled = PCSampler(sde, "none", "langevin", steps=3)
    assert coupled.corrector.batch_coupled
    assert not PCSampler(sde, "none", "langevin(norms='expected')", steps=3).corrector.batch_coupled
    x = torch.randn(2, 4)
    louder = x * torch.tensor([[1.0], [30.0]])
    first = coupled(gaussian_score(sde), x, noise=SampleNoise(0, range(2))).x[0]
    assert not torch.allclose(coupled(gaussian_score(sde), louder, noise=SampleNoise(0, range(2))).x[0], first)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["ve(sigma_max=8.)", "subvp", "edm(T=10.)", "cosine"])
def test_gaussian_law(name, kind):
    # 1500 samples: s.e. of the mean 0.5/√1500 = 0.013, of the std 1.8 %; bounds at five of each plus discretisation
    sde = SDES.build(kind)
    if name == "sde adaptive":
        pytest.skip("one sample at a time: its law is that of 'sde', its independence is tested above")
    # dimensions are independent too; paths cost time
    shape = (15, 100) if name == "sde" else (100, 15) if name == "scipy" else (1500, 1)
    noise = GeneratorNoise(torch.Generator().manual_seed(5))
    sampler = (
        ALL[name](sde)
        if "ode" in name or name == "scipy"
        else {
            "pc": PCSampler(
                sde, "reverse_diffusion", "langevin(snr=0.1, norms='expected')", steps=150, times="log_snr"
            ),
            "ancestral": PCSampler(sde, "ancestral_sampling", "ald(snr=0.1)", steps=150, times="log_snr"),
            "sde": SDESampler(sde, "srk", steps=100, t_min=0.01 * sde.T),
        }[name]
    )
    x = sampler(gaussian_score(sde), sde.prior_sampling(shape, noise=noise), noise=noise).x
    assert abs(float(x.mean()) - MU) < 0.09
    assert abs(float(x.std()) / math.sqrt(VAR) - 1) < 0.11


def final_error(make, sde, steps):
    # x_T and the noise are fixed; the exact flow of a Gaussian is affine
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    t_min = 0.01
    m, std = sde.marginal_coeffs(torch.tensor([t_min, sde.T], dtype=torch.float64))
    width = torch.sqrt(m**2 * VAR + std**2)
    exact = m[0] * MU + (x_T - m[1] * MU) * width[0] / width[1]
    return float((make(sde, steps, t_min)(gaussian_score(sde), x_T).x - exact).abs().max())


@pytest.mark.parametrize(
    "predictor,order", [("euler_maruyama", 1), ("reverse_diffusion", 1), ("ancestral_sampling", 1)]
)
def test_convergence_order_of_the_flow(predictor, order):
    def make(sde, steps, t_min):
        return PCSampler(sde, f"{predictor}(eta=0.)", "none", steps=steps, t_min=t_min, denoise="none")

    for kind in ("vp", "ve(sigma_max=5.)"):
        errors = [final_error(make, SDES.build(kind), n) for n in (100, 200, 400)]
        slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
        assert all(abs(s - order) < 0.15 for s in slopes), (kind, errors)


def test_brownian_path_does_not_change_with_the_step():
    sde = SDES.build("vp(beta_max=8.)")
    x_T = torch.randn(3, 2, dtype=torch.float64)

    def run(steps):
        return SDESampler(sde, "euler", steps=steps, t_min=0.02, denoise="none")(
            gaussian_score(sde), x_T, noise=SampleNoise(1, range(3))
        ).x

    reference = run(640)
    errors = [float((run(n) - reference).norm()) for n in (20, 160)]
    assert errors[0] < 0.5  # the same path, or the difference would be of the order of the samples, √6 · 0.5
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize("name", TIMES.names())
@pytest.mark.parametrize("kind", ["vp", "ve", "edm"])
def test_grids_fall_from_T_to_t_min_without_gaps(name, kind):
    sde = SDES.build(kind)
    grid = make_times(name, sde, steps=17, t_min=sde.t_min)
    assert grid.shape == (17, 2) and grid[0, 0] == sde.T
    assert (grid[:, 0] > grid[:, 1]).all()
    assert torch.equal(grid[1:, 0], grid[:-1, 1]) and grid[-1, 1] == sde.t_min


def test_nfe_is_counted():
    sde = SDES.build("vp")
    x = torch.randn(3, 2)
    calls = []

    def score(x, t):
        calls.append(len(x))
        return gaussian_score(sde)(x, t)

    for sampler in (
        PCSampler(sde, "euler_maruyama", "ald(n_steps=2)", steps=7),
        PCSampler(sde, "none", "ald", steps=7, denoise="none"),
        ODESampler(sde, "rk4(steps=5)"),
        SDESampler(sde, "euler", steps=9, t_min=0.1),
        SDESampler(sde, "srk", steps=9, t_min=0.1, denoise="none"),
        PublishedSampler(sde, "ancestral_sampling", "langevin(n_steps=2)", steps=30),
    ):
        calls.clear()
        assert sampler(score, x).nfe == len(calls)


def test_trajectory_and_callback():
    sde, trajectory = SDES.build("vp"), Trajectory(frames=5)
    PCSampler(sde, "euler_maruyama", steps=20)(gaussian_score(sde), torch.randn(3, 2), callback=trajectory)
    assert trajectory.states.shape == (5, 3, 2)
    assert trajectory.times == sorted(trajectory.times, reverse=True)
    trajectory = Trajectory(frames=4)
    ODESampler(sde)(gaussian_score(sde), torch.randn(3, 2), callback=trajectory)
    assert trajectory.states.shape[1:] == (3, 2) and len(trajectory.states) == len(trajectory.times) <= 4


@pytest.mark.parametrize("steps", [3, 40, 100, 1000])
def test_a_trajectory_of_unknown_length_shows_the_whole_run(steps):
    trajectory = Trajectory(frames=5)
    for k in range(1, steps + 1):
        x = torch.full((1, 2), float(k))
        trajectory(Progress(k, None, 1 - k / steps, x, x, k))
    shown = trajectory.states[:, 0, 0].tolist()
    assert shown[-1] == steps and len(shown) == min(5, steps)
    gaps = [b - a for a, b in zip([0.0, *shown], shown)]
    assert max(gaps) <= 0.45 * steps + 1, shown  # even parts would be a fifth each


def test_encode_inverts_sampling():
    sde = SDES.build("vp")
    sampler = ODESampler(sde, "dopri5(rtol=1e-8, atol=1e-8)", denoise="none")
    x = torch.randn(5, 3, dtype=torch.float64) * 0.5 + MU
    latent = sampler.encode(gaussian_score(sde), x).x
    assert torch.allclose(sampler(gaussian_score(sde), latent).x, x, atol=1e-5)


def test_tweedie_step_is_the_posterior_mean():
    sde = SDES.build("vp")
    x, t = torch.randn(6, 2, dtype=torch.float64), torch.full((6,), 0.3, dtype=torch.float64)
    m, std = sde.marginal_coeffs(t[:1])
    exact = (MU * std**2 + m * VAR * x) / (m**2 * VAR + std**2)  # Gaussian conditioning
    assert torch.allclose(sde.denoise(gaussian_score(sde), x, t), exact)


def test_nan_stops_the_run_with_step_time_and_sample():
    sde = SDES.build("vp")

    def score(x, t):
        out = gaussian_score(sde)(x, t)
        out[1] = torch.where(t[1] < 0.5, torch.nan, out[1])
        return out

    with pytest.raises(FloatingPointError, match=r"step 1\d, t = 0\.4.*samples \[1\]"):
        PCSampler(sde, "euler_maruyama", steps=20)(score, torch.randn(3, 2))
    with pytest.raises(FloatingPointError, match="exactly zero"):
        PCSampler(sde, "none", "langevin", steps=2)(lambda x, t: torch.zeros_like(x), torch.randn(3, 2))


def test_refusals():
    sde = SDES.build("vp")
    with pytest.raises(ValueError, match="Did you mean 'reverse_diffusion'"):
        PCSampler(sde, "reverse_difusion")
    with pytest.raises(ValueError, match="no argument 'snt'. Did you mean 'snr'"):
        PCSampler(sde, "euler_maruyama", "langevin(snt=0.1)")
    with pytest.raises(ValueError, match="at least one step"):
        PCSampler(sde, steps=0)
    with pytest.raises(ValueError, match="more than beta_max"):
        PublishedSampler(sde, "reverse_diffusion", steps=10)
    with pytest.raises(ValueError, match="no published discrete chain"):
        PublishedSampler(SDES.build("subvp"), "ancestral_sampling", steps=100)(gaussian_score(sde), torch.randn(2, 2))
    with pytest.raises(ValueError, match="shape"):
        PCSampler(sde, steps=2)(lambda x, t: x[:, :1], torch.randn(3, 2))
    with pytest.raises(ValueError, match=r"\(B, \*\)"):
        PCSampler(sde, steps=2)(gaussian_score(sde), torch.randn(3))
    assert set(SAMPLERS.names()) >= {"pc", "ode", "sde"}
    assert isinstance(make_sampler("pc", sde, steps=3, predictor="euler_maruyama", solver="dopri5"), PCSampler)


class Bistable(SDE):
    """A drift that is not linear in x: dx = −tanh(x) dt + dw."""

    def drift(self, x, t):
        return -torch.tanh(x)

    def diffusion(self, x, t):
        return torch.ones_like(expand_like(t, x))

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return noise(torch.empty(shape, device=device, dtype=dtype))

    def prior_logp(self, x):
        return -0.5 * (x**2).flatten(1).sum(1)


MIX = torch.tensor([[2.0, 0.0], [1.0, 1.0]])  # not orthogonal: Gᵀ, G² and |G|² are all other matrices than G Gᵀ


class Correlated(SDE):
    """dx = A dw: matrix noise, given by the two hooks only. Data N(0, 0.25 I), so x_t is N(0, 0.25 I + t A Aᵀ)."""

    def drift(self, x, t):
        return torch.zeros_like(x)

    def diffusion(self, x, t):
        raise NotImplementedError("a matrix")

    def apply_diffusion(self, x, t, v):
        return v @ MIX.T

    def apply_diffusion_sq(self, x, t, v):
        return v @ (MIX @ MIX.T)

    def covariance(self, t):
        return 0.25 * torch.eye(2) + t[:, None, None] * (MIX @ MIX.T)

    def prior_sampling(self, shape, *, noise=torch.randn_like, device=None, dtype=None):
        return noise(torch.empty(shape)) @ torch.linalg.cholesky(self.covariance(torch.ones(1))[0]).T

    def prior_logp(self, x):
        return torch.distributions.MultivariateNormal(torch.zeros(2), self.covariance(torch.ones(1))[0]).log_prob(x)


def correlated_score(x, t):
    return -torch.linalg.solve(Correlated().covariance(t), x)


class Path(GaussianPathSDE):
    """A path of one's own: only alpha and sigma."""

    def alpha(self, t):
        return torch.exp(-2 * t**2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-4 * t**2))


@pytest.mark.parametrize("predictor", ["euler_maruyama", "reverse_diffusion", "ancestral_sampling"])
def test_a_derived_gaussian_path_samples(predictor):
    # 2000 samples: s.e. 0.011 (mean), 1.6 % (std); bounds at five of them plus discretisation
    sde, noise = Path(t_min=1e-3), GeneratorNoise(torch.Generator().manual_seed(0))
    x_T = 1.0 * sde.prior_sampling((2000, 1), noise=noise)
    x = PCSampler(sde, predictor, "none", steps=300)(gaussian_score(sde), x_T, noise=noise).x
    # the mean at T is alpha(T) MU = 0.05, which the prior leaves out: a shift of up to that size, shrunk by the way
    # back
    assert abs(float(x.mean()) - MU) < 0.09 and abs(float(x.std()) / math.sqrt(VAR) - 1) < 0.1


def test_gaussian_paths_that_no_sde_has_are_refused():
    class Vanishing(Path):
        def alpha(self, t):
            return 1 - t

    class Rising(Path):
        def sigma(self, t):
            return torch.sin(2.5 * t) + 1e-3

        def alpha(self, t):
            return 1.0

    class Shifted(Path):
        def alpha(self, t):
            return 0.5 - 0.1 * t

    for cls, message in ((Vanishing, "End earlier"), (Rising, "rises at"), (Shifted, "must be 1")):
        with pytest.raises(ValueError, match=message):
            cls().drift_coeff(torch.rand(3))


def test_general_sdes_sample_with_euler_maruyama_and_the_ode_and_refuse_the_rest():
    sde = Bistable(t_min=0.0)
    x = torch.randn(4, 2)
    assert PCSampler(sde, "euler_maruyama", "langevin", steps=5, denoise="mean")(lambda x, t: -x, x).x.shape == x.shape
    assert ODESampler(sde, denoise="none")(lambda x, t: -x, x).x.shape == x.shape
    for predictor in ("reverse_diffusion", "ancestral_sampling"):
        with pytest.raises(NotImplementedError, match="euler_maruyama"):
            PCSampler(sde, predictor, steps=5, denoise="mean")(lambda x, t: -x, x)
    with pytest.raises(ValueError, match="denoise='mean'"):
        PCSampler(sde, "euler_maruyama", steps=5)
    for grid in ("karras", "log_snr"):
        with pytest.raises(NotImplementedError, match="times=uniform"):
            PCSampler(sde, "euler_maruyama", steps=5, times=grid, denoise="mean")


def test_matrix_noise_through_the_hooks():
    # 4000 samples: s.e. of a covariance 0.0056; bound at five of it plus 0.02 of discretisation
    sde, noise = Correlated(), GeneratorNoise(torch.Generator().manual_seed(0))
    x_T = sde.prior_sampling((4000, 2), noise=noise)
    stochastic = PCSampler(sde, "euler_maruyama", steps=400, denoise="mean")(correlated_score, x_T, noise=noise).x
    flow = ODESampler(sde, "dopri5(rtol=1e-4, atol=1e-4)", denoise="none")(correlated_score, x_T).x
    for x in (stochastic, flow):
        assert float((torch.cov(x.T) - 0.25 * torch.eye(2)).abs().max()) < 0.05
    for build in (
        lambda: PCSampler(sde, "reverse_diffusion", denoise="mean"),
        lambda: PCSampler(sde, "ancestral_sampling", denoise="mean"),
        lambda: SDESampler(sde, denoise="none"),
    ):
        with pytest.raises(ValueError, match="matrix"):
            build()


class Multiplicative(Bistable):
    """Noise that depends on x."""

    def diffusion(self, x, t):
        return torch.sqrt(1 + x**2)


def test_stratonovich_solvers_refuse_noise_that_depends_on_x():
    with pytest.raises(ValueError, match="Stratonovich"):
        SDESampler(Multiplicative(), "heun", denoise="none")
    assert SDESampler(Multiplicative(), "srk", denoise="none").method == "srk"


def test_times_by_noise_level_need_a_finite_one():
    for spec in ("log_snr", "power(rho=-1.)"):
        with pytest.raises(ValueError, match="t_min|rho"):
            make_times(spec, SDES.build("vp"), steps=5, t_min=0.0)


def test_an_ode_that_is_not_solved_gives_no_samples():
    sde = SDES.build("vp")
    with pytest.raises(RuntimeError, match="not solved"):
        ODESampler(sde, "dopri5(max_nfe=20, on_failure='return')")(gaussian_score(sde), torch.randn(3, 2))
