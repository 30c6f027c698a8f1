"""Pictures while a model trains: off is off, none costs a checkpoint, together they cost a tenth of the time."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sde_score.run import load
from sde_score.run.snapshot import Snapshots

module = sys.modules["sde_score.run.snapshot"]


@pytest.mark.parametrize("off", ["snapshot_freq=0", "snapshot_samples=0"])
def test_off_means_off_also_at_the_end(cli, digits_config, tmp_path, off, monkeypatch):
    monkeypatch.setattr(module, "sample", lambda *args, **kwargs: pytest.fail("samples were drawn"))
    answer = cli("train", f"--config={digits_config}", f"--workdir={tmp_path}/run", f"--config.training.{off}",
                 "--config.training.n_iters=10", "--json")  # fmt: skip
    assert answer.json["status"] == "done" and not list((tmp_path / "run").glob("samples/*"))
    assert "action" not in answer.err


@pytest.mark.parametrize("error", [ValueError, RuntimeError, MemoryError, OSError, KeyError])
def test_a_picture_that_fails_costs_no_checkpoint(cli, digits_config, tmp_path, error, monkeypatch):
    def broken(*args, **kwargs):
        raise error("no room for it")

    monkeypatch.setattr(module, "save_picture_of", broken)
    answer = cli("train", f"--config={digits_config}", f"--workdir={tmp_path}/run", "--json",
                 "--config.training.n_iters=10")  # fmt: skip
    assert answer.json["status"] == "done" and "no room for it" in answer.err
    assert (tmp_path / "run/checkpoints/step_00000010.pt").is_file()


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def snapshots(digits_run, tmp_path, monkeypatch):
    """Snapshots whose sampler takes `seconds` for each step of each sample; the pictures' sizes and the words."""
    run = load(shutil.copytree(digits_run, tmp_path / "run"))
    clock, drawn, said = Clock(), [], []
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "save_picture_of", lambda run, path, x: drawn.append(len(x)))
    seconds = {"per_sample": 0.0, "steps": 10}

    def sampling(run, num, *, callback, **settings):
        for step in range(1, 11):
            clock.now += seconds["per_sample"] * num
            callback(SimpleNamespace(step=step, steps=seconds["steps"]))
        return SimpleNamespace(x=np.zeros(num))

    monkeypatch.setattr(module, "sample", sampling)
    action = Snapshots(run, 8, 0, say=said.append)
    state = SimpleNamespace(ema=None, model=run.model, step=1, seconds=0.0)
    return SimpleNamespace(action=action, state=state, seconds=seconds, drawn=drawn, said=said, clock=clock)


def test_cheap_pictures_are_whole_and_nothing_is_said(snapshots):
    snapshots.seconds["per_sample"] = 0.01
    for _ in range(5):
        snapshots.action(snapshots.state)
    assert snapshots.drawn == [8] * 5 and not snapshots.said


def test_dear_pictures_get_fewer_samples_then_none_and_each_is_said_once(snapshots):
    snapshots.seconds["per_sample"] = 0.2  # 16 s for 8 samples of 10 steps
    snapshots.action(snapshots.state)
    assert snapshots.drawn == [5] and "16 s" in snapshots.said[0] and "snapshot_samples" in snapshots.said[0]
    snapshots.action(snapshots.state)
    snapshots.action(snapshots.state)
    assert snapshots.drawn == [5] and len(snapshots.said) == 2 and "sde-score sample --workdir=" in snapshots.said[1]
    snapshots.state.seconds = 2000.0  # long enough for a whole one
    snapshots.action(snapshots.state)
    assert snapshots.drawn == [5, 8]


def test_the_share_of_many_pictures_stays_a_tenth(snapshots):
    snapshots.seconds["per_sample"] = 0.1
    for step in range(1, 200):
        snapshots.state.seconds = 10.0 * step
        snapshots.action(snapshots.state)
    assert snapshots.action.spent < 0.13 * 2000 and len(snapshots.drawn) > 15


def test_a_sampler_of_unknown_length_is_stopped(snapshots):
    snapshots.seconds |= {"per_sample": 1.0, "steps": None}
    snapshots.action(snapshots.state)
    assert snapshots.drawn == [] and snapshots.clock.now < 80 + 40 and "No sample grid" in snapshots.said[-1]


def test_a_long_one_is_announced(snapshots):
    snapshots.seconds["per_sample"], snapshots.state.seconds = 1.0, 5000.0
    snapshots.action(snapshots.state)
    assert snapshots.drawn == [8] and snapshots.said == ["Step 1: drawing 8 samples, about 80 s."]


def test_tensorboard_shows_the_pictures(cli, digits_config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    answer = cli("train", f"--config={digits_config}", f"--workdir={tmp_path}/run", "--config.training.n_iters=10",
                 "--config.training.tensorboard=True")  # fmt: skip
    assert answer.code == 0
    events = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"images": 0}).Reload()
    (image,) = events.Images("samples")
    with Image.open(Path(tmp_path / "run/samples/step_00000010.png")) as picture:
        assert image.step == 10 and (image.width, image.height) == picture.size


def test_signed_data_have_a_range_in_snapshots(tmp_path):
    """Data in [-1, 1] are neither half black nor clipped: the picture spans all greys."""
    import sde_score

    x = np.tile(np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8), (60, 1, 1, 1))
    x = x + np.random.default_rng(0).normal(size=(60, 1, 1, 1)).astype(np.float32) * 0.01
    sde_score.train(
        "toy2d", workdir=tmp_path / "run", data=x, model={"name": "unet(width=8, mult=(1,), attention=())"},
        training={"n_iters": 1, "batch_size": 4, "snapshot_samples": 4, "snapshot_freq": 1, "tensorboard": False},
        sampling={"steps": 2},
    )  # fmt: skip
    from sde_score.run.pictures import held_out, run_range, save_picture_of

    run = load(tmp_path / "run", data=x)
    low, high = run_range(run, held_out(run))
    assert low == pytest.approx(-1, abs=0.05) and high == pytest.approx(1, abs=0.05)
    picture = np.asarray(Image.open(save_picture_of(run, tmp_path / "a.png", held_out(run))).convert("L"))
    greys = picture[: picture.shape[0] - 24]
    share = ((greys > 10) & (greys < 245)).sum() / (greys < 255).sum()
    assert share > 0.85  # on a scale from 0 to 1 half would be black
    assert (tmp_path / "run/samples/step_00000001.png").is_file()
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "done"
