"""`sde-score check` and the pytest adapter: what users run on their own components."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sde_score.cli import main
from sde_score.sdes import VPSDE
from sde_score.testing import CheckFailed, check_sde, sde_checks
from sde_score.testing.pytest_checks import parametrize_with_checks

MODULE = '''
import torch
from sde_score.sampling import Corrector, Predictor
from sde_score.objectives import Objective
from sde_score.sdes import LinearSDE
from sde_score.solvers.runge_kutta import HEUN, FixedStep
from sde_score.tensors import draw_uniform, mean_except_batch


class Damped(LinearSDE):
    def __init__(self, rate: float = 16.0):
        super().__init__()
        self.rate = rate

    def drift_coeff(self, t):
        return -0.5 * self.rate * t

    def diffusion_coeff(self, t):
        return torch.sqrt(self.rate * t)


class Undamped(Damped):
    def drift_coeff(self, t):
        return self.rate * t

    def marginal_coeffs(self, t):
        return torch.ones_like(t), torch.sqrt(t)


class Euler(Predictor):
    def step(self, score_fn, x, t, t_next, noise):
        dt = (t - t_next).reshape(-1, *(1,) * (x.ndim - 1))
        x_mean = x - self.sde.reverse(score_fn).drift(x, t) * dt
        return x_mean + self.sde.diffusion(x, t) * dt.sqrt() * noise(x), x_mean


class Still(Corrector):
    def step(self, score_fn, x, t, noise):
        e = 0.01 * self.sde.marginal_prob(x, t)[1] ** 2
        x_mean = x + e * score_fn(x, t)
        return x_mean + (2 * e).sqrt() * noise(x), x_mean


class Trapezoid(FixedStep):
    tableau = HEUN


class Loss(Objective):
    def __call__(self, model, x0, *, noise, **cond):
        t = self.sde.t_min + (self.sde.T - self.sde.t_min) * draw_uniform(noise, x0.new_empty(len(x0)))
        z = noise(x0)
        mean, std = self.sde.marginal_prob(x0, t)
        return mean_except_batch((model.eps(mean + std * z, t, **cond) - z) ** 2)


class Nothing:
    """No component."""


instance = Damped(20.0)
'''


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_components.py"
    path.write_text(MODULE)
    return path


@pytest.mark.parametrize(
    "name, kind",
    [
        ("my_components.py:Damped", "SDE"),
        ("my_components:Damped(rate=20.0)", "SDE"),
        ("my_components.py:instance", "SDE"),
        ("my_components.py:Euler", "predictor"),
        ("my_components.py:Trapezoid", "solver"),
        ("my_components.py:Loss", "objective"),
        ("vp", "SDE"),
        ("ald", "corrector"),
        ("heun", "solver"),
        ("v", "parameterization"),
    ],
)
def test_a_right_component_passes(name, kind, module, capsys):
    assert main(["check", name]) == 0
    out = capsys.readouterr().out
    assert f"({kind}): " in out and " 0 failed" in out and "passed  check_" in out


def test_a_wrong_one_fails_with_the_whole_message(module, capsys):
    assert main(["check", "my_components.py:Damped", "my_components.py:Undamped"]) == 1
    out, err = capsys.readouterr()
    assert "failed  check_marginal_ode: dm/dt is not f m: relative error" in out and "checks failed" in err
    assert main(["check", "my_components.py:Undamped", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["Undamped"]
    assert rows["kind"] == "SDE" and {"passed", "failed"} == {c["outcome"] for c in rows["checks"]}


def test_skip_leaves_checks_out(module, capsys):
    assert main(["check", "vp", "--skip=check_chain,check_float32"]) == 0
    assert "skipped check_chain: left out on the command line" in capsys.readouterr().out
    assert main(["check", "vp", "--skip=check_chian"]) == 2
    assert "Did you mean 'check_chain'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, words",
    [
        ("my_component.py:Damped", "there is no file 'my_component.py'. Did you mean 'my_components.py'?"),
        ("elsewhere/x.py:Damped", "there is no file 'elsewhere/x.py'"),
        ("no_such_module:Damped", "'no_such_module' cannot be imported: ModuleNotFoundError"),
        ("my_components.py:Dampd", "my_components.py has no 'Dampd'. Did you mean 'Damped'?"),
        ("my_components.py:Nothing", "Nothing is nothing that can be checked. An SDE has drift"),
        ("my_components.py:Damped(speed=3)", "Its arguments are (rate: float = 16.0)"),
        ("my_components.py:Damped(3)", "an argument without a name"),
        ("my_components.py:instance(rate=3)", "is an object already"),
        ("vpp", "nothing is registered as 'vpp'. Did you mean 'vp'?"),
    ],
)
def test_what_cannot_be_checked_is_explained(name, words, module, capsys):
    assert main(["check", name]) == 2
    assert words in capsys.readouterr().err


def test_nothing_to_check_is_an_error(capsys):
    assert main(["check"]) == 2 and "my_module.py:MySDE" in capsys.readouterr().err


# --- pytest ---------------------------------------------------------------------------------------------------------


@parametrize_with_checks([VPSDE()], skip={"check_chain": "shown as a skip"})
def test_vp(check):
    check()


SUITE = '''
from my_components import Damped, Euler, Still, Undamped
from sde_score.sdes import VPSDE
from sde_score.testing.pytest_checks import parametrize_with_checks


@parametrize_with_checks([Damped(), Undamped()], skip={"check_chain": "no chain of ours"})
def test_sdes(check):
    check()


@parametrize_with_checks([Euler(VPSDE()), Still(VPSDE())])
def test_others(check):
    check()
'''


def test_one_test_for_each_check(module):
    (module.parent / "test_suite.py").write_text(SUITE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rsf", "-p", "no:cacheprovider", "test_suite.py"],
        cwd=module.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "no chain of ours" in done.stdout and "2 skipped" in done.stdout
    assert "FAILED test_suite.py::test_sdes[Undamped-check_marginal_ode]" in done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed and all("[Undamped-" in line for line in failed)  # the others pass


def test_the_adapter_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="unknown checks: check_prio.*Did you mean 'check_prior'"):
        parametrize_with_checks([VPSDE()], skip={"check_prio": "?"})
    with pytest.raises(TypeError, match="nothing that can be checked"):
        parametrize_with_checks([3])


def test_a_failure_carries_all_results():
    class Wrong(VPSDE):
        def log_snr_rate(self, t):
            return 2 * super().log_snr_rate(t)

    with pytest.raises(CheckFailed) as caught:
        check_sde(Wrong())
    outcomes = [r.outcome for r in caught.value.results]
    assert outcomes.count("failed") == 1 and outcomes.count("passed") == len(list(sde_checks(VPSDE()))) - 1
