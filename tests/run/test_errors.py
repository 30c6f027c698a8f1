"""What can be wrong gets one line on stderr that says what to write instead; nothing is lost, nothing executed."""

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_score.training import load_checkpoint

# Misspelt names: the nearest known one. 2: what stands on the line cannot be; 1: the work failed.

MISSPELT = [
    ("--config.trainig.batch_size=3", 2, ["config.trainig", "'training'"]),
    ("--config.training.batch_sise=3", 2, ["config.training.batch_sise", "'batch_size'"]),
    ("--config.sde.name=vp", 2, ["config.sde.name"]),
    ("--wrkdir=x", 2, ["wrkdir", "workdir"]),
    ("--config.training.batch_size=abc", 2, ["config.training.batch_size='abc'"]),
    ("--config.training.n_iters=2.5", 2, ["config.training.n_iters='2.5'"]),
    ("--config.optim.lr=fast", 2, ["config.optim.lr='fast'"]),
    ("--config.data.centered=perhaps", 2, ["config.data.centered='perhaps'"]),
    ("stray", 2, ["'stray'"]),
    ("--config.sde=vpp", 2, ["config.sde", "'vpp'", "'vp'"]),
    ("--config.sde=vp(beta_mim=1.)", 2, ["config.sde", "'beta_mim'", "'beta_min'"]),
    ("--config.sde=vp(beta_min=small)", 2, ["not a literal", "in quotes"]),
    ("--config.sde=vp(0.1)", 2, ["without a name"]),
    ("--config.model.name=unett", 2, ["config.model", "'unett'", "'unet'"]),
    ("--config.model.name=mlp(width='a')", 2, ["config.model", "mlp(width='a')"]),
    ("--config.model.parameterization=epps", 2, ["config.model", "'eps'"]),
    ("--config.training.objective=dms", 2, ["config.training.objective", "'dsm'"]),
    ("--config.training.precision=fp16", 2, ["precision", "'bf16'", "'fp16'"]),
    ("--config.optim.name=adamm", 2, ["'adam'", "'adamm'"]),
    ("--config.optim.schedule=cosin", 2, ["schedule", "'cosine'"]),
    ("--config.sampling.method=pcc", 2, ["config.sampling", "'pcc'", "'pc'"]),
    ("--config.sampling.predictor=reverse_difusion", 2, ["config.sampling", "'reverse_diffusion'"]),
    ("--config.sampling.corrector=langevin(snrr=0.1)", 2, ["config.sampling", "'snrr'", "'snr'"]),
    ("--config.sampling.times=unifrom", 2, ["config.sampling", "'uniform'"]),
    ("--config.likelihood.solver=dopri", 2, ["config.likelihood", "'dopri5'"]),
    ("--config.likelihood.trace=hutchinsen", 2, ["config.likelihood", "'hutchinson'"]),
    ("--config.data.name=digit", 2, ["config.data", "'digits'", "./my_images"]),
    ("--config.data.name=digits(side=3)", 2, ["'side'"]),
    ("--config.device=cud", 2, ["cud"]),
    # times outside their range, and other numbers that cannot be
    ("--config.sde=vp(t_min=2.)", 2, ["config.sde", "t_min", "[0, T)", "2.0"]),
    ("--config.sde=vp(t_min=-1.)", 2, ["config.sde", "t_min", "-1.0"]),
    ("--config.sampling.t_min=2.", 2, ["config.sampling", "t_min", "[0, 1)"]),
    ("--config.sampling.t_min=-0.1", 2, ["config.sampling", "t_min"]),
    ("--config.likelihood.t_min=5.", 2, ["config.likelihood", "t_min"]),
    ("--config.sampling.steps=0", 2, ["config.sampling", "steps=0"]),
    ("--config.sampling.batch_size=0", 2, ["config.sampling", "batch_size"]),
    ("--config.likelihood.batch_size=0", 2, ["config.likelihood", "batch_size"]),
    ("--config.data.image_size=16", 2, ["8x8", "image_size=16"]),
    ("--config.training.batch_size=0", 2, ["batch_size=0"]),
    ("--config.training.n_iters=0", 2, ["at least 1"]),
    ("--config.training.keep_checkpoints=0", 2, ["keep"]),
    ("--config.model.ema_rate=2.0", 2, ["config.model.ema_rate=2.0"]),
    ("--config.sde=ve(sigma_max=1e38)", 2, ["config.sde", "sigma_max=1e38", "too large for float32"]),
    ("--config.training.max_seconds=-1", 2, ["config.training.max_seconds=-1.0", "above 0"]),
    ("--config.training.checkpoint_freq=-3", 2, ["config.training.checkpoint_freq=-3", "at least 0"]),
    ("--config.training.snapshot_samples=-1", 2, ["config.training.snapshot_samples=-1", "at least 0"]),
    ("--config.optim.warmup=-5", 2, ["config.optim.warmup=-5", "at least 0"]),
    ("--config.optim.lr=-1", 2, ["config.optim.lr=-1.0", "above 0"]),
    ("--config.optim.beta2=nan", 2, ["config.optim.beta2=nan"]),
    ("--config.seed=-1", 2, ["config.seed=-1", "at least 0"]),
]


@pytest.mark.parametrize("flag, code, words", MISSPELT, ids=[flag.removeprefix("--") for flag, _, _ in MISSPELT])
def test_a_wrong_flag(refused, digits_config, tmp_path, flag, code, words):
    base = (f"--config={digits_config}", f"--workdir={tmp_path}/run")
    refused("train", *base, flag, code=code, words=words, lines=2)  # a line about the data may stand before it
    assert not (tmp_path / "run/config.json").exists(), "nothing has begun"


@pytest.mark.parametrize(
    "flag", ["--config.training.n_iters=0", "--config.sampling.steps=0", "--config.training.precision=fp16"]
)
def test_a_wrong_flag_leaves_a_run_as_it_was(refused, digits_run, tmp_path, flag):
    run = shutil.copytree(digits_run, tmp_path / "run")
    refused("train", f"--workdir={run}", flag, code=2)
    assert (run / "config.json").read_bytes() == (digits_run / "config.json").read_bytes()


@pytest.mark.parametrize("command", ["train", "sample", "likelihood", "evaluate", "report"])
def test_a_value_in_the_file_of_a_run_that_cannot_be(refused, digits_run, tmp_path, command):
    run = shutil.copytree(digits_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    for wrong, words in (({"model": 5}, "config.model is a section"), ({"plugins": [3]}, "config.plugins=[3]")):
        (run / "config.json").write_text(json.dumps(config | wrong))
        refused(command, f"--workdir={run}", words=[f"{run}/config.json", words])


def test_commands_and_configurations(refused, tmp_path):
    refused("trian", code=2, words=["'trian'", "'train'"])
    refused("train", "--config=digitz", f"--workdir={tmp_path}", code=2, words=["'digitz'", "'digits'"])
    refused("train", f"--config={tmp_path}/none.py", f"--workdir={tmp_path}", code=2, words=["none.py"])
    refused("train", "--config=digits", code=2, words=["--workdir=DIR is missing"])
    refused("train", f"--workdir={tmp_path}", code=2, words=["what to train on is missing"])
    refused("train", "--config=digits", "--config=toy2d", code=2, words=["2 times"])
    refused("sample", code=2, words=["--workdir=DIR is missing"])
    refused("list", "sdess", code=2, words=["'sdess'", "'sdes'"])
    refused("sample", f"--workdir={tmp_path}/none", words=["not a run directory", "sde-score train"])
    refused("sample", f"--workdir={tmp_path}/none", "--config.sde=ve", code=2, words=["no run", "--config=NAME"])


def test_a_configuration_file_in_error(refused, tmp_path):
    for text, words in (
        ("x = 1", ["get_config"]),
        ("def get_config(:", ["SyntaxError"]),
        ("1/0", ["ZeroDivisionError"]),
    ):
        (tmp_path / "mine.py").write_text(text)
        refused("train", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run", words=words)


@pytest.mark.parametrize(
    "argv, code, words",
    [
        (["sample", "--num=0"], 2, ["positive"]),
        (["sample", "--num=x"], 2, ["--num=x"]),
        (["sample", "--labels=1,2"], 2, ["not class-conditional"]),
        (["sample", "--labels=cat"], 2, ["not class-conditional"]),
        (["sample", "--checkpoint=nowhere.pt"], 1, ["nowhere.pt"]),
        (["sample", "--plugin=nowhere.py"], 1, ["nowhere.py", "--plugin=FILE"]),
        (["sample", "--config.sampling.method=ode", "--config.sampling.solver=dopri6"], 2, ["'dopri5'"]),
        (["likelihood", "--num=0"], 2, ["--num=0", "positive"]),
        (["likelihood", "--repeats=0"], 2, ["repeats=0", "positive"]),
        (["likelihood", "--split=tset"], 2, ["test|train"]),
        (["evaluate", "--config.evaluation.features=incepton"], 2, ["'inception'"]),
        (["evaluate", "--config.evaluation.metrics=('fdd',)"], 2, ["'fd'"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_using_a_run(refused, digits_run, argv, code, words):
    refused(argv[0], f"--workdir={digits_run}", *argv[1:], code=code, words=words)


def test_labels_out_of_range(cli, refused, digits_config, tmp_path):
    base = (f"--workdir={tmp_path}/run",)
    flags = ("--config.model.class_conditional=True", "--config.training.n_iters=1")
    assert cli("train", f"--config={digits_config}", *base, *flags).code == 0
    refused("sample", *base, "--labels=10", code=2, words=["no class '10'", "0, 1, 2"])


def test_classes_of_data_without_labels(refused, toy_config, tmp_path):
    flags = (f"--config={toy_config}", f"--workdir={tmp_path}/run", "--config.model.class_conditional=True")
    refused("train", *flags, code=2, words=["class_conditional", "no labels"])


def test_wrong_shapes(refused, toy_config, digits_config, tmp_path):
    base = (f"--workdir={tmp_path}/run",)
    flags = (f"--config={toy_config}", *base, "--config.model.name=unet")
    refused("train", *flags, code=2, words=["config.model", "(2,)", "'mlp'"])
    np.save(tmp_path / "odd.npy", np.zeros((3, 2, 2, 2, 2, 2), dtype=np.float32))
    refused(
        "train", f"--config={digits_config}", *base, f"--config.data.name={tmp_path}/odd.npy", words=["1 to 4 axes"]
    )
    np.save(tmp_path / "one.npy", np.zeros((1, 2), dtype=np.float32))
    refused("train", f"--config={toy_config}", *base, f"--config.data.name={tmp_path}/one.npy", words=["at least two"])


def test_a_run_on_undequantised_levels_declares_the_dequantisation_of_its_likelihood(cli, digits_config, tmp_path):
    """Grey levels without noise have no density; trained as published, without it, they get it for the likelihood."""
    base = (f"--workdir={tmp_path}/run",)
    flags = ("--config.data.uniform_dequantization=False", "--config.training.n_iters=1")
    assert cli("train", f"--config={digits_config}", *base, *flags).code == 0
    found = cli("likelihood", *base, "--num=8", "--json").json
    assert found["bits_per_dim"]["dequantisation"] == "uniform"
    assert cli("sample", *base, "--num=2").code == 0


def test_the_spec_is_never_run(refused, digits_config, tmp_path):
    mark = tmp_path / "mark"
    spec = f"langevin(snr=__import__('pathlib').Path('{mark}').touch())"
    base = (f"--config={digits_config}", f"--workdir={tmp_path}/run")
    refused("train", *base, f"--config.sampling.corrector={spec}", code=2, words=["not a literal", "never run"])
    assert not mark.exists()


# Places.


def test_a_strangers_folder_is_left_alone(refused, digits_config, tmp_path):
    (tmp_path / "thesis.tex").write_text("all my work")
    flags = (f"--config={digits_config}", f"--workdir={tmp_path}")
    refused("train", *flags, words=["not a run directory", "thesis.tex"])
    refused("train", *flags, "--overwrite", words=["not a run directory"])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_of_another_program_is_left_alone(refused, digits_config, tmp_path):
    """It has a config.json, and folders named like ours."""
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/wave.wav").write_text("sound")
    (tmp_path / "config.json").write_text('{"architecture": "other"}')
    flags = (f"--config={digits_config}", f"--workdir={tmp_path}")
    refused("train", *flags, words=["not a run directory"])
    refused("train", *flags, "--overwrite", words=["not a run directory"])
    refused("sample", f"--workdir={tmp_path}", words=["config.json"])
    assert (tmp_path / "samples/wave.wav").read_text() == "sound"


def test_a_file_as_workdir(refused, digits_config, tmp_path):
    (tmp_path / "file").write_text("x")
    refused("train", f"--config={digits_config}", f"--workdir={tmp_path}/file", words=["file"])
    assert (tmp_path / "file").read_text() == "x"


def test_what_a_run_killed_at_its_beginning_leaves(cli, digits_config, tmp_path):
    (tmp_path / ".config.json.tmp").write_text('{"sd')
    (tmp_path / "log.txt").write_text("a line\n")
    flags = (f"--config={digits_config}", f"--workdir={tmp_path}", "--config.training.n_iters=1")
    assert cli("train", *flags).code == 0


def test_before_the_first_checkpoint_nothing_is_fixed(cli, refused, digits_config, tmp_path):
    base = (f"--config={digits_config}", f"--workdir={tmp_path}/run", "--config.training.n_iters=2")
    refused("train", *base, "--config.model.name=ncsnpp(nf=8)", lines=2)  # fails in its first step
    assert cli("train", *base).code == 0


# Images.


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def test_an_empty_folder(refused, digits_config, tmp_path):
    (tmp_path / "photos").mkdir()
    flags = (f"--config={digits_config}", f"--workdir={tmp_path}/run")
    refused("train", *flags, f"--config.data.name={tmp_path}/photos", words=["no images", "photos", ".png"])
    refused("train", *flags, f"--config.data.name={tmp_path}/fotos", words=["fotos"])


def test_a_broken_image_is_named_and_refused_or_skipped(cli, refused, digits_config, pictures, tmp_path):
    whole = (pictures / "03.png").read_bytes()
    (pictures / "03.png").write_bytes(whole[: len(whole) // 2])
    flags = (f"--config={digits_config}", f"--workdir={tmp_path}/run", f"--config.data.name={pictures}")
    flags += ("--config.training.n_iters=2", "--config.training.batch_size=4", "--config.data.holdout=0.25")
    refused("train", *flags, "--config.data.on_error=raise", words=["03.png", "skip"])
    with pytest.warns(UserWarning, match="03.png"):
        assert cli("train", *flags, "--config.data.on_error=skip").code == 0
    flags = (*flags, f"--workdir={tmp_path}/other")
    refused("train", *flags, "--config.data.on_error=ignore", code=2, words=["'raise'", "'skip'"])


# Checkpoints.


def test_a_truncated_checkpoint_falls_back(cli, digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    newest = run / "checkpoints/step_00000020.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    answer = cli("sample", f"--workdir={run}", "--num=2", "--json")
    assert answer.json["step"] == 15 and "step_00000020.pt is damaged" in answer.err
    assert newest.exists()  # a reader changes nothing
    resumed = cli("train", f"--workdir={run}", "--json")
    assert resumed.json["step"] == 20 and "step_00000020.pt is damaged" in resumed.err
    one, two = load_checkpoint(digits_run), load_checkpoint(run)
    assert all(torch.equal(one.model[k], two.model[k]) for k in one.model)


def test_nothing_but_damaged_checkpoints(refused, digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    for path in (run / "checkpoints").glob("*.pt"):
        path.write_bytes(b"")
    refused("sample", f"--workdir={run}", words=["None of the 3 checkpoints"], lines=-1)


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("command", ["sample", "train", "likelihood", "report"])
def test_a_malicious_checkpoint_is_not_executed(refused, digits_run, tmp_path, command):
    run, mark = shutil.copytree(digits_run, tmp_path / "run"), tmp_path / "executed"
    torch.save({"format": 1, "step": 30, "model": Malicious(mark)}, run / "checkpoints/step_00000030.pt")
    refused(command, f"--workdir={run}", words=["refused", "nothing in it was executed"], lines=2)
    assert not mark.exists()


def test_a_bare_pickle_is_not_executed(cli, refused, digits_run, tmp_path):
    mark = tmp_path / "executed"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Malicious(mark)))
    refused("sample", f"--workdir={digits_run}", f"--checkpoint={tmp_path}/evil.pt", words=["evil.pt"])
    assert not mark.exists()


def test_a_checkpoint_of_another_model(refused, toy_run, digits_run, tmp_path):
    other = toy_run / "checkpoints/step_00000020.pt"
    flags = (f"--workdir={digits_run}", f"--checkpoint={other}")
    refused("sample", *flags, code=2, words=[other, "config.data.name", "two_moons"])
    # even if it says it were of this one
    run = shutil.copytree(digits_run, tmp_path / "run")
    state = torch.load(run / "checkpoints/step_00000020.pt", weights_only=True) | {"format": 1}  # without a digest
    weights = {k: v for k, v in state["model"].items() if "bias" not in k}
    torch.save(state | {"model": weights, "ema": None}, tmp_path / "mine.pt")
    mine = ("sample", f"--workdir={run}", f"--checkpoint={tmp_path}/mine.pt")
    refused(*mine, words=["only in the model", "bias"], lines=2)
    torch.save(state | {"config": None}, tmp_path / "mine.pt")
    refused(*mine, words=["mine.pt", "not written by a run"], lines=2)
    torch.save({"weights": state["model"]}, tmp_path / "mine.pt")
    refused(*mine, words=["not a checkpoint"])


def test_a_damaged_configuration(refused, digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    (run / "config.json").write_text((run / "config.json").read_text()[:100])
    for command in ("sample", "train"):
        refused(command, f"--workdir={run}", words=["config.json", "damaged"])
    assert len(list((run / "checkpoints").glob("*.pt"))) == 3


# A full disk.


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> Path:
    path = place / "filler"
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return path


def test_a_full_disk_loses_nothing(cli, refused, digits_config, small_disk, tmp_path):
    base = (f"--workdir={small_disk}/run", "--config.training.eval_freq=0", "--config.training.snapshot_freq=0")
    flags = (f"--config={digits_config}", "--config.model.name=mlp(width=8, blocks=1)")
    assert cli("train", *base, *flags, "--config.training.n_iters=10").code == 0
    assert cli("sample", *base, "--num=4", "--tag=a").code == 0
    run = small_disk / "run"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}

    def intact():
        for path, content in before.items():
            if path.name not in ("log.txt", "metrics.jsonl"):  # these two are appended to
                assert path.read_bytes() == content, path
        assert not list(run.rglob("*.tmp"))

    filler = fill(small_disk)
    for command in (["sample", "--num=4", "--tag=b"], ["report"], ["likelihood", "--num=8"]):
        refused(command[0], *base, *command[1:], words=["no room on the disk"], lines=-1)
        intact()
    refused("train", *base, "--config.training.n_iters=20", words=["no room on the disk"], lines=-1)
    intact()
    # room for the small files and none for a checkpoint
    os.truncate(filler, filler.stat().st_size - 5 * 4096)
    refused("train", *base, "--config.training.n_iters=20", words=["no room on the disk", "intact"], lines=-1)
    assert load_checkpoint(run).step == 10
    filler.unlink()
    assert cli("train", *base, "--config.training.n_iters=20").code == 0

    # and what comes out is what would have come out
    base = (f"--workdir={tmp_path}/whole", *base[1:])
    assert cli("train", *base, *flags, "--config.training.n_iters=20").code == 0
    one, two = load_checkpoint(run), load_checkpoint(tmp_path / "whole")
    assert one.step == two.step == 20 and all(torch.equal(one.model[k], two.model[k]) for k in one.model)
    steps = [
        re.findall(r'"step": (\d+), "time"', (where / "metrics.jsonl").read_text())
        for where in (run, tmp_path / "whole")
    ]
    assert steps[0] == steps[1] == ["5", "10", "15", "20"]


def test_traceback_on_request(cli, digits_config, tmp_path, monkeypatch):
    flags = ("train", f"--config={digits_config}", f"--workdir={tmp_path}/run", "--config.sde=vpp")
    assert "Traceback" in cli(*flags, "--traceback").err
    monkeypatch.setenv("SDE_SCORE_TRACEBACK", "1")
    assert "Traceback" in cli(*flags).err
