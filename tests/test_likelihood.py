"""Likelihoods against closed forms, against the published code's numbers, and against the conventions of bits/dim."""

import json
import math

import numpy as np
import pytest
import torch

from sde_score.likelihood import TRACES, bits_per_dim, log_likelihood, summarize
from sde_score.sdes import SDES, VPSDE
from sde_score.solvers import Status
from sde_score.tensors import GeneratorNoise, SampleNoise, expand_like
from sde_score.testing import Gaussian, GaussianMixture, OrnsteinUhlenbeck

NAMES = ["ve", "vp", "subvp", "cosine", "edm"]


def law_of(dim: int, kind: str) -> GaussianMixture:
    """A Gaussian of full covariance, or two modes; both centred, so that the prior is the law at T up to 1e-4 nats
    per dimension."""
    generator = torch.Generator().manual_seed(dim)
    if kind == "gaussian":
        root = torch.randn(dim, dim, dtype=torch.float64, generator=generator) / dim**0.5
        return GaussianMixture(
            [1.0], torch.zeros(1, dim), covs=(root @ root.T + 0.1 * torch.eye(dim, dtype=torch.float64))[None]
        )
    means = torch.randn(1, dim, dtype=torch.float64, generator=generator)
    means = 0.6 * means / means.norm()
    return GaussianMixture([0.5, 0.5], torch.cat([means, -means]), stds=[0.4, 0.3])


def truth(law, sde, x):
    return law.log_prob_t(sde, x.double(), torch.full((len(x),), sde.t_min, dtype=torch.float64))


@pytest.mark.parametrize("solver", ["dopri5", "scipy"])
@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("dim", [2, 64])
@pytest.mark.parametrize("name", NAMES)
def test_exact_trace_meets_the_truth(name, dim, kind, solver):
    """Within 1e-3 nats per dimension, on the mean over the samples and for what is the solver's part of each."""
    sde, law = SDES.build(name), law_of(dim, kind)
    x = law.sample(16, generator=torch.Generator().manual_seed(1))
    result = log_likelihood(sde, law.score_fn(sde), x, solver=solver, trace="exact(chunk=32)")
    error = (result.logp - truth(law, sde, x)) / dim
    assert error.mean().abs() < 1e-3
    # the prior stands for the law at T: that part of a sample's error is the model's, not the solver's
    end = torch.full((len(x),), sde.T, dtype=torch.float64)
    of_the_prior = (result.prior_logp - law.log_prob_t(sde, result.z.double(), end)) / dim
    assert (error - of_the_prior).abs().max() < 5e-4
    assert (result.trace_std_error == 0).all() and (result.status == Status.DONE).all()


@pytest.mark.parametrize("name, power", [("ve", 1), ("vp", 2), ("subvp", 2), ("cosine", 2), ("edm", 3)])
def test_adams_with_the_documented_power(name, power):
    """In 110 evaluations to 5e-5 nats per dimension of a tight solution (measured: 1e-5 at most)."""
    sde, law = SDES.build(name), law_of(8, "mixture")
    x = law.sample(16, generator=torch.Generator().manual_seed(1)).double()
    tight, adams = (
        log_likelihood(sde, law.score_fn(sde), x, solver=solver, trace="exact")
        for solver in ("dopri5(rtol=1e-9, atol=1e-9)", f"adams(steps=100, power={power})")
    )
    assert adams.calls == 110
    assert (adams.logp - tight.logp).abs().max() / 8 < 5e-5


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("solver", ["dopri5", "scipy"])
def test_hutchinson_is_unbiased(kind, solver):
    """Against the exact trace: the mean over 48 samples within 3 standard errors, and each standard error in the
    right size."""
    dim, probes = 8, 16
    sde, law = VPSDE(), law_of(dim, "gaussian")
    x = law.sample(48, generator=torch.Generator().manual_seed(2))
    exact = log_likelihood(sde, law.score_fn(sde), x, solver=solver, trace="exact").logp
    result = log_likelihood(
        sde,
        law.score_fn(sde),
        x,
        solver=solver,
        trace=f"hutchinson(probes={probes}, kind='{kind}')",
        noise=SampleNoise(3, range(48)),
    )
    gap = result.logp - exact
    assert abs(summarize(gap).mean) < 3 * summarize(gap).std_error + 1e-4
    # mean of (gap / s.e.)² is about 1 + 2/(probes − 3); five standard errors of a mean of 48 such values allow a
    # factor 2
    assert 0.5 < float((gap / result.trace_std_error).square().mean()) < 2.2


def test_standard_error_falls_with_the_root_of_the_probes():
    sde, law = VPSDE(), law_of(8, "gaussian")
    x = law.sample(32, generator=torch.Generator().manual_seed(4))
    errors = [
        log_likelihood(
            sde, law.score_fn(sde), x, trace=f"hutchinson(probes={k})", noise=SampleNoise(5, range(32))
        ).trace_std_error.mean()
        for k in (8, 128)
    ]
    assert 3 < float(errors[0] / errors[1]) < 5  # √16 = 4
    assert log_likelihood(sde, law.score_fn(sde), x).trace_std_error is None


def test_a_value_does_not_depend_on_companions_or_chunks():
    sde, law = VPSDE(), law_of(8, "mixture")
    x = law.sample(6, generator=torch.Generator().manual_seed(6))
    whole = log_likelihood(sde, law.score_fn(sde), x, noise=SampleNoise(7, range(6)))
    for part in (range(0, 1), range(1, 6)):
        some = log_likelihood(sde, law.score_fn(sde), x[part.start : part.stop], noise=SampleNoise(7, part))
        assert torch.allclose(some.logp, whole.logp[part.start : part.stop], atol=1e-5)
        assert torch.equal(some.nfe, whole.nfe[part.start : part.stop])


@pytest.mark.parametrize("kind", ["ve", "vp", "subvp"])
@pytest.mark.parametrize("solver", ["scipy(per_sample=False)", "scipy", "dopri5(control='batch')", "dopri5"])
def test_published_numbers(golden_dir, kind, solver):
    data = np.load(golden_dir / f"likelihood_{kind}.npz")
    meta = json.loads(str(data["meta_json"]))
    options = {} if kind == "ve" else {"published_rounding": True}
    sde = SDES.get(kind)(**meta["params"], **options)
    law = Gaussian(torch.from_numpy(data["mu"])[0], meta["data_var"])
    x, dim = torch.from_numpy(data["x"]), 48
    result = log_likelihood(
        sde, law.score_fn(sde), x, solver=solver, probes=torch.from_numpy(data["epsilon"]), t_min=meta["eps"]
    )
    log_det = dim * math.log(2) if meta["centered"] else 0.0
    bpd = bits_per_dim(result.logp, dim=dim, levels=256, log_det=log_det, dequantisation="uniform")
    as_published = solver == "scipy(per_sample=False)"
    published, exact = torch.from_numpy(data["bpd"]), torch.from_numpy(data["exact_bpd_given_epsilon"])
    size = float(published.abs().max())
    # the published value itself is 3e-5 from the exact one (solver tolerance)
    assert float((bpd - exact).abs().max()) < 1e-4
    assert float((bpd - published).abs().max()) / size < (1e-5 if as_published else 1e-4)
    assert float((result.z - torch.from_numpy(data["z"])).abs().max()) < (1e-5 if as_published else 1e-3)
    if as_published:
        assert result.calls == meta["reported_nfe"]  # and half of the published network calls: one forward pass each
    scaler_inverse = (lambda x: (x + 1) / 2) if meta["centered"] else (lambda x: x)
    assert 7.0 - scaler_inverse(-1.0) == meta["offset"]  # the published constant, right for 8 bits
    assert torch.allclose(bpd, -result.logp / (dim * math.log(2)) + meta["offset"], atol=1e-5)


def test_one_forward_pass_for_drift_and_divergence():
    sde, law = VPSDE(), law_of(4, "mixture")
    score, calls = law.score_fn(sde), []

    def counted(x, t):
        calls.append(1)
        return score(x, t)

    result = log_likelihood(sde, counted, law.sample(3), trace="hutchinson(probes=3)")
    assert len(calls) == result.calls == result.nfe.max()


@pytest.mark.parametrize("shape", [(5,), (2, 4), (3, 4, 5), (2, 2, 3, 2)])
@pytest.mark.parametrize("trace", ["exact(chunk=1)", "exact(chunk=7)", "hutchinson"])
def test_any_rank_and_chunk(shape, trace):
    """An isotropic Gaussian: a Rademacher probe is exact there."""
    law, sde = Gaussian(torch.full(shape, 0.2), 0.3), SDES.build("subvp")
    x = law.sample(3)
    result = log_likelihood(sde, law.score_fn(sde), x, trace=trace)
    assert result.logp.shape == (3,) and result.z.shape == x.shape
    assert (result.logp - truth(law, sde, x)).abs().max() / math.prod(shape) < 3e-3


def test_an_sde_given_by_f_and_g_only():
    sde, law = OrnsteinUhlenbeck(T=8.0), law_of(2, "mixture")
    x = law.sample(8, dtype=torch.float64)
    assert (log_likelihood(sde, law.score_fn(sde), x, trace="exact").logp - truth(law, sde, x)).abs().max() < 2e-3


def test_density_integrates_to_one():
    """Over a grid in two dimensions, an independent check of the normalisation."""
    sde, law = VPSDE(), law_of(2, "mixture")
    axis = torch.linspace(-3, 3, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    logp = log_likelihood(sde, law.score_fn(sde), grid, trace="exact", solver="dopri5(rtol=1e-4, atol=1e-4)").logp
    assert abs(float(logp.exp().sum()) * float(axis[1] - axis[0]) ** 2 - 1) < 2e-3


def test_gradients_reach_the_data():
    """∇ log p by the ODE is the score at t_min."""
    sde, law = VPSDE(t_min=1e-3), law_of(2, "mixture")
    x = law.sample(4, dtype=torch.float64).requires_grad_(True)
    for solver in ("dopri5", "rk4(steps=200)"):
        (gradient,) = torch.autograd.grad(
            log_likelihood(sde, law.score_fn(sde), x, trace="exact", solver=solver).logp.sum(), x
        )
        score = law.score_fn(sde)(x, torch.full((4,), 1e-3, dtype=torch.float64))
        assert torch.allclose(gradient, score.detach(), atol=3e-2, rtol=3e-3)
    assert not log_likelihood(sde, law.score_fn(sde), x, differentiable=False).logp.requires_grad


def test_works_under_no_grad_and_inference_mode():
    sde, law = VPSDE(), law_of(2, "mixture")
    x = law.sample(4)
    expected = log_likelihood(sde, law.score_fn(sde), x, trace="exact").logp
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(log_likelihood(sde, law.score_fn(sde), x.clone(), trace="exact").logp, expected)


def test_a_failed_sample_is_nan_and_spoils_no_other():
    sde, law = VPSDE(), law_of(2, "mixture")
    score = law.score_fn(sde)
    x = law.sample(3)

    def broken(x, t):
        value = score(x, t)
        return torch.where(((torch.arange(len(x)) == 1) & (t > 0.5))[:, None], torch.nan, value)

    result = log_likelihood(sde, broken, x, trace="exact", solver="dopri5(on_failure='return')")
    assert torch.isnan(result.logp[1]) and result.status.tolist() == [Status.DONE, Status.NOT_FINITE, Status.DONE]
    assert torch.equal(result.logp[[0, 2]], log_likelihood(sde, score, x, trace="exact").logp[[0, 2]])
    with pytest.raises(FloatingPointError, match="sample 1"):
        log_likelihood(sde, broken, x, trace="exact")
    with pytest.raises(FloatingPointError):
        summarize(result.logp)


# --- bits per dimension ---------------------------------------------------------------------------------------------


def test_bits_of_the_uniform_law_are_the_bits_of_the_levels():
    """The uniform density on the scaled cube codes every level with log2(levels) bits, whatever the scaling."""
    dim = 12
    for levels in (2, 17, 256):
        for width in (1.0, 2.0, 0.5):
            logp = torch.full((3,), -dim * math.log(width))
            bits = bits_per_dim(logp, dim=dim, levels=levels, log_det=dim * math.log(width), dequantisation="uniform")
            assert torch.allclose(bits, torch.tensor(math.log2(levels)), atol=1e-6)


@pytest.mark.parametrize(
    "missing, words",
    [
        ({"levels": None}, "levels"),
        ({"log_det": None}, "log_det"),
        ({"dequantisation": None}, "Declare"),
        ({"levels": 1}, "at least 2"),
    ],
)
def test_bits_need_their_declarations(missing, words):
    given = {"dim": 4, "levels": 256, "log_det": 0.0, "dequantisation": "uniform", **missing}
    with pytest.raises(ValueError, match=words):
        bits_per_dim(torch.zeros(2), **given)


def test_summary():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    summary = summarize(values)
    assert (
        summary.mean == 2.5
        and summary.n == 4
        and math.isclose(summary.std_error, values.std().item() / 2, rel_tol=1e-6)
    )
    assert math.isnan(summarize(values[:1]).std_error)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors_say_what_to_write():
    sde, law = VPSDE(), law_of(2, "mixture")
    score, x = law.score_fn(sde), law.sample(2)
    cases = [
        (lambda: log_likelihood(sde, torch.no_grad()(score), x), "Remove torch.no_grad"),
        (lambda: log_likelihood(sde, lambda x, t: score(x, t).detach(), x), "detach"),
        (lambda: log_likelihood(sde, lambda x, t: score(x, t)[:, :1], x), "must be equal"),
        (lambda: log_likelihood(sde, score, x[:, 0]), "x\\[:, None\\]"),
        (lambda: log_likelihood(sde, score, x.to(torch.uint8)), "Dequantise"),
        (lambda: log_likelihood(sde, score, x * math.inf), "not finite"),
        (lambda: log_likelihood(sde, score, x, t_min=1.5), "t_min"),
        (lambda: log_likelihood(sde, score, x, trace="hutchinsen"), "Did you mean 'hutchinson'"),
        (lambda: log_likelihood(sde, score, x, trace="hutchinson(kind='normal')"), "rademacher"),
        (lambda: log_likelihood(sde, score, x, probes=torch.ones(3, 2)), "probes"),
        (lambda: TRACES.build("exact(chunk=0)"), "at least 1"),
    ]
    for call, words in cases:
        with pytest.raises((ValueError, TypeError, FloatingPointError), match=words):
            call()


def test_the_standard_error_over_probes_is_that_of_a_mean():
    """Its square is, in the mean, the variance of the estimate: unbiased (K − 1), and for the mean (K), not for one."""
    sde = SDES.build("vp")

    def score(x, t):  # a divergence that probes see differently
        m, std = (expand_like(c, x) for c in sde.marginal_coeffs(t))
        return -x / (0.25 * m**2 + std**2) + 0.3 * torch.sin(x @ MIX.to(x))

    x = torch.full((3000, 3), 0.3, dtype=torch.float64)
    noise = GeneratorNoise(torch.Generator().manual_seed(0))
    result = log_likelihood(sde, score, x, solver="heun(steps=20, power=2)", trace="hutchinson(probes=3)", noise=noise)
    # 3000 independent estimates: s.e. of a variance 2.6 %, of the mean of squared errors about 2 %
    ratio = float(result.trace_std_error.square().mean() / result.logp.var())
    assert abs(ratio - 1) < 0.17
    one = log_likelihood(sde, score, x[:2], solver="heun(steps=5)", trace="hutchinson(probes=1)")
    exact = log_likelihood(sde, score, x[:2], solver="heun(steps=5)", trace="exact")
    assert one.trace_std_error is None and torch.equal(exact.trace_std_error, torch.zeros(2, dtype=torch.float64))


MIX = torch.tensor([[0.2, 1.0, -0.5], [0.7, -0.3, 0.9], [-1.1, 0.4, 0.1]])
