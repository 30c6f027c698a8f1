"""Three newcomers with data of their own: the README's lines as they stand there, but trained for a few steps only."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SECTION = README[README.index("## Your own data") : README.index("## Training")]
LINES = [line for block in re.findall(r"```\n(.*?)```", SECTION, flags=re.S) for line in block.splitlines() if line]
SHORT = ("--config.training.n_iters=4", "--config.training.tensorboard=False")


def type_in(cli, name: str) -> list[dict]:
    """Type the lines about the run `name`; the JSON answers of the commands."""
    answers = []
    for line in LINES:
        words = shlex.split(line, comments=True)
        if words[0] != "sde-score" or not any(name in word for word in words):
            continue
        answer = cli(*words[1:], *(SHORT if words[1] == "train" else ()), "--json")
        assert answer.code == 0, f"{line}\n{answer.err}"
        answers.append(json.loads(answer.out))
    return answers


@pytest.mark.slow
def test_two_hundred_grey_pictures(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for k, x in enumerate(np.random.default_rng(0).integers(0, 256, (40, 40, 56), dtype=np.uint8)):
        Image.fromarray(x).save(f"photos/{k:03d}.png")
    look, trained, drawn, found = type_in(cli, "photos")
    assert look["overview"]["shape"] == [1, 40, 56] and look["overview"]["levels"] == 256
    assert trained["step"] == 4 and drawn["num"] == 64
    assert found["bits_per_dim"]["levels"] == 256 and found["num"] == look["overview"]["counts"]["test"]
    assert np.load(drawn["files"]["npz"])["x"].shape == (64, 1, 40, 56)


@pytest.mark.slow
def test_signals(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    g, t = np.random.default_rng(0), np.linspace(0, 3, 300)
    x = [np.stack([300 + 40 * np.sin(f * t), 5 * np.cos(f * t)]) for f in g.uniform(5, 9, 60)]
    np.save("signals.npy", np.stack(x))
    _, drawn = type_in(cli, "signals")
    samples = np.load(drawn["files"]["npz"])["x"]
    assert samples.shape == (100, 2, 300) and Path(drawn["files"]["png"]).is_file()
    assert 200 < samples[:, 0].mean() < 400 and abs(samples[:, 1].mean()) < 5  # in the units of each channel


@pytest.mark.slow
def test_a_table(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    g, n = np.random.default_rng(0), 300
    names = ("age", "income", "height", "weight", "day", "share", "score")
    columns = [
        g.gamma(9, 5, n), np.exp(g.normal(10, 0.4, n)), g.normal(170, 9, n), g.normal(76, 9, n),
        2.46e6 + g.uniform(0, 300, n), g.beta(2, 5, n), g.normal(20, 3, n),
    ]  # fmt: skip
    rows = [",".join(map(str, row)) for row in zip(*columns)]
    Path("people.csv").write_text("\n".join([",".join(names), *rows]) + "\n")
    _, drawn, found = type_in(cli, "people")
    lines = Path(drawn["files"]["csv"]).read_text().splitlines()
    assert lines[0] == ",".join(names) and len(lines) == 1001
    samples = dict(zip(names, np.loadtxt(drawn["files"]["csv"], delimiter=",", skiprows=1).T))
    assert (samples["income"] > 0).all() and ((samples["share"] > 0) & (samples["share"] < 1)).all()
    assert len(np.unique(samples["day"])) > 900 and abs(np.median(samples["day"]) - 2.46e6) < 1000
    unusual = Path("unusual.csv").read_text().splitlines()
    assert len(unusual) == found["num"] + 1 and "bits_per_dim" not in found
