"""`train --data=PATH` and `sde-score data PATH`: a configuration is chosen from what is found, said, and can be
overridden."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from sde_score.config import default_config, read_run
from sde_score.data import from_arrays
from sde_score.run import automatic
from sde_score.run.automatic import configure, fitting_size

CPU = torch.device("cpu")
FEW = ("--config.training.n_iters=3", "--config.training.snapshot_freq=0", "--config.training.tensorboard=False")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (40, 12, 16), dtype=np.uint8)
    for k, one in enumerate(values):
        Image.fromarray(one).save(folder / f"{k:02d}.png")
    return folder


def test_sizes_of_images():
    assert fitting_size({(40, 56): 9}, 3072) is None  # as they should be
    assert fitting_size({(240, 320): 9}, 3072) == (48, 64)  # in their proportions
    assert fitting_size({(240, 320): 5, (480, 640): 2, (60, 60): 1}, 3072) == (40, 56)  # 45x60 at most
    assert fitting_size({(100, 100): 2, (50, 300): 2, (300, 50): 2}, 10**6) == (48, 48)  # none larger than the smallest
    assert fitting_size({(4, 4): 2, (4, 5): 2}, 3072) == (8, 8)
    for sizes in ({(777, 333): 1, (778, 334): 3}, {(31, 999): 2}):
        height, width = fitting_size(sizes, 3072)
        assert height % 8 == width % 8 == 0 and height * width <= 3072


def test_choices_follow_kind_size_and_number(monkeypatch):
    cost = {"mlp": (0.01, 0.001), "unet": (0.1, 0.01)}
    monkeypatch.setattr(automatic, "_measure", lambda config, *rest: cost[config.model.name.partition("(")[0]])
    g = torch.Generator().manual_seed(0)

    def chosen(x, *, device=CPU, minutes=None, y=None, given=None):
        return configure(from_arrays(x, y), default_config(), given, device=device, minutes=minutes)

    rows = chosen(torch.randn(2000, 7, generator=g) * 3)
    assert rows.config.model.name.startswith("mlp(") and rows.config.likelihood.trace == "exact"
    assert "rows of 7 numbers" in rows.reasons[0] and "mean 0 and deviation 1" in rows.reasons[4]
    steps, batch = rows.config.training.n_iters, rows.config.training.batch_size
    assert 0.8 < steps * batch / 1800 / automatic.PASSES < 1.2  # as many passes as are enough
    wide = chosen(torch.randn(2000, 60, generator=g))
    assert wide.config.likelihood.trace != "exact"

    series = chosen(torch.randn(500, 2, 300, generator=g))
    assert series.config.model.name.startswith("unet(") and "series of 300 steps, 2 channels" in series.reasons[0]
    assert series.config.training.n_iters == 1000  # nine tenths of two minutes at 0.1 s, in round numbers
    assert chosen(torch.randn(500, 2, 300, generator=g), minutes=1).config.training.n_iters == 540
    assert series.config.training.max_seconds == pytest.approx(120 * 1.2)

    grey = torch.randint(0, 256, (300, 1, 8, 8), generator=g).to(torch.uint8)
    images = chosen(grey)
    sigma = float((grey.double() / 127.5 - 1).std())
    chosen_sigma = float(images.config.model.parameterization.partition("=")[2].rstrip(")"))
    assert chosen_sigma == pytest.approx(sigma, abs=0.015)  # of the training part, to two digits
    assert "grey, 256 levels" in images.reasons[0] and "random_flip" in images.reasons[4]
    on_a_gpu = chosen(grey, device=torch.device("cuda"))
    assert "width=64" in on_a_gpu.config.model.name and on_a_gpu.config.training.max_seconds > 1000

    y = torch.arange(300) % 3
    assert chosen(grey, y=y).config.model.class_conditional and "told the class" in chosen(grey, y=y).reasons[4]
    many = torch.arange(300) % 100
    assert not chosen(grey, y=many).config.model.class_conditional and "too few" in chosen(grey, y=many).reasons[4]

    own = chosen(grey, given={"sde": "ve", "training": {"batch_size": 7}, "model": {"name": "unet(width=8)"}})
    assert (own.config.sde, own.config.training.batch_size, own.config.model.name) == ("ve", 7, "unet(width=8)")
    assert "of 7 samples" in own.reasons[3] and "unet(width=8)" in own.reasons[1]
    short = chosen(grey, given={"training": {"n_iters": 12}})
    assert short.config.training.n_iters == 12 and short.reasons[3].split()[1] == "12"  # what is said is what is done
    with pytest.raises(ValueError, match="learnt from one"):
        chosen(torch.randn(2, 3))


def test_a_folder_in_one_command(cli, pictures, tmp_path):
    run = f"--workdir={tmp_path}/run"
    answer = cli("train", f"--data={pictures}", run, *FEW, "--config.sde=ve(sigma_max=20.)")
    assert answer.code == 0, answer.err
    said = answer.err.splitlines()
    assert [line.split()[0] for line in said[:5]] == ["data", "network", "process", "length", "besides"]
    config = read_run(tmp_path / "run")
    assert config.sde == "ve(sigma_max=20.)" and config.training.n_iters == 3 and config.data.name == str(pictures)
    again = cli("train", f"--data={pictures}", run, "--json")  # goes on with the configuration that was chosen
    assert again.json["step"] == 3
    assert cli("sample", run, "--num=2", "--config.sampling.steps=2").code == 0
    other = cli("train", f"--data={tmp_path}", run)
    assert other.code == 2 and str(pictures) in other.err and "another --workdir" in other.err
    both = cli("train", f"--data={pictures}", "--config=digits", f"--workdir={tmp_path}/b")
    assert both.code == 2 and "--config=digits --config.data.name=" in both.err
    assert not (tmp_path / "b").exists()


def test_a_look_at_a_folder(cli, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    Image.open(pictures / "00.png").save(pictures / "again.png")
    Image.new("L", (32, 24), 9).save(pictures / "large.png")
    found = cli("data", str(pictures), "--json").json
    view = found["overview"]
    assert sum(view["counts"].values()) == 42 and view["shape"] == [1, 8, 16]
    (files,) = view["files"]
    assert list(files["broken"]) == ["broken.png"] and files["sizes"] == {"12x16": 41, "24x32": 1}
    repeats = sum(view["duplicates"][part]["count"] for part in ("train", "test", "test in train"))
    assert repeats == 1
    assert found["choice"]["data"]["image_size"] == [8, 16] and "2 sizes, 41 of them 12x16" in found["reasons"][0]
    assert (tmp_path / "pictures_data.png").stat().st_size > 100
    assert not list(tmp_path.glob("runs*"))
    words = cli("data", str(pictures))
    assert "broken files: 1: broken.png" in words.out and "train --data would choose:" in words.out
    assert cli("data").code == 2 and cli("data", "a", "b").code == 2
    nothing = cli("data", str(tmp_path / "nowhere.npy"))
    assert nothing.code in (1, 2) and "nowhere.npy" in nothing.err


def test_a_look_at_series(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = np.linspace(0, 1, 50)
    x = np.stack([300 + 40 * np.sin(2 * math.pi * (t + p)) for p in np.linspace(0, 1, 60)])[:, None]
    np.save("waves.npy", x)
    found = json.loads(cli("data", "waves.npy", "--json", "--picture=waves.png").out)
    low, mean, high = next(iter(found["overview"]["ranges"].values()))
    assert [low, mean, high] == pytest.approx([260, 300, 340], abs=1)
    assert (tmp_path / "waves.png").is_file() and not (tmp_path / "waves_data.png").exists()


def test_a_configuration_for_images_and_other_data(cli, tmp_path, monkeypatch):
    """One error, that says what to write, in the place of three in turn."""
    monkeypatch.chdir(tmp_path)
    nameless = cli("train", "--config=images", f"--workdir={tmp_path}/run")
    assert nameless.code == 2 and "--config.data.name=./photos" in nameless.err
    np.save("waves.npy", np.random.default_rng(0).normal(size=(40, 1, 30)))
    np.save("rows.npy", np.random.default_rng(0).normal(size=(40, 3)))
    for name, kind in (("waves.npy", "series"), ("rows.npy", "vector")):
        answer = cli("train", "--config=images", f"--config.data.name={name}", f"--workdir={tmp_path}/run")
        assert answer.code == 2 and f"holds {kind} samples" in answer.err and "train --data=PATH" in answer.err
    plain = cli("train", "--config=digits", "--config.data.name=rows.npy", f"--workdir={tmp_path}/run")
    assert plain.code == 2 and "--config.model.name=mlp" in plain.err
    assert not (tmp_path / "run/config.json").exists()
