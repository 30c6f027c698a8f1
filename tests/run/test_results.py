"""Results: names that say what they are, nothing lost, files that are what their suffix says, reports that can always
be drawn."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_score.data import DataInfo, Subset
from sde_score.run import load
from sde_score.run.evaluate import AS_MANY, HELD_OUT, evaluate, likelihood
from sde_score.run.report import try_report, write_run_report
from sde_score.run.results import check_tag, costs_nothing, result_name, write_table
from sde_score.run.sample import Samples, load_samples, sample, save_samples


@pytest.fixture
def run(digits_run, tmp_path):
    return load(shutil.copytree(digits_run, tmp_path / "run"))


def names(folder: Path, suffix: str = ".json") -> set[str]:
    return {p.stem for p in folder.glob(f"*{suffix}")}


# Names


def test_another_setting_is_another_file_and_the_same_one_the_same(run):
    full = likelihood(run, num=6)
    before = Path(full["file"]).read_bytes()
    others = [
        likelihood(run, num=2),
        likelihood(run, num=6, seed=1),
        likelihood(run, num=6, repeats=2),
        likelihood(run, num=6, baselines=False),
        likelihood(run, "train", num=6),
        run.likelihood(num=6, solver="rk4(steps=2)"),
        run.likelihood(num=6, solver="euler(steps=4)"),
        run.likelihood(num=6, space="model"),
        likelihood(load(run.workdir, ema=False), num=6),  # other weights of the same step
        likelihood(load(run.workdir, checkpoint=run.workdir / "checkpoints/step_00000010.pt"), num=6),
    ]
    files = [found["file"] for found in (full, *others)]
    assert len(set(files)) == len(files) and Path(full["file"]).read_bytes() == before
    again = likelihood(run, num=6)
    assert again["file"] == full["file"] and again["nats"] == full["nats"]
    assert Path(others[0]["file"]).name.startswith("test_first2_rk4_step20_seed0_")


def test_names_of_samples(run):
    files = [save_samples(drawn, run) for drawn in (run.sample(3), run.sample(3, steps=2), run.sample(2))]
    assert len({f["npz"] for f in files}) == 3
    assert Path(files[0]["npz"]).name.startswith("pc_reverse_diffusion_none_n3_step20_seed0_")
    assert save_samples(run.sample(3), run)["npz"] == files[0]["npz"]


def test_a_tag_that_is_taken_keeps_what_it_named(run, capsys):
    first, second = run.sample(4), run.sample(2)
    save_samples(replace(first, trajectory=None), run, "mine")
    save_samples(second, run, "mine")
    assert "mine are now called mine_1" in capsys.readouterr().err
    folder = run.workdir / "samples"
    assert len(np.load(folder / "mine.npz")["x"]) == 2 and len(np.load(folder / "mine_1.npz")["x"]) == 4
    assert json.loads((folder / "mine_1.json").read_text())["num"] == 4 and (folder / "mine_1.png").is_file()
    save_samples(second, run, "mine")  # the same again
    assert names(folder, ".npz") == {"mine", "mine_1"}


@pytest.mark.parametrize(
    "tag",
    ["../../evil", "a/b", "a\\b", "..", ".", "", ".hidden", "-x", "a b", "a\0", "/abs", "x_trajectory", "x" * 300],
)
def test_a_tag_is_a_plain_name(cli, digits_run, tag):
    with pytest.raises(ValueError, match="plain name"):
        check_tag(tag)
    before = sorted(digits_run.parent.rglob("*"))
    answer = cli("sample", f"--workdir={digits_run}", f"--tag={tag}", "--num=1")
    assert answer.code == 2 and "plain name" in answer.err
    assert sorted(digits_run.parent.rglob("*")) == before  # nothing was drawn or written


def test_words_of_a_name_are_safe():
    assert "/" not in result_name(["../a b", None, "c"], {}) and result_name(["a"], {"x": 1}) != result_name(["a"], {})


# Formats

MAGIC = {
    ".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff", ".jpeg": b"\xff\xd8\xff", ".webp": b"RIFF", ".gif": b"GIF8",
    ".pdf": b"%PDF", ".svg": b"<?xml", ".npz": b"PK", ".npy": b"\x93NUMPY",
}  # fmt: skip
SHAPES = {"vector": (4, 3), "plane": (4, 2), "wide": (4, 40), "series": (4, 2, 30), "image": (4, 1, 6, 5),
          "volume": (4, 1, 4, 5, 6)}  # fmt: skip


def made(shape, levels=None):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 500 + 1000
    if levels:
        x = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * levels).to(torch.uint8)
    way = None if levels else torch.stack([x * 3, x * 2, x])
    return Samples(x, DataInfo("own", shape[1:], levels=levels), {}, {}, trajectory=way, times=[1.0, 0.5, 0.0])


@pytest.mark.parametrize("suffix", MAGIC)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_file_is_what_its_suffix_says(kind, suffix, tmp_path):
    path = made(SHAPES[kind]).save(tmp_path / f"new/a{suffix.upper() if kind == 'image' else suffix}")
    assert path.read_bytes().startswith(MAGIC[suffix])
    if suffix in (".png", ".jpg", ".webp", ".gif"):
        with Image.open(path) as picture:
            assert picture.format == {".jpg": "JPEG"}.get(suffix, suffix[1:].upper())
            assert getattr(picture, "n_frames", 1) == (3 if suffix == ".gif" else 1)
    if suffix == ".npy":
        assert np.array_equal(np.load(path), made(SHAPES[kind]).stored.numpy())


@pytest.mark.parametrize("suffix", [".txt", "", ".tiff", ".json", ".npz.gz"])
def test_another_suffix_is_refused(suffix, tmp_path):
    with pytest.raises(ValueError, match=r"\.png.*\.csv.*a"):
        made((4, 1, 6, 5)).save(tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(ValueError, match="trajectory=True"):
        made((4, 1, 6, 5), levels=17).save(tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"vectors.*\.npz"):
        made((4, 1, 6, 5)).save(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="grids|pip install imageio-ffmpeg|mp4|trajectory"):
        made((4, 1, 6, 5), levels=17).save(tmp_path / "a.mp4")


def test_a_table_holds_every_digit_under_its_name(tmp_path):
    samples = made((5, 3))
    samples.cond["y"] = torch.tensor([2, 0, 1, 1, 2])
    rows = list(csv.reader(samples.save(tmp_path / "a.csv").open()))
    assert rows[0] == ["x0", "x1", "x2", "y"] and [row[3] for row in rows[1:]] == ["2", "0", "1", "1", "2"]
    read = torch.tensor([[float(v) for v in row[:3]] for row in rows[1:]], dtype=torch.float64)
    assert torch.equal(read.float(), samples.stored)


def test_mp4_needs_ffmpeg_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"pip install imageio-ffmpeg.*\.gif"):
        made((4, 1, 6, 5)).save(tmp_path / "a.mp4")


def test_mp4(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    assert made((4, 1, 6, 5)).save(tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_movie_ends_in_the_samples(cli, run, tmp_path):
    samples = sample(run, 5, trajectory=4)
    assert torch.equal(samples.trajectory[-1], samples.x) and samples.times[-1] == 0.0 and len(samples.times) == 4
    assert samples.times == sorted(samples.times, reverse=True)
    movie = tmp_path / "out.gif"
    base = ("sample", f"--workdir={run.workdir}", "--num=3", "--config.sampling.steps=8")
    assert cli(*base, f"--movie={movie}", "--frames=6", "--json").json["files"]["movie"] == str(movie)
    with Image.open(movie) as animation:
        assert animation.n_frames == 6
    for bad in ("out.avi", "out"):
        answer = cli(*base, f"--movie={tmp_path / bad}")
        assert answer.code == 2 and ".gif or .mp4" in answer.err


# Values of single samples


def test_values_of_single_samples(cli, run, tmp_path):
    found = likelihood(run, num=10)  # more than a batch
    values = found.per_sample
    assert values["index"].tolist() == list(range(10))
    assert values["label"].tolist() == run.data.test[range(10)].y.tolist()
    assert float(values["bits_per_dim"].mean()) == pytest.approx(found["bits_per_dim"]["mean"], rel=1e-12)
    assert float(values["nats"].mean()) == pytest.approx(found["nats"]["mean"], rel=1e-12)
    # bits/dim from nats of the unit cube: -log2 p / D + log2 K
    expected = -values["nats"] / (64 * np.log(2)) + np.log2(17)
    assert torch.allclose(values["bits_per_dim"], expected, rtol=1e-9)
    alone = likelihood(run, num=3).per_sample["nats"]
    assert torch.allclose(alone, values["nats"][:3], rtol=1e-4)  # in place, whatever the batch
    table = tmp_path / "scores.csv"
    answer = cli("likelihood", f"--workdir={run.workdir}", "--num=10", f"--per_sample={table}")
    assert answer.code == 0
    rows = list(csv.DictReader(table.open()))
    assert [float(row["nats"]) for row in rows] == values["nats"].tolist()
    assert table.read_text() == Path(found["file"]).with_suffix(".csv").read_text()
    assert np.array_equal(np.load(Path(found["file"]).with_suffix(".npz"))["nats"], values["nats"].numpy())


@pytest.mark.parametrize("name", ["a.txt", "a", "missing/a.csv"])
def test_a_table_that_cannot_be_written_is_refused_first(cli, digits_run, tmp_path, name):
    answer = cli("likelihood", f"--workdir={digits_run}", f"--per_sample={tmp_path / name}")
    assert answer.code == 2 and "--per_sample" in answer.err


def test_unequal_columns_are_refused(tmp_path):
    with pytest.raises(ValueError):
        write_table(tmp_path / "a.csv", {"a": [1, 2], "b": [1]})


# Evaluations


def test_the_reference_is_held_out_data(run):
    """Training data against itself has a copy rate of 1; held-out data about that of the quantile."""
    found = run.evaluate(metrics=("copy_rate", "fd"), num_samples=50)
    rate = {who: {m["name"]: m for m in rows}["copy_rate"]["value"] for who, rows in found["metrics"].items()}
    assert rate[HELD_OUT] < 0.2
    assert found["num_reference"] == [148, 149] and {m["n"] for m in found["metrics"][HELD_OUT]} == {148}
    assert {m["n"] for m in found["metrics"][AS_MANY]} == {50}
    # halves of one law
    fd = {who: {m["name"]: m for m in rows}["fd"]["value"] for who, rows in found["metrics"].items()}
    assert fd[HELD_OUT] < fd[AS_MANY]


@pytest.mark.parametrize("num, test", [(1, 4), (2, 4), (4, 4), (1, 1), (3, 2)])
@pytest.mark.parametrize("features", ["pixels", "classifier(hidden=4, max_steps=2)"])
def test_the_smallest_sets_have_reasons_in_their_cells(digits_run, tmp_path, num, test, features):
    run = load(shutil.copytree(digits_run, tmp_path / "run"))
    run._data = replace(run.data, test=Subset(run.data.test, torch.arange(test)))
    found = run.evaluate(num_samples=num, features=features, metrics=("fd", "kid", "mmd", "prdc", "copy_rate",
                         "sliced_wasserstein"))  # fmt: skip
    assert found["num"] == num and found["num_real"] == test
    for row in found["metrics"].values():
        assert all((m["value"] is None) == bool(m["error"]) for m in row)
    assert any(m["error"] for m in found["metrics"]["model"])
    page = write_run_report(run, redraw=False).read_text()
    assert "at least" in page and "Sample quality" in page


def test_samples_drawn_before_are_evaluated(cli, run, tmp_path):
    samples = run.sample(20, seed=4)
    files = save_samples(samples, run, "mine")
    given = evaluate(run, samples=samples)
    for source in ("mine", files["npz"]):
        found = cli("evaluate", f"--workdir={run.workdir}", f"--samples={source}", "--json").json
        assert found["metrics"]["model"][0]["value"] == given["metrics"]["model"][0]["value"]
        assert found["num"] == 20 and found["seed"] == 4 and found["step"] == 20
    assert (load_samples(run, "mine").stored == samples.stored).all()
    assert "n20" in Path(given["file"]).name
    for source, words in (("nine", "'mine'"), (tmp_path / "none.npz", "There are no samples")):
        answer = cli("evaluate", f"--workdir={run.workdir}", f"--samples={source}")
        assert answer.code == 1 and words in answer.err
    for x, words in ((torch.zeros(3, 1, 4, 4, dtype=torch.uint8), "shape"), (torch.zeros(3, 1, 8, 8), "uint8"),
                     (torch.full((3, 1, 8, 8), 40, dtype=torch.uint8), "0 to 16")):  # fmt: skip
        np.savez(tmp_path / "other.npz", x=x.numpy())
        with pytest.raises(ValueError, match=words):
            load_samples(run, tmp_path / "other.npz")


@pytest.mark.parametrize("section", [{"features": "pixel"}, {"metrics": ("fid",)}])
def test_a_misspelt_metric_is_said_before_the_sampling(run, monkeypatch, section):
    module = sys.modules["sde_score.run.evaluate"]  # the package has a function of that name
    monkeypatch.setattr(module, "sample", lambda *a, **k: pytest.fail("sampled first"))
    with pytest.raises(ValueError, match="Unknown"):
        run.evaluate(**section)


@pytest.mark.parametrize("features", ["pixels", "random_conv", "random_conv(width=4)"])
def test_features_of_continuous_data_are_those_asked_for(tmp_path, features):
    """Real numbers come to a network of features in units of their range, and to `pixels` as they are."""
    import sde_score

    x = np.exp(np.random.default_rng(0).normal(size=(60, 1, 8, 8))).astype(np.float32) * 300
    run = sde_score.train(
        "toy2d", workdir=tmp_path / "run", data=x, model={"name": "unet(width=8, mult=(1,), attention=())"},
        training={"n_iters": 1, "batch_size": 4, "snapshot_freq": 0, "tensorboard": False}, sampling={"steps": 2},
        evaluation={"num_samples": 4, "features": features, "metrics": ("fd",)},
    )  # fmt: skip
    (fd,) = run.evaluate()["metrics"]["model"]
    assert fd["provenance"]["feature"].startswith(features.partition("(")[0])
    name, function = sys.modules["sde_score.run.evaluate"]._features(run)
    seen = function(run.data.test[range(4)].x, "here").x
    if features == "pixels":
        assert torch.equal(seen, run.data.test[range(4)].x.flatten(1).double())
    else:
        assert 0 < float(seen.abs().max()) < 30  # not those of values in the thousands


# Reports

STRANGE = {
    "not json": "{",
    "a list": "[1, 2]",
    "empty": "",
    "bytes": "\x00\x01",
    "an object of nothing": "{}",
    "nulls": '{"step": null, "num": null, "metrics": null, "nats": null, "bits_per_dim": null, "sampling": null}',
    "words for numbers": '{"step": "late", "bits_per_dim": {"mean": "x", "stderr": []}, "nats": 3, "sampling": 7}',
    "not finite": '{"step": NaN, "bits_per_dim": {"mean": Infinity, "stderr": NaN}, "baselines": {"a": {"mean": NaN}}}',
    "negative": '{"step": 20, "bits_per_dim": {"mean": -3.2, "stderr": 0.1}, "baselines": {"a": {"mean": 1e300}}}',
    "huge": '{"step": 20, "bits_per_dim": {"mean": -1e308, "stderr": 1e308}, "baselines": {"a": {"mean": 1e308}}}',
    "other metrics": '{"metrics": {"model": [{"name": "fd", "value": null, "error": "too few"}], "x": 3}}',
    "foreign metrics": '{"metrics": {"model": [1, 2]}}',
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_report_can_always_be_drawn(run, what):
    likelihood(run, num=2)
    for folder in ("samples", "likelihood", "eval"):
        (run.workdir / folder).mkdir(exist_ok=True)
        (run.workdir / folder / "strange.json").write_text(STRANGE[what])
        (run.workdir / folder / "strange.png").write_bytes(b"no picture")
    (run.workdir / "run.json").write_text(STRANGE[what])
    (run.workdir / "plots/loss.png").write_bytes(b"")
    page = write_run_report(run, redraw=False).read_text()
    assert page.count("Likelihood of the test data") >= 1 and "</html>" in page
    assert "Data and curves" in page and page.count("data:image/png") in (2, 3)  # the data and the loss by noise
    if what in ("not json", "a list", "empty", "bytes"):
        assert page.count("cannot be shown") >= 3


def test_older_weights_come_last_and_are_marked(run):
    likelihood(load(run.workdir, checkpoint=run.workdir / "checkpoints/step_00000010.pt"), num=2)
    likelihood(run, num=2)
    page = write_run_report(run).read_text()
    of = "Of the first 2 of 297 test samples, seed 0, weights of step"
    assert page.index(f"{of} 20") < page.index(f"{of} 10")
    assert "(older weights, of step 10)" in page and "(older weights, of step 20)" not in page


def test_a_report_that_fails_costs_no_result(cli, run, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no ink\nleft")

    monkeypatch.setattr("sde_score.run.report.write_report", broken)
    for command in ("sample", "likelihood", "evaluate"):
        answer = cli(command, f"--workdir={run.workdir}", "--json", *(["--num=2"] if command != "evaluate" else []))
        assert answer.code == 0 and answer.json and "The report could not be written: no ink" in answer.err
    assert try_report(run) is None
    assert cli("report", f"--workdir={run.workdir}").code == 1  # there it is the result


def test_a_picture_that_fails_costs_no_numbers(cli, run, monkeypatch):
    def broken(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(sys.modules["sde_score.run.sample"], "save_picture_of", broken)
    monkeypatch.setattr("sde_score.visual.movies.film_strip", broken)
    answer = cli("sample", f"--workdir={run.workdir}", "--num=2", "--tag=mine", "--json")
    files = answer.json["files"]
    assert Path(files["npz"]).is_file() and Path(files["json"]).is_file() and "png" not in files
    assert "The picture of the samples could not be made: no room" in answer.err
    with costs_nothing("x"):
        raise ValueError("y")
    with pytest.raises(KeyboardInterrupt), costs_nothing("x"):
        raise KeyboardInterrupt


def test_the_density_of_logarithms_is_drawn_where_there_is_one(cli, tmp_path):
    x = np.exp(np.random.default_rng(0).normal(size=(120, 2)))
    np.savetxt(tmp_path / "two.csv", x, delimiter=",", header="a,b", comments="")
    flags = ("--config.training.n_iters=3", "--config.data.codec=scaler(log=('a', 'b'))")
    answer = cli("train", f"--data={tmp_path}/two.csv", f"--workdir={tmp_path}/run", *flags)
    assert answer.code == 0 and "could not be made" not in answer.err, answer.err
    assert (tmp_path / "run/plots/density.png").is_file()
