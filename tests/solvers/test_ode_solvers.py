"""ODE solvers: orders, independence of samples, ends of the interval, and what happens when things go wrong."""

import math

import numpy as np
import pytest
import torch

from sde_score.sdes import SDES
from sde_score.solvers import (
    SOLVERS,
    Adams,
    Euler,
    Heun,
    Midpoint,
    ODEError,
    ODENotFinite,
    RungeKutta4,
    Status,
    solve_ode,
)
from sde_score.solvers.runge_kutta import BOSH3, DOPRI5, EULER, HEUN, HEUN12, MIDPOINT, RK4
from sde_score.testing import ODE_PROBLEMS, Gaussian, check_solver

ADAPTIVE = ["dopri5", "bosh3", "heun12"]
X = torch.tensor([[0.3, 0.7], [0.9, 0.2], [0.5, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize("kind, order", [(Euler, 1), (Midpoint, 2), (Heun, 2), (RungeKutta4, 4), (Adams, 4)])
def test_fixed_step_conformance_and_order(kind, order):
    check_solver(kind, order=order)


@pytest.mark.parametrize("kind, order", [(Heun, 2), (RungeKutta4, 4), (Adams, 4)])
def test_order_with_steps_of_growing_length(kind, order):
    check_solver(lambda steps: kind(steps, power=2), order=order)


def test_power_makes_square_roots_smooth():
    """dx/dt = √t is the polynomial 2u² in u = √t, which order 4 integrates without error, in both directions."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    for t0, t1 in ((0.0, 1.0), (1.0, 0.0)):
        equal, squared = (
            solve_ode(lambda x, t: t[:, None].sqrt(), x, t0, t1, solver=Adams(8, power=power)).x for power in (1, 2)
        )
        exact = (t1 - t0) * 2 / 3
        assert abs(equal - exact) > 1e-4 and abs(squared - exact) < 1e-14


def test_adams_evaluates_once_a_step():
    result = solve_ode(lambda x, t: -x, X, 0.0, 1.0, solver="adams(steps=40)")
    assert result.calls == 40 + 10 and (result.nfe == 50).all() and (result.steps == 40).all()


@pytest.mark.parametrize(
    "spec", [*ADAPTIVE, "dopri5(control='batch')", "scipy", "scipy(per_sample=False)", "scipy(method='DOP853')"]
)
def test_adaptive_conformance(spec):
    check_solver(spec)


@pytest.mark.parametrize("tableau", [EULER, MIDPOINT, HEUN, HEUN12, RK4, BOSH3, DOPRI5])
def test_order_conditions(tableau):
    """The conditions on b, c up to the order, the row sums, and those of the embedded method one order lower."""
    rows = [sum(row) for row in tableau.a]
    np.testing.assert_allclose(rows, tableau.c[1:], atol=1e-14)
    for q in range(1, tableau.order + 1):
        assert math.isclose(sum(b * c ** (q - 1) for b, c in zip(tableau.b, tableau.c)), 1 / q, abs_tol=1e-14)
    if tableau.e:
        for q in range(1, tableau.order):
            assert abs(sum(e * c ** (q - 1) for e, c in zip(tableau.e, tableau.c))) < 1e-14
        assert abs(sum(e * c ** (tableau.order - 1) for e, c in zip(tableau.e, tableau.c))) > 1e-4


@pytest.mark.parametrize("spec, order", [("dopri5", 5), ("bosh3", 3), ("heun12", 2)])
def test_adaptive_error_follows_the_tolerance(spec, order):
    """Error per step ∝ tolerance, so work ∝ tolerance^(−1/order): the slope over three decades, within 25 %."""
    problem = ODE_PROBLEMS[1]
    exact, nfe, errors = problem.exact(X, problem.t0, problem.t1), [], []
    tolerances = (1e-4, 1e-7) if order < 5 else (1e-6, 1e-11)
    for tol in tolerances:
        result = solve_ode(problem.func, X, problem.t0, problem.t1, solver=f"{spec}(rtol={tol}, atol={tol})")
        nfe.append(result.steps.double().mean().item())
        errors.append(float((result.x - exact).abs().max()))
    slope = math.log(nfe[1] / nfe[0]) / math.log(tolerances[0] / tolerances[1])
    assert abs(slope * order - 1) < 0.25
    assert errors[0] < 30 * tolerances[0] and errors[1] < 100 * tolerances[1]


@pytest.mark.parametrize("spec", ["dopri5", "bosh3", "heun12(rtol=1e-3, atol=1e-3)"])
def test_a_result_does_not_depend_on_companions(spec):
    """Bit for bit: with one stiff and one idle companion, in another order, and alone."""
    rates = torch.tensor([1.0, 200.0, 0.0])

    def func_for(rates):
        return lambda x, t: -rates[:, None] * x * torch.cos(3 * t)[:, None]

    x = torch.randn(3, 5)
    whole = solve_ode(func_for(rates), x, 0.0, 1.0, solver=spec)
    for i in range(3):
        alone = solve_ode(func_for(rates[i : i + 1]), x[i : i + 1], 0.0, 1.0, solver=spec)
        assert torch.equal(alone.x[0], whole.x[i])
        assert alone.nfe[0] == whole.nfe[i] and alone.steps[0] == whole.steps[i]
    assert whole.nfe[1] > whole.nfe[0] >= whole.nfe[2]
    assert whole.calls == whole.nfe.max()


def test_one_step_for_the_batch_couples_samples():
    rates = torch.tensor([1.0, 50.0])
    x = torch.ones(2, 3)
    together = solve_ode(lambda x, t: -rates[: len(x), None] * x, x, 0.0, 1.0, solver="dopri5(control='batch')")
    assert together.nfe[0] == together.nfe[1] and together.steps[0] == together.steps[1]


@pytest.mark.parametrize("spec", [*ADAPTIVE, "scipy", "rk4(steps=20)"])
def test_forth_and_back(spec):
    func = lambda x, t: torch.sin(x + t[:, None])  # noqa: E731
    there = solve_ode(func, X, 0.0, 2.0, solver=spec).x
    assert torch.allclose(solve_ode(func, there, 2.0, 0.0, solver=spec).x, X, atol=3e-4)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("spec", ["dopri5", "heun", "scipy"])
def test_any_rank(spec, rank):
    x = torch.rand(2, *(2,) * (rank - 1))
    assert torch.allclose(solve_ode(lambda x, t: -x, x, 0.0, 1.0, solver=spec).x, x * math.exp(-1), atol=1e-4)


@pytest.mark.parametrize("spec", [*ADAPTIVE, "euler(steps=3)", "scipy"])
def test_zero_derivative_from_the_start(spec):
    result = solve_ode(lambda x, t: torch.zeros_like(x), X, 0.0, 1.0, solver=spec)
    assert torch.equal(result.x, X) and result.success.all() and result.calls < 60


@pytest.mark.parametrize("spec", ADAPTIVE)
def test_derivative_that_wakes_up(spec):
    """Zero until t = 0.5, then 1: the controller must not jump over it."""
    result = solve_ode(lambda x, t: torch.sigmoid(200 * (t - 0.5))[:, None] + 0 * x, X, 0.0, 1.0, solver=spec)
    assert torch.allclose(result.x, X + 0.5, atol=2e-3)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "cosine", "edm"])
@pytest.mark.parametrize("spec", ["dopri5", "scipy", "heun(steps=20)"])
def test_reverse_flow_never_leaves_the_interval(name, spec):
    """The reverse VP flow starts with a drift near zero: a heuristic that probes beyond the end meets the root of a
    negative number."""
    sde, law = SDES.build(name), Gaussian(torch.tensor([0.4, -0.2]), 0.25)
    drift, times = sde.reverse(law.score_fn(sde), eta=0.0).drift, []

    def func(x, t):
        times.append(t.double())
        return drift(x, t)

    x = sde.prior_sampling((4, 2))
    result = solve_ode(func, x, sde.T, sde.t_min, solver=spec)
    seen = torch.cat(times)
    assert seen.min() >= torch.tensor(sde.t_min).double() and seen.max() <= torch.tensor(sde.T).double()
    assert torch.isfinite(result.x).all()
    if spec != "heun(steps=20)":
        exact = law.flow(sde, x.double(), sde.T, sde.t_min)
        assert (result.x - exact).abs().max() < 3e-3


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*ADAPTIVE, "euler", "scipy"])
def test_nan_is_named(spec):
    def func(x, t):
        return torch.where((t > 0.5)[:, None], torch.nan, -x)

    with pytest.raises(ODENotFinite, match=r"sample 0.*t = 0\..*Try") as caught:
        solve_ode(func, X, 0.0, 1.0, solver=spec)
    assert isinstance(caught.value, FloatingPointError) and isinstance(caught.value, ODEError)
    assert torch.isfinite(caught.value.result.x).all()


@pytest.mark.parametrize("spec", ["dopri5(on_failure='return')", "heun(on_failure='return')"])
def test_one_bad_sample_spoils_no_other(spec):
    def func(x, t):
        value = -x.clone()
        value[1] = torch.where(t[1] > 0.3, torch.nan, value[1])
        return value

    result = solve_ode(func, X, 0.0, 1.0, solver=spec)
    assert result.status.tolist() == [Status.DONE, Status.NOT_FINITE, Status.DONE]
    assert torch.allclose(result.x[[0, 2]], X[[0, 2]] * math.exp(-1), atol=1e-4)
    assert 0.2 < result.t[1] <= 0.31 and torch.isfinite(result.x[1]).all()


def test_blow_up_and_stiffness_end_in_bounded_time():
    with pytest.raises(ODEError, match="too stiff|NaN"):
        solve_ode(lambda x, t: x**2, torch.ones(1, 1), 0.0, 2.0)
    with pytest.raises(ODEError, match="limit of evaluations.*looser tolerance"):
        solve_ode(
            lambda x, t: -1e6 * (x - torch.cos(t)[:, None]), torch.ones(1, 1), 0.0, 1.0, solver="dopri5(max_nfe=1200)"
        )
    with pytest.raises(ODEError):
        solve_ode(lambda x, t: x**2, torch.ones(1, 1), 0.0, 2.0, solver="scipy")


def test_stress_set_ends_with_a_status():
    """Two hundred nasty right-hand sides at once, as samples of one batch: poles, jumps, noise, stiffness, NaN. Each
    gets its status."""
    generator = torch.Generator().manual_seed(0)
    n = 200
    kind, size = torch.arange(n) % 5, 10 ** (4 * torch.rand(n, generator=generator, dtype=torch.float64))
    place = torch.rand(n, generator=generator, dtype=torch.float64)

    def func(x, t):
        a, b, s = size[:, None], place[:, None], t[:, None]
        options = [1 / (s - b), a * torch.sign(s - b), -a * x, torch.where(s > b, torch.nan, x), torch.sin(1e6 * a * s)]
        return torch.stack([o.expand(n, 2) for o in options]).gather(0, kind[None, :, None].expand(1, n, 2))[0]

    x = torch.ones(n, 2, dtype=torch.float64)
    result = solve_ode(func, x, 0.0, 1.0, solver="dopri5(rtol=1e-3, atol=1e-3, max_nfe=1800, on_failure='return')")
    assert torch.isfinite(result.x).all() and result.calls < 2000
    assert (result.t[result.success] == 1).all()
    assert (result.status[kind == 3] == Status.NOT_FINITE).all()
    assert result.success[(kind == 2) & (size < 300)].all() and result.success[kind == 1].all()


def test_gradients_pass_through():
    for spec in ("dopri5(rtol=1e-8, atol=1e-8)", "rk4(steps=30)", "heun12"):
        x = X.clone().requires_grad_(True)
        rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        solve_ode(lambda x, t, rate=rate: -rate * x, x, 0.0, 1.0, solver=spec).x.sum().backward()
        assert torch.allclose(x.grad, torch.full_like(X, math.exp(-0.7)), atol=1e-4)
        assert abs(rate.grad + X.sum() * math.exp(-0.7)) < 1e-3
    with pytest.raises(ValueError, match="dopri5"):
        solve_ode(lambda x, t: -x, X.clone().requires_grad_(True), 0.0, 1.0, solver="scipy")


def test_callback_sees_every_step():
    seen = []
    result = solve_ode(lambda x, t: -x, X, 0.0, 1.0, solver="rk4(steps=7)", callback=seen.append)
    assert [p.step for p in seen] == list(range(1, 8)) and seen[-1].calls == result.calls == 28
    assert torch.equal(seen[-1].x, result.x)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: solve_ode(lambda x, t: x[:1], X, 0.0, 1.0), "must be equal"),
        (lambda: solve_ode(lambda x, t: x.float(), X, 0.0, 1.0), "convert"),
        (lambda: solve_ode(lambda x, t: x, X.half(), 0.0, 1.0), "float32 or float64"),
        (lambda: solve_ode(lambda x, t: x, X * math.nan, 0.0, 1.0), "sample 0"),
        (lambda: solve_ode(lambda x, t: x, X, 0.0, math.inf), "finite"),
        (lambda: solve_ode(lambda x, t: x, X, 0.0, 1.0, solver="dopri"), "Did you mean 'dopri5'"),
        (lambda: solve_ode(lambda x, t: x, X, 0.0, 1.0, solver="dopri5(rtoll=1)"), "rtol"),
        (lambda: solve_ode(lambda x, t: x, X.float(), 0.0, 1.0, solver="dopri5(rtol=1e-9, atol=1e-9)"), "float64"),
        (lambda: SOLVERS.build("euler(steps=0)"), "at least 1"),
        (lambda: SOLVERS.build("heun(power=0.5)"), r"at least 1 \(equal steps\)"),
        (lambda: SOLVERS.build("adams(steps=3)"), "at least 4"),
        (lambda: SOLVERS.build("scipy(method='RK46')"), "RK45"),
        (lambda: SOLVERS.build("dopri5(control='each')"), "'sample' or 'batch'"),
    ],
)
def test_errors_say_what_to_write(call, words):
    with pytest.raises((ValueError, TypeError, FloatingPointError), match=words):
        call()


def test_published_flow(golden_dir):
    """SciPy's solver on the batch reproduces the published ODE sampler's latent-to-sample map (without its denoising
    step) and its count."""
    import json

    for kind in ("ve", "subvp"):
        data = np.load(golden_dir / f"ode_sampler_{kind}.npz")
        meta = json.loads(str(data["meta_json"]))
        options = {} if kind == "ve" else {"published_rounding": True}
        sde = SDES.get(kind)(**meta["params"], **options)
        mu, var, z = torch.from_numpy(data["mu"]), meta["data_var"], torch.from_numpy(data["z"])

        def score(x, t, sde=sde, mu=mu, var=var, kind=kind):
            """The recorded network, by its own formula: at T the drift is a difference of equal numbers, and its
            rounding sets the first step."""
            m, std = sde.marginal_prob(torch.ones_like(x), t)
            if kind == "ve":
                return -(x - mu) / (var + std**2)
            return -(std * (x - m * mu) / (m**2 * var + std**2)) / std

        drift = sde.reverse(score, eta=0.0).drift
        result = solve_ode(drift, z, 1.0, meta["eps"], solver="scipy(per_sample=False)")
        scale = max(1.0, float(np.abs(data["sample"]).max()))
        assert float((result.x - torch.from_numpy(data["sample"])).abs().max()) / scale < 1e-5
        assert result.calls == meta["reported_nfe"]
        ours = solve_ode(drift, z, 1.0, meta["eps"], solver="dopri5").x
        exact = torch.from_numpy(data["exact_flow_without_denoise"])
        # solver tolerance 1e-5 a step, over some ten steps
        assert float((ours - exact).abs().max()) < 5e-4
