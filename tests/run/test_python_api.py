"""`sde_score.train`, `sde_score.load` and what a run can do, from Python."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import sde_score
from sde_score.config import load_config
from sde_score.data import load_dataset


def test_four_lines(digits_config, tmp_path):
    run = sde_score.train(str(digits_config), workdir=tmp_path / "run", minutes=5)
    assert run.config.training.max_seconds == 300.0 and run.step == 20
    samples = run.sample(9, method="ode", solver="rk4(steps=4)")
    assert samples.x.shape == (9, 1, 8, 8) and 0 <= samples.x.min() and samples.x.max() <= 1
    assert samples.save(tmp_path / "grid.png").stat().st_size > 100
    assert samples.save(tmp_path / "grid.npz").is_file()
    mean, stderr = run.bits_per_dim("test", num=8)
    assert 1 < mean < 10 and 0 < stderr < 1
    again = sde_score.load(tmp_path / "run")
    assert torch.equal(again.sample(9, method="ode", solver="rk4(steps=4)").x, samples.x)
    assert again.bits_per_dim("test", num=8) == (mean, stderr)


def test_settings_are_of_one_call_only(digits_run):
    run = sde_score.load(digits_run)
    before = run.config.to_json()
    a = run.sample(3, predictor="ancestral_sampling", corrector="langevin(norms='expected')", steps=5)
    assert a.facts["sampling"]["steps"] == 5 and run.config.to_json() == before
    with pytest.raises(ValueError, match="predictr.*predictor"):
        run.sample(3, predictr="none")
    with pytest.raises(ValueError, match="'reverse_diffusion'"):
        run.sample(3, predictor="reverse_difusion")
    with pytest.raises(ValueError, match="positive"):
        run.sample(0)


def test_sections_and_goes_on(toy_config, tmp_path):
    base = dict(workdir=tmp_path / "run")
    run = sde_score.train(str(toy_config), **base, sde="subvp", training={"n_iters": 5}, optim={"lr": 2e-3})
    assert run.step == 5 and run.config.sde == "subvp" and run.config.optim.lr == 2e-3
    config = load_config(str(toy_config))
    config.sde, config.optim.lr = "subvp", 2e-3
    assert sde_score.train(config, **base).step == 20
    assert config.training.n_iters == 20  # the caller's is not touched
    with pytest.raises(ValueError, match=r"config.sde +'subvp' +'vp'"):
        sde_score.train(str(toy_config), **base)
    assert sde_score.train(str(toy_config), **base, overwrite=True, training={"n_iters": 2}).step == 2


def test_the_default_place(toy_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sde_score.train(f"{toy_config}:ve", training={"n_iters": 1}).workdir.as_posix() == "runs/tiny_toy_ve"


@pytest.mark.parametrize("kind", ["tensor", "array", "labelled", "splits"])
def test_data_of_your_own(toy_config, tmp_path, kind):
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 2 + 5
    y = torch.arange(200) % 4
    data = {
        "tensor": x,
        "array": x.numpy(),
        "labelled": (x, y),
        "splits": load_dataset("checkerboard(n_train=100, n_test=50)"),
    }
    model = {"class_conditional": True} if kind == "labelled" else {}
    base = dict(workdir=tmp_path / "run", data=data[kind], model=model)
    run = sde_score.train(str(toy_config), **base, training={"n_iters": 5})
    dim = 2 if kind == "splits" else 3
    assert run.sample(4).x.shape == (4, dim) and np.isfinite(run.likelihood(num=10)["nats"]["mean"])
    assert sde_score.train(str(toy_config), **base).step == 20  # goes on with the same data
    alone = sde_score.load(tmp_path / "run")
    assert alone.sample(4).x.shape == (4, dim)  # sampling needs no data
    with pytest.raises(ValueError, match="data given in Python.*data="):
        alone.likelihood(num=10)
    assert np.isfinite(sde_score.load(tmp_path / "run", data=data[kind]).likelihood(num=10)["nats"]["mean"])


def test_data_of_another_shape(toy_config, tmp_path):
    x = torch.randn(50, 3)
    sde_score.train(str(toy_config), workdir=tmp_path / "run", data=x, training={"n_iters": 1})
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        sde_score.load(tmp_path / "run", data=x[:, :2])
    with pytest.raises(ValueError, match=r"samples of shape \(3,\), not \(2,\)"):
        sde_score.train(str(toy_config), workdir=tmp_path / "run", data=x[:, :2])


def test_bits_per_dim_of_points(toy_run):
    with pytest.raises(ValueError, match="nats"):
        sde_score.load(toy_run).bits_per_dim(num=4)


def test_likelihood_of_another_split(digits_run, tmp_path):
    run = sde_score.load(shutil.copytree(digits_run, tmp_path / "run"))
    assert run.likelihood("train", num=5, solver="euler(steps=3)")["nfe"] == 3
    with pytest.raises(ValueError, match="'test' or 'train'"):
        run.likelihood("validation")


def test_errors(toy_config, tmp_path):
    with pytest.raises(ValueError, match="config.trainning.*'training'"):
        sde_score.train(str(toy_config), workdir=tmp_path, trainning={})
    with pytest.raises(ValueError, match="config.optim.lrr.*'lr'"):
        sde_score.train(str(toy_config), workdir=tmp_path, optim={"lrr": 1})
    with pytest.raises(ValueError, match="minutes"):
        sde_score.train(str(toy_config), workdir=tmp_path, minutes=0)
    with pytest.raises(FileNotFoundError, match="'digits'"):
        sde_score.train("digit", workdir=tmp_path)
    with pytest.raises(FileNotFoundError, match="not a run directory"):
        sde_score.load(tmp_path)
    with pytest.raises(AttributeError, match="trane"):
        sde_score.trane  # noqa: B018


def test_import_is_cheap_and_names_are_shown():
    assert {"train", "load"} <= set(dir(sde_score))
    code = "import sys, sde_score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
