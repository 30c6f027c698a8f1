"""Resuming with other data, another seed, another plug-in is refused with the difference named; nothing is lost."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import sde_score
from sde_score.training import load_checkpoint

TOY = dict(training={"n_iters": 3, "batch_size": 16, "snapshot_freq": 0, "eval_samples": 16})


def content(folder: Path) -> dict[str, str]:
    """Every file of a run, by its digest."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).normal(5, 2, size=(300, 2)))
    return path


def train(config, table, workdir, **more):
    return sde_score.train(str(config), workdir=workdir, data={"name": str(table)}, **{**TOY, **more})


def test_rows_appended(toy_config, table, tmp_path):
    run = train(toy_config, table, tmp_path / "run")
    before = content(tmp_path / "run")
    rows = np.load(table)
    np.save(table, np.concatenate([rows, [[1000.0, 0.0]]]))  # an outlier, which would move the scaler
    with pytest.raises(ValueError, match=r"data have changed.*samples: \d+ then, \d+ now"):
        train(toy_config, table, tmp_path / "run", training=TOY["training"] | {"n_iters": 6})
    assert content(tmp_path / "run") == before
    np.save(table, rows)
    longer = train(toy_config, table, tmp_path / "run", training=TOY["training"] | {"n_iters": 6})
    assert longer.step == 6 and torch.equal(longer.codec.mean, run.codec.mean)


def test_a_value_changed(toy_config, table, tmp_path, capsys):
    train(toy_config, table, tmp_path / "run")
    rows = np.load(table)
    rows[7] = rows[7] + 1e-3
    np.save(table, rows)
    with pytest.raises(ValueError, match="(but with other values|then, .* now)"):
        train(toy_config, table, tmp_path / "run", training=TOY["training"] | {"n_iters": 6})
    capsys.readouterr()
    run = sde_score.load(tmp_path / "run")
    run.likelihood(num=4, solver="euler(steps=2)")  # using it goes on, with a word
    assert "data have changed since training" in capsys.readouterr().err


def test_the_place_of_the_data_does_not_matter(toy_config, table, tmp_path):
    train(toy_config, table, tmp_path / "run")
    moved = tmp_path / "elsewhere.npy"
    os.replace(table, moved)
    with pytest.raises(ValueError, match="data.name"):
        train(toy_config, moved, tmp_path / "run")  # a name is what the run says of itself


def test_data_given_in_python(toy_config, tmp_path):
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    base = dict(workdir=tmp_path / "run", training=TOY["training"] | {"n_iters": 6})
    sde_score.train(str(toy_config), workdir=tmp_path / "run", data=x, **TOY)
    with pytest.raises(ValueError, match="data have changed"):
        sde_score.train(str(toy_config), data=torch.cat([x, x[:50] + 1]), **base)
    assert sde_score.train(str(toy_config), data=x.clone(), **base).step == 6


def test_another_seed(toy_config, table, tmp_path):
    train(toy_config, table, tmp_path / "run")
    before = content(tmp_path / "run")
    with pytest.raises(ValueError, match=r"seed"):
        train(toy_config, table, tmp_path / "run", seed=1)
    assert content(tmp_path / "run") == before


PLUGIN = '''
import torch
from sde_score.sdes import SDES, LinearSDE


@SDES.register("mine_to_resume")
class Mine(LinearSDE):
    def drift_coeff(self, t):
        return -4 * t

    def diffusion_coeff(self, t):
        return torch.sqrt(8 * t)
'''


def test_another_plugin(toy_config, table, tmp_path, monkeypatch, fresh_registries):
    monkeypatch.setenv("SDE_SCORE_TRUSTED", str(tmp_path / "trusted"))
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    more = dict(plugins=(str(plugin),), sde="mine_to_resume")
    train(toy_config, table, tmp_path / "run", **more)
    before = content(tmp_path / "run")
    saved = load_checkpoint(tmp_path / "run").config["plugins"]
    assert list(saved) == ["mine.py"] and len(saved["mine.py"]) == 64
    fresh_registries()
    plugin.write_text(PLUGIN.replace("-4 * t", "-3 * t"))
    longer = TOY["training"] | {"n_iters": 6}
    with pytest.raises(ValueError, match=r"plug-in mine.py has changed.*--overwrite"):
        train(toy_config, table, tmp_path / "run", training=longer, **more)
    assert content(tmp_path / "run") == before
    fresh_registries()
    plugin.write_text("# a comment\n" + PLUGIN.replace("-4 * t", "(-4 * t)"))  # the same code
    assert train(toy_config, table, tmp_path / "run", training=longer, **more).step == 6
