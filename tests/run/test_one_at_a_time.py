"""A run directory is trained by one process at a time; others may read it meanwhile."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

fcntl = pytest.importorskip("fcntl")


@pytest.fixture
def training(digits_config, tmp_path):
    """A process that trains in `tmp_path/run` until it is killed."""
    command = [sys.executable, "-m", "sde_score", "train", f"--config={digits_config}", f"--workdir={tmp_path}/run"]
    child = subprocess.Popen(
        [*command, "--config.training.n_iters=100000", "--config.training.eval_freq=0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run/checkpoints").glob("step_*.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield child
    child.kill()
    child.wait()


def test_a_second_training_is_refused_readers_are_not(cli, refused, training, digits_config, tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    words = [f"{tmp_path}/run is in use", f"process {training.pid} on", "--workdir"]
    refused("train", f"--config={digits_config}", workdir, words=words)
    refused("train", f"--config={digits_config}", workdir, "--overwrite", words=words)
    refused("train", f"--config={digits_config}", workdir, "--config.seed=5", words=words)
    assert cli("sample", workdir, "--num=2", "--notrajectory").code == 0
    assert cli("likelihood", workdir, "--num=2").code == 0
    assert training.poll() is None

    training.send_signal(signal.SIGKILL)  # and leaves no lock behind
    training.wait()
    newest = max(int(p.stem[5:]) for p in (tmp_path / "run/checkpoints").glob("step_*.pt"))
    answer = cli("train", workdir, f"--config.training.n_iters={newest + 2}", "--config.training.eval_freq=0", "--json")
    assert answer.json["step"] == newest + 2
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = [line["step"] for line in lines if "loss" in line]
    assert logged == sorted(set(logged)), "two runs have written into one file"


def test_a_disk_without_locks(cli, toy_config, tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    answer = cli("train", f"--config={toy_config}", f"--workdir={tmp_path}/run")
    assert answer.code == 0 and "cannot be locked" in answer.err and "No locks available" in answer.err


def test_twice_in_one_process(toy_config, tmp_path):
    from sde_score.files import FolderInUse, held_alone

    with held_alone(tmp_path):
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} on"):
            with held_alone(tmp_path):
                pass
    with held_alone(tmp_path):
        pass
