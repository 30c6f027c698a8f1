"""Every solver ends: limits of evaluations, steps that do not move the time, and no thread is left behind."""

import threading

import pytest
import torch

from sde_score.solvers import SOLVERS, ODEError, Status, solve_ode

SCIPY = ["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"]


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "heun12", *(f"scipy(method={m!r})" for m in SCIPY[:3])])
def test_stiffness_ends_by_the_default_limit(solver):
    calls = []

    def func(x, t):
        calls.append(1)
        return -1e8 * x

    with pytest.raises(ODEError, match="limit of evaluations|too stiff"):
        solve_ode(func, torch.ones(2, 1), 0.0, 1.0, solver=solver)
    assert len(calls) <= 10_010


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", *(f"scipy(method={m!r})" for m in SCIPY)])
def test_an_enormous_derivative_that_does_not_move_the_time_ends(solver):
    # accepted steps of 1e-30 would lead nowhere for ever
    calls = []

    def func(x, t):
        calls.append(1)
        return 1e30 * torch.sin(x * 1e3) + 1e30

    try:
        result = solve_ode(func, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0, solver=solver)
    except (ODEError, FloatingPointError):
        result = None
    assert result is None and len(calls) <= 10_010


@pytest.mark.parametrize("method", SCIPY)
def test_tolerances_beyond_the_number_format_are_refused(method):
    with pytest.raises(ValueError, match="more than torch.float32 resolves"):
        solve_ode(lambda x, t: -x, torch.ones(1, 1), 0.0, 1.0, solver=f"scipy(method={method!r}, rtol=1e-9, atol=1e-9)")


def test_the_limit_is_per_sample_and_said_in_the_status():
    rates = torch.tensor([[1.0], [3e4]])
    result = solve_ode(
        lambda x, t: -rates * x, torch.ones(2, 1), 0.0, 1.0, solver="dopri5(max_nfe=600, on_failure='return')"
    )
    assert result.status.tolist() == [Status.DONE, Status.TOO_MANY_EVALUATIONS]
    assert result.nfe[1] <= 600 and result.t[0] == 1 and 0 < result.t[1] < 1
    with pytest.raises(ValueError, match="max_nfe"):
        SOLVERS.build("dopri5(max_nfe=0)")


def test_a_callback_or_a_function_that_raises_leaves_no_threads():
    class Stop(Exception):
        pass

    def callback(progress):
        if progress.step >= 2:
            raise Stop

    def func(x, t):
        if float(t[0]) > 0.5:
            raise Stop
        return -x

    before = threading.active_count()
    for settings in ({"callback": callback}, {}):
        with pytest.raises(Stop):
            right_hand_side = (lambda x, t: -x) if settings else func
            solve_ode(right_hand_side, torch.ones(20, 2), 0.0, 1.0, solver="scipy", **settings)
        assert threading.active_count() == before


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4", "adams"])
def test_states_are_projected_between_fixed_steps(solver):
    seen = []

    def project(x, t, step):
        seen.append((round(float(t), 6), step))
        return x / x.norm(dim=1, keepdim=True)

    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    result = solve_ode(lambda x, t: x @ turn.T, x, 0.0, 1.0, solver=f"{solver}(steps=50)", project=project)
    assert abs(float(result.x.norm()) - 1) < 1e-12 and len(seen) == 50 and seen[-1] == (1.0, 50)
    exact = torch.tensor([[1.0, -1.0]], dtype=torch.float64) * torch.tensor([1.0]).cos()
    exact[0, 1] = -torch.tensor(1.0, dtype=torch.float64).sin()
    assert float((result.x - exact).abs().max()) < (2e-2 if solver == "euler" else 1e-3)
    with pytest.raises(ValueError, match="steps of its own"):
        solve_ode(lambda x, t: x, x, 0.0, 1.0, solver="dopri5", project=project)
