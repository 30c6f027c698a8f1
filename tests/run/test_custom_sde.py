"""An SDE in a file of the user's own, with nothing but f(t) and g(t): by flags alone it does everything."""

import json
import shutil

import numpy as np
import pytest

MINE = '''
import torch
from sde_score.sdes import SDES, LinearSDE


@SDES.register("mine")
class Mine(LinearSDE):
    """dx = -(1 + 6 t) x dt + sqrt(3 + 14 t) dw"""

    def drift_coeff(self, t):
        return -(1 + 6 * t)

    def diffusion_coeff(self, t):
        return torch.sqrt(3 + 14 * t)
'''


@pytest.fixture
def plugin(tmp_path, fresh_registries):
    path = tmp_path / "elsewhere" / "my_sde.py"
    path.parent.mkdir()
    path.write_text(MINE)
    return path


@pytest.fixture
def run(cli, plugin, toy_config, tmp_path):
    workdir = tmp_path / "run"
    answer = cli("train", f"--config={toy_config}", f"--plugin={plugin}", "--config.sde=mine", f"--workdir={workdir}")
    assert answer.code == 0, answer.err
    return workdir


SAMPLERS = [
    ["pc", "predictor=euler_maruyama"],
    ["pc", "predictor=reverse_diffusion", "corrector=langevin(snr=0.16, norms='expected')"],
    ["pc", "predictor=reverse_diffusion(eta=0.)"],
    ["pc", "predictor=ancestral_sampling", "corrector=ald"],
    ["pc", "predictor=none", "corrector=langevin"],
    ["ode", "solver=dopri5(rtol=1e-3, atol=1e-3)"],
    ["ode", "solver=scipy(method='RK45', rtol=1e-3)"],
    ["sde", "solver=srk"],
    ["sde", "solver=euler"],
]


def test_train_sample_likelihood_by_flags_alone(cli, run, plugin):
    config = json.loads((run / "config.json").read_text())
    assert config["sde"] == "mine" and config["plugins"] == [str(plugin)]  # later commands need no --plugin
    for number, (method, *settings) in enumerate(SAMPLERS):
        flags = [
            f"--config.sampling.method={method}",
            *(f"--config.sampling.{s}" for s in settings),
            f"--tag=s{number}",
        ]
        found = cli("sample", f"--workdir={run}", "--num=6", *flags, "--notrajectory", "--json").json
        x = np.load(run / f"samples/s{number}.npz")["x"]
        assert x.shape == (6, 2) and np.isfinite(x).all(), (method, settings)
        assert found["sde"] == "mine" and found["nfe"] > 0
    for trace in ("exact", "hutchinson(probes=2)"):
        found = cli("likelihood", f"--workdir={run}", "--num=20", f"--config.likelihood.trace={trace}", "--json").json
        assert -50 < found["nats"]["mean"] < 5 and found["nats"]["stderr"] > 0


def test_images_too(cli, plugin, digits_config, tmp_path):
    base = (f"--workdir={tmp_path}/run",)
    flags = (f"--plugin={plugin}", "--config.sde=mine", "--config.training.n_iters=6")
    assert cli("train", f"--config={digits_config}", *base, *flags).code == 0
    assert (
        cli("sample", *base, "--num=4", "--config.sampling.method=ode", "--config.sampling.solver=heun(steps=3)").code
        == 0
    )
    assert cli("likelihood", *base, "--num=8", "--json").json["bits_per_dim"]["mean"] > 0


def test_listed_with_its_origin(cli, plugin):
    answer = cli("list", "sdes", f"--plugin={plugin}")
    assert "mine(" in answer.out and "my_sde" in answer.out and "dx = -(1 + 6 t) x dt" in answer.out


def test_goes_on_by_the_same_command_and_without_the_flag(cli, run, plugin):
    assert (
        cli("train", f"--workdir={run}", f"--plugin={plugin}", "--config.training.n_iters=24", "--json").json["step"]
        == 24
    )
    assert cli("train", f"--workdir={run}", "--config.training.n_iters=26", "--json").json["step"] == 26
    assert json.loads((run / "config.json").read_text())["plugins"] == [str(plugin)]


def test_a_plugin_that_has_moved(cli, refused, run, plugin, fresh_registries, tmp_path):
    there = tmp_path / "new_place" / plugin.name
    there.parent.mkdir()
    shutil.move(plugin, there)
    fresh_registries()
    refused("sample", f"--workdir={run}", "--num=2", words=[plugin, "there is no file", "--plugin=FILE"])
    assert cli("sample", f"--workdir={run}", "--num=2", f"--plugin={there}").code == 0
    assert cli("train", f"--workdir={run}", f"--plugin={there}", "--config.training.n_iters=22").code == 0
    assert json.loads((run / "config.json").read_text())["plugins"] == [str(there)]  # it is remembered


def test_plugins_in_a_configuration_are_found_from_elsewhere(cli, plugin, toy_config, tmp_path, monkeypatch):
    monkeypatch.chdir(plugin.parent)
    flags = ("--config.plugins=('my_sde.py',)", "--config.sde=mine", "--config.training.n_iters=2")
    assert cli("train", f"--config={toy_config}", *flags, f"--workdir={tmp_path}/run").code == 0
    monkeypatch.chdir(tmp_path)
    assert cli("sample", "--workdir=run", "--num=2").code == 0


@pytest.mark.parametrize(
    "text, words",
    [
        ("import nonsense_of_my_own", ["nonsense_of_my_own"]),
        ("def broken(:\n", ["SyntaxError"]),
        ("x = undefined_name\n", ["NameError", "undefined_name"]),
        (MINE.replace('"mine"', '"vp"'), ["'vp' is taken", "choose another name"]),
    ],
)
def test_a_broken_plugin_is_named(refused, plugin, toy_config, tmp_path, text, words):
    plugin.write_text(text)
    flags = (f"--config={toy_config}", f"--plugin={plugin}", f"--workdir={tmp_path}/run")
    refused("train", *flags, words=["my_sde.py", "cannot be imported", *words])
    assert not (tmp_path / "run").exists()


def test_an_unfinished_sde_is_explained(refused, plugin, toy_config, tmp_path):
    plugin.write_text(MINE.partition("    def diffusion_coeff")[0])
    flags = (f"--config={toy_config}", f"--plugin={plugin}", "--config.sde=mine", f"--workdir={tmp_path}/run")
    refused("train", *flags, code=2, words=["config.sde", "diffusion_coeff"])
