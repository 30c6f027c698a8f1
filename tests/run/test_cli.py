"""The commands, end to end, on runs of seconds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sde_score.cli import COMMANDS, main
from sde_score.training import load_checkpoint


def lines_of(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "samples_per_second")} for line in found]


def test_train_leaves_a_run_directory(digits_run):
    names = {p.relative_to(digits_run).as_posix() for p in digits_run.rglob("*")}
    assert {
        "config.json",
        "run.json",
        "metrics.jsonl",
        "log.txt",
        "report.html",
        "checkpoints/latest.json",
        "checkpoints/step_00000020.pt",
        "samples/step_00000010.png",
        "samples/step_00000020.png",
        "plots/loss.png",
    } <= names
    assert not [name for name in names if name.endswith(".tmp")]
    config = json.loads((digits_run / "config.json").read_text())
    assert config["sde"] == "vp" and config["training"]["n_iters"] == 20 and config["sampling"]["t_min"] is None
    facts = json.loads((digits_run / "run.json").read_text())
    assert facts["status"] == "done" and facts["step"] == 20 and {"torch", "command", "time"} <= facts.keys()
    steps = [line["step"] for line in lines_of(digits_run) if "loss" in line]
    assert steps == [5, 10, 15, 20]
    assert "<html" in (digits_run / "report.html").read_text()[:200]


def test_the_same_command_goes_on_and_overwrite_begins_anew(cli, digits_config, digits_run, tmp_path):
    base = ("train", f"--config={digits_config}", f"--workdir={tmp_path}/run", "--json")
    assert cli(*base, "--config.training.n_iters=10").json["step"] == 10
    longer = cli(*base)  # n_iters=20 again: goes on
    assert longer.json["step"] == 20 and "Going on from" in longer.err
    one, two = load_checkpoint(digits_run), load_checkpoint(tmp_path / "run")
    assert all((one.model[k] == two.model[k]).all() for k in one.model)  # as if never stopped
    done = cli("train", f"--workdir={tmp_path}/run", "--json")  # the configuration is that of the run
    assert done.json["step"] == 20 and "Going on from" in done.err
    anew = cli(*base, "--overwrite", "--config.training.n_iters=5", "--config.optim.lr=2e-3")
    assert anew.json["step"] == 5 and "Going on from" not in anew.err
    assert [line["step"] for line in lines_of(tmp_path / "run")][-1] == 5
    assert not (tmp_path / "run/checkpoints/step_00000020.pt").exists()


METHODS = {
    "pc": [],
    "ode": ["--config.sampling.solver=rk4(steps=4)"],
    "sde": ["--config.sampling.solver=euler"],
}


@pytest.mark.parametrize("method", METHODS)
def test_sample(cli, digits_run, tmp_path, method):
    run = shutil.copytree(digits_run, tmp_path / "run")
    flags = [f"--config.sampling.method={method}", *METHODS[method], "--tag=mine", "--seed=3"]
    found = cli("sample", f"--workdir={run}", "--num=10", *flags, "--json").json
    assert found["num"] == 10 and found["seed"] == 3 and found["nfe"] > 0 and found["step"] == 20
    assert found["sampling"]["method"] == method
    files = {p.name for p in (run / "samples").iterdir()}
    assert {"mine.png", "mine.npz", "mine.json", "mine_trajectory.png", "mine_trajectory.gif"} <= files
    assert json.loads((run / "samples/mine.json").read_text())["nfe"] == found["nfe"]
    x = np.load(run / "samples/mine.npz")["x"]
    assert x.shape == (10, 1, 8, 8) and x.dtype == np.uint8 and x.max() <= 16
    # the first three, by themselves: sample i is a function of (seed, i)
    assert cli("sample", f"--workdir={run}", "--num=3", *flags, "--config.sampling.batch_size=2").code == 0
    few = np.load(run / "samples/mine.npz")["x"]
    assert np.abs(few.astype(int) - x[:3]).max() <= 1  # one grey level: rounding of float32 at a boundary


def test_a_copy_of_the_run_directory_suffices(cli, digits_config, tmp_path, monkeypatch):
    assert cli("train", f"--config={digits_config}", f"--workdir={tmp_path}/here").code == 0
    assert cli("sample", f"--workdir={tmp_path}/here", "--num=4", "--tag=a").code == 0
    (tmp_path / "there").mkdir()
    run = shutil.copytree(tmp_path / "here", tmp_path / "there/copy")
    shutil.rmtree(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "there")
    before = np.load(run / "samples/a.npz")["x"]
    assert cli("sample", "--workdir=copy", "--num=4", "--tag=b").code == 0
    assert (np.load(run / "samples/b.npz")["x"] == before).all()
    page = (run / "report.html").read_text()
    assert "Samples: a" in page and page.count("data:image/png;base64,") >= 5  # pictures of both, from the copy


def test_points_of_the_plane_without_their_data(cli, toy_config, tmp_path):
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32))
    base = (f"--workdir={tmp_path}/run", f"--config.data.name={tmp_path}/points.npy")
    assert cli("train", f"--config={toy_config}", *base).code == 0
    (tmp_path / "points.npy").unlink()
    answer = cli("sample", f"--workdir={tmp_path}/run", "--num=5", "--json")
    assert answer.json["num"] == 5 and "cannot be loaded" in answer.err
    assert len(list((tmp_path / "run/samples").glob("pc_reverse_diffusion_none_n5_step20_seed0_*.png"))) == 1


def test_likelihood_of_images(cli, digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    found = cli("likelihood", f"--workdir={run}", "--num=12", "--repeats=2", "--json").json
    assert found["num"] == 12 and found["repeats"] == 2 and found["nfe"] == 16
    bpd = found["bits_per_dim"]
    assert 1 < bpd["mean"] < 10 and 0 < bpd["stderr"] < 1 and bpd["levels"] == 17
    assert found["baselines"]["uniform"]["mean"] == pytest.approx(np.log2(17), abs=1e-6)
    paths = [found.pop("file"), *found.pop("per_sample_files")]
    assert json.loads(Path(paths[0]).read_text()) == found
    words = cli("likelihood", f"--workdir={run}", "--num=12", "--config.likelihood.trace=hutchinson(probes=2)")
    assert words.code == 0 and "bits/dim" in words.out and "±" in words.out
    assert json.loads(Path(paths[0]).read_text()) == found  # another setting is another file


def test_likelihood_of_points(cli, toy_run, tmp_path):
    run = shutil.copytree(toy_run, tmp_path / "run")
    found = cli("likelihood", f"--workdir={run}", "--num=40", "--split=train", "--json").json
    assert "bits_per_dim" not in found and found["num"] == 40
    assert found["truth"]["mean"] > found["nats"]["mean"]  # twenty steps of training
    assert Path(found["file"]).name.startswith("train_first40_rk4_step20_seed0_")


@pytest.mark.parametrize("which", ["digits_run", "toy_run"])
def test_evaluate_and_report(cli, which, request, tmp_path):
    run = shutil.copytree(request.getfixturevalue(which), tmp_path / "run")
    found = cli("evaluate", f"--workdir={run}", "--json").json
    assert found["features"] == "pixels" and found["num"] == 16
    assert {m["name"] for m in found["metrics"]["model"]} >= {"fd"} and "held-out data" in found["metrics"]
    assert json.loads(Path(found["file"]).read_text())["metrics"] == found["metrics"]
    (run / "report.html").unlink()
    assert cli("report", f"--workdir={run}", "--json").json["report"] == str(run / "report.html")
    assert "Sample quality" in (run / "report.html").read_text()


def test_list(cli):
    everything = cli("list", "--json").json
    assert {"sdes", "predictors", "correctors", "samplers", "solvers", "models", "datasets"} <= everything.keys()
    assert all({"name", "signature", "doc", "origin"} == row.keys() for rows in everything.values() for row in rows)
    assert all(row["doc"] for rows in everything.values() for row in rows), "every component has a first line"
    words = cli("list", "sdes", "predictors")
    assert words.code == 0 and "subvp(" in words.out and "ancestral_sampling" in words.out
    assert "langevin" not in words.out


@pytest.mark.parametrize("command", [*COMMANDS])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"sde-score {command}" in out and "--json" in out


def test_without_a_command(cli):
    assert cli().code == 2
    assert "train" in cli("--help").out
    assert cli("--version").out.strip() == "0.1.0"


# What a run is, cannot be changed afterwards; how it is used, can.


@pytest.mark.parametrize(
    "command, flag, old, new",
    [
        ("sample", "sde=ve", "'vp'", "'ve'"),
        ("sample", "model.name=mlp", "unet(width=16", "'mlp'"),
        ("sample", "model.ema_rate=0.5", "0.9", "0.5"),
        ("sample", "data.name=mnist", "'digits'", "'mnist'"),
        ("likelihood", "data.centered=False", "True", "False"),
        ("evaluate", "seed=7", "0", "7"),
        ("train", "optim.lr=0.5", "0.001", "0.5"),
        ("train", "training.batch_size=4", "8", "4"),
        ("train", "training.objective=dsm(weighting='likelihood')", "'dsm'", "weighting='likelihood'"),
    ],
)
def test_a_contradiction_names_both_values(refused, digits_run, command, flag, old, new):
    before = (digits_run / "config.json").read_bytes()
    key = flag.partition("=")[0]
    words = [f"config.{key} is", old, new, "asked for", f"Leave out --config.{key}"]
    refused(command, f"--workdir={digits_run}", f"--config.{flag}", code=2, words=words)
    assert (digits_run / "config.json").read_bytes() == before


def test_another_configuration_contradicts(refused, toy_config, digits_run):
    base = (f"--workdir={digits_run}", f"--config={toy_config}")
    table = refused("sample", *base, "--config.sde=ve", code=2).splitlines()
    assert f"Leave out --config.sde. --config={toy_config} brings the others" in table[0]
    rows = {row.split()[0]: row for row in table[1:]}
    assert {"key", "config.sde", "config.data.name", "config.model.name", "config.training.batch_size"} <= rows.keys()
    assert rows["key"].split() == ["key", "run", "asked", "for"] and "'digits'" in rows["config.data.name"]
    assert rows["config.data.name"].index("'two_moons") == rows["key"].index("asked for")  # a table
    alone = refused("sample", *base, code=2)
    assert f"--config={toy_config} brings them: leave it out" in alone and "Leave out" not in alone


@pytest.mark.parametrize("flag", ["data.workers=0", "training.log_freq=3", "sampling.steps=3"])
def test_what_may_change(cli, digits_run, tmp_path, flag):
    run = shutil.copytree(digits_run, tmp_path / "run")
    answer = cli("train", f"--workdir={run}", f"--config.{flag}", "--config.training.n_iters=22", "--json")
    assert answer.json["step"] == 22


def test_overrides_before_the_configuration(cli, toy_config, tmp_path):
    flags = (
        "--config.training.n_iters=3",
        "--config.sde",
        "subvp",
        "--config",
        toy_config,
        f"--workdir={tmp_path}/run",
    )
    assert cli("train", *flags, "--json").json["step"] == 3
    assert json.loads((tmp_path / "run/config.json").read_text())["sde"] == "subvp"


def test_class_conditional(cli, digits_config, tmp_path):
    base = (f"--workdir={tmp_path}/run",)
    flags = (
        "--config.model.class_conditional=True",
        "--config.training.n_iters=4",
        "--config.training.checkpoint_freq=2",
    )
    assert cli("train", f"--config={digits_config}", *base, *flags).code == 0
    assert cli("sample", *base, "--num=5", "--labels=3,7", "--tag=c").code == 0
    assert np.load(tmp_path / "run/samples/c.npz")["y"].tolist() == [3, 7, 3, 7, 3]
    assert cli("likelihood", *base, "--num=8").code == 0


# Other ways to start it.


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GLOO_SOCKET_IFNAME": "lo"}


def run_module(*argv, **kwargs):
    command = [sys.executable, "-m", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), **kwargs)


def test_as_a_module(digits_run, tmp_path):
    """Bars and messages go to stderr, one JSON object to stdout."""
    run = shutil.copytree(digits_run, tmp_path / "run")
    ended = run_module("sde_score", "train", f"--workdir={run}", "--config.training.n_iters=21", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["step"] == 21
    assert "Going on from" in ended.stderr


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "sde_score", "--")


def test_two_processes_draw_the_same_samples(cli, digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    assert cli("sample", f"--workdir={run}", "--num=13", "--tag=one").code == 0
    ended = run_module(*TORCHRUN, "sample", f"--workdir={run}", "--num=13", "--tag=two", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["num"] == 13  # one process speaks
    one, two = (np.load(run / f"samples/{tag}.npz")["x"] for tag in ("one", "two"))
    assert (one == two).all()


@pytest.mark.slow
def test_two_processes_train_as_one(cli, digits_config, digits_run, tmp_path):
    ended = run_module(
        *TORCHRUN, "train", f"--config={digits_config}", f"--workdir={tmp_path}/run", "--config.device=cpu"
    )
    assert ended.returncode == 0, ended.stderr
    one, two = load_checkpoint(digits_run), load_checkpoint(tmp_path / "run")
    assert two.step == 20
    # dropout differs from process to process, so the weights differ a little; the first losses hardly
    a, b = (next(line for line in lines_of(run) if "loss" in line) for run in (digits_run, tmp_path / "run"))
    assert b["loss"] == pytest.approx(a["loss"], rel=0.05) and b["samples"] == a["samples"]
    assert cli("sample", f"--workdir={tmp_path}/run", "--num=2", "--tag=x").code == 0
    assert one.model.keys() == two.model.keys()
