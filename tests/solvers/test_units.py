"""Solvers know no units: what is measured in other units of x and t is solved by the same steps. And their doors."""

import math

import pytest
import torch

from sde_score.solvers import SOLVERS, ODEError, Status, solve_ode

ADAPTIVE = ["dopri5", "bosh3", "heun12"]
X = torch.tensor([[0.3, 0.7], [0.9, -0.2], [-0.5, 0.4]], dtype=torch.float64)


def swing(x, t):
    """x'' = −x with a rate of its own for each sample."""
    return torch.stack([x[:, 1], -x[:, 0]], 1) * torch.tensor([[1.0], [3.0], [7.0]], dtype=torch.float64)[: len(x)]


def same(a, b, scale=1.0):
    """The same steps; states to rounding, for which 1e-12 leaves room over hundreds of steps."""
    assert torch.equal(a.nfe, b.nfe) and torch.equal(a.steps, b.steps) and torch.equal(a.rejected, b.rejected)
    assert torch.allclose(a.x * scale, b.x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("control", ["sample", "batch"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_units_of_x(name, control):
    """With atol in the same units all steps are the same."""
    build = SOLVERS.get(name)
    plain = solve_ode(swing, X, 0.0, 1.0, solver=build(1e-4, 1e-5, control=control))
    for unit in (2.0**-7, 2.0**9):
        other = solve_ode(swing, unit * X, 0.0, 1.0, solver=build(1e-4, unit * 1e-5, control=control))
        same(plain, other, unit)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_units_and_direction_of_time(name):
    """The rule for the first step (Hairer, Nørsett & Wanner I, II.4) mixes units of time, hence a given one; it knows
    no direction."""

    def solve(unit, first_step):
        def func(x, t):
            return swing(x, t) * torch.cos(t / unit)[:, None] / unit

        return solve_ode(func, X, 0.0, unit, solver=SOLVERS.get(name)(1e-4, 1e-5, first_step=first_step))

    for unit, first_step in ((2.0**-3, 2.0**-9), (2.0**5, 0.5), (-4.0, 2.0**-4)):
        other = solve(unit, first_step)
        same(solve(1.0, 2.0**-6), other)
        assert torch.equal(other.t, torch.full_like(other.t, unit))
    same(solve(1.0, None), solve(-1.0, None))


@pytest.mark.parametrize("name", ["euler", "heun", "rk4", "adams"])
def test_power_lays_the_steps_near_the_earlier_time(name):
    """u runs in equal steps, t = t_early + (t_late − t_early) u^power, whichever end comes first."""
    for t0, t1 in ((1.0, 3.0), (3.0, 1.0)):
        seen = []
        solver = SOLVERS.get(name)(8, power=3)
        solve_ode(lambda x, t: -x, X, t0, t1, solver=solver, callback=seen.append)
        exact = [1 + 2 * (k / 8) ** 3 for k in range(9)]
        exact = exact[1:] if t0 < t1 else exact[-2::-1]
        assert torch.allclose(torch.stack([p.t[0] for p in seen]), torch.tensor(exact, dtype=torch.float64))
        assert [p.step for p in seen] == list(range(1, 9))


def test_a_step_is_tried_first_as_asked():
    times = []

    def func(x, t):
        times.append(float(t[0]))
        return -x

    for t1, first in ((1.0, 0.125), (-1.0, 0.125), (0.1, 0.5)):
        times.clear()
        solver = SOLVERS.get("heun12")(1e-2, 1e-2, first_step=first)
        solve_ode(func, X[:1], 0.0, t1, solver=solver)
        # evaluated at the start, then at the end of the first step, never beyond the interval
        assert times[:2] == [0.0, math.copysign(min(first, abs(t1)), t1)]


def test_steps_grow_tenfold_at_most():
    """Where nothing happens they grow as fast as allowed."""
    reached = []
    solver = SOLVERS.build("dopri5(first_step=1e-4)")
    solve_ode(lambda x, t: 0 * x, X, 0.0, 1.0, solver=solver, callback=lambda p: reached.append(float(p.t[0])))
    assert torch.allclose(torch.tensor(reached), torch.tensor([0.0001, 0.0011, 0.0111, 0.1111, 1.0]))


def test_rejected_steps_shrink_to_a_fifth_at_least():
    """A jump of the slope by 1e6 meets a step of 0.8: the next ones are 0.16, 0.032, ..."""
    asked = []

    def func(x, t):
        asked.append(float(t[0]))
        return torch.where(t > 1e-4, 1e6, 0.0).to(x)[:, None] * torch.sin(1e3 * t)[:, None] + 0 * x

    solve_ode(func, X[:1], 0.0, 1.0, solver="heun12(first_step=0.8, max_nfe=9, on_failure='return')")
    assert torch.allclose(torch.tensor(asked[1::2]), 0.8 * 0.2 ** torch.arange(4))  # two evaluations a step


@pytest.mark.parametrize("name, order", [("dopri5", 5), ("bosh3", 3), ("heun12", 2)])
def test_tolerances_relative_and_absolute(name, order):
    """On x' = x each kind alone makes about the same steps, in number ∝ tolerance^(−1/order).

    atol is given in the size of the start, rtol is that of the present state, which grows by e: a little looser."""
    x, counts = torch.full((1, 1), 1e3, dtype=torch.float64), {}
    for tol in (1e-5, 1e-7):
        for kind, settings in (("rtol", (tol, 0.0)), ("atol", (0.0, 1e3 * tol))):
            result = solve_ode(lambda x, t: x, x, 0.0, 1.0, solver=SOLVERS.get(name)(*settings))
            counts[kind, tol] = float(result.steps)
            assert abs(float(result.x) / (1e3 * math.e) - 1) < 100 * tol
        assert 0.9 <= counts["atol", tol] / counts["rtol", tol] < 2
    if order < 5:  # a few steps are too few to count
        assert abs(math.log(counts["rtol", 1e-7] / counts["rtol", 1e-5]) / math.log(100) * order - 1) < 0.2


def test_tolerances_are_refused_only_where_neither_can_be_met():
    x = X.float()
    for spec in ("dopri5(rtol=1e-9, atol=1e-4)", "dopri5(rtol=1e-4, atol=1e-12)", "dopri5(rtol=0., atol=1e-4)"):
        assert solve_ode(lambda x, t: -x, x, 0.0, 0.1, solver=spec).success.all()
    # the absolute one is measured against the largest state: 4 · 1.2e-7 · 0.9 = 4.3e-7
    solve_ode(lambda x, t: -x, x, 0.0, 0.1, solver="dopri5(rtol=1e-9, atol=5e-7)")
    with pytest.raises(ValueError, match="more than torch.float32 resolves"):
        solve_ode(lambda x, t: -x, x, 0.0, 0.1, solver="dopri5(rtol=1e-9, atol=4e-7)")
    with pytest.raises(ValueError, match="more than torch.float32 resolves"):
        solve_ode(lambda x, t: -x, 10 * x, 0.0, 0.1, solver="dopri5(rtol=1e-9, atol=4e-6)")


@pytest.mark.parametrize("name", [*ADAPTIVE, "scipy"])
@pytest.mark.parametrize("rtol, atol", [(-1.0, 1e-3), (1e-3, -1.0), (0.0, 0.0), (math.nan, 1e-3), (1e-3, math.nan)])
def test_wrong_tolerances(name, rtol, atol):
    with pytest.raises(ValueError, match="at least 0 and not both 0"):
        SOLVERS.get(name)(rtol=rtol, atol=atol)


@pytest.mark.parametrize("wrong", [0.0, -0.1, math.nan])
def test_wrong_first_steps(wrong):
    with pytest.raises(ValueError, match="first_step=...\\) must be positive"):
        SOLVERS.get("dopri5")(first_step=wrong)


def test_what_solvers_say_of_themselves():
    coupled = {s: SOLVERS.build(s).batch_coupled for s in
               ("dopri5", "dopri5(control='batch')", "scipy", "scipy(per_sample=False)", "heun", "adams")}  # fmt: skip
    assert list(coupled.values()) == [False, True, False, True, False, False]
    assert [SOLVERS.build(s).common_steps for s in ("dopri5", "scipy", "heun", "adams")] == [False, False, True, True]
    assert SOLVERS.build("heun").steps == 100 and SOLVERS.build("adams").steps == 150
    assert SOLVERS.build("adams").power == SOLVERS.build("rk4").power == 1
    for name in (*ADAPTIVE, "scipy"):
        solver = SOLVERS.build(name)
        assert (solver.rtol, solver.atol, solver.max_nfe) == (1e-5, 1e-5, 10_000)
    assert SOLVERS.build("adams(steps=4)").steps == 4 and SOLVERS.build("euler(steps=1)").steps == 1
    assert SOLVERS.build("dopri5(max_nfe=1)").max_nfe == 1
    with pytest.raises(ValueError, match="'raise' or 'return'"):
        SOLVERS.build("heun(on_failure='ignore')")


@pytest.mark.parametrize("spec", ["euler(steps=10)", "dopri5", "scipy"])
def test_a_failure_names_the_first_sample_that_failed(spec):
    def func(x, t):
        bad = (torch.arange(len(x)) >= 2) & (t > 0.45)
        return torch.where(bad[:, None], torch.nan, 0 * x)

    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0], [9.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ODEError, match=r"2 of 4 samples did not reach the end\. In sample 2.*\|x\| = 5,") as caught:
        solve_ode(func, x, 0.0, 1.0, solver=spec)
    result = caught.value.result
    assert result.status.tolist() == [Status.DONE, Status.DONE, Status.NOT_FINITE, Status.NOT_FINITE]
    assert result.t[:2].tolist() == [1, 1] and torch.equal(result.x, x)


def test_counts_of_a_failed_sample_stop_where_it_failed():
    """Ten steps of 0.1: a NaN from t = 0.45 on ends sample 1 in its sixth step, which has cost an evaluation."""

    def func(x, t):
        return torch.where(((torch.arange(2) == 1) & (t > 0.45))[:, None], torch.nan, -x)

    result = solve_ode(func, X[:2], 0.0, 1.0, solver="euler(steps=10, on_failure='return')")
    assert result.steps.tolist() == [10, 5] and result.nfe.tolist() == [10, 6] and result.calls == 10
    assert result.rejected.tolist() == [0, 0] and abs(float(result.t[1]) - 0.5) < 1e-12
    assert torch.allclose(result.x, X[:2] * torch.tensor([[0.9**10], [0.9**5]], dtype=torch.float64))


def test_nothing_to_do_costs_nothing():
    def refuse(x, t):
        raise AssertionError

    for x, t1 in ((X, 0.5), (X[:0], 1.0)):
        for spec in ("dopri5", "heun", "scipy", "adams"):
            result = solve_ode(refuse, x, 0.5, t1, solver=spec)
            assert torch.equal(result.x, x) and result.calls == 0 and result.success.all()
            assert result.t.tolist() == [t1] * len(x) and int(result.nfe.sum() + result.steps.sum()) == 0


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("t0, t1", [(0.0, 1.0), (0.0, -1.0), (1.0, 0.0)])
def test_accepted_steps_that_lead_nowhere_are_given_up_after_a_hundred(name, t0, t1):
    """x = sin(10²¹ t) asks for steps of 10⁻²¹, which at t = 0 are accepted and at t = 1 are none at all."""
    result = solve_ode(
        lambda x, t: 1e21 * torch.cos(1e21 * t)[:, None] + 0 * x, X[:1], t0, t1, solver=f"{name}(on_failure='return')"
    )
    assert result.status.tolist() == [Status.STEP_TOO_SMALL] and abs(float(result.t) - t0) < 1e-12
    assert int(result.steps) <= 100 and int(result.nfe) < 1000


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_batch_of_equal_samples_steps_as_one_sample_does(name):
    """Both norms are root mean squares: of one sample, or of several equal ones, they are the same number."""

    def func(x, t):
        return torch.stack([x[:, 1], -9 * x[:, 0]], 1)

    alone = solve_ode(func, X[:1], 0.0, 1.0, solver=SOLVERS.get(name)(1e-4, 1e-5))
    for copies in (1, 5):
        batch = solve_ode(
            func, X[:1].expand(copies, 2), 0.0, 1.0, solver=SOLVERS.get(name)(1e-4, 1e-5, control="batch")
        )
        assert batch.steps.tolist() == [int(alone.steps)] * copies and batch.nfe.tolist() == [int(alone.nfe)] * copies
        assert torch.allclose(batch.x, alone.x.expand(copies, 2), rtol=1e-12)
