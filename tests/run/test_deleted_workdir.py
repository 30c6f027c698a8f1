"""A run directory that is deleted or moved while it is trained in is not brought back."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from sde_score.files import FolderGone, SameFolder
from sde_score.training import CheckpointStore, JSONLWriter, TextLog


@pytest.mark.parametrize(
    "due, fate",
    [
        ("log_freq", "replaced"),
        ("checkpoint_freq", "moved"),
        ("snapshot_freq", "deleted"),
    ],
)
def test_training_ends_with_a_message_and_nothing_is_made_again(digits_config, tmp_path, due, fate):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "sde_score", "train", f"--config={digits_config}", f"--workdir={run}"]
    often = {"log_freq": 10**9, "checkpoint_freq": 0, "snapshot_freq": 0, "eval_freq": 0}
    often[due] = 1
    command += ["--config.training.n_iters=100000", *(f"--config.training.{k}={v}" for k, v in often.items())]
    command += [f"--config.training.tensorboard={due == 'log_freq'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    awaited = {"log_freq": "metrics.jsonl", "checkpoint_freq": "checkpoints/step*.pt", "snapshot_freq": "samples/*"}
    try:
        deadline = time.monotonic() + 60
        while not list(run.glob(awaited[due])) and time.monotonic() < deadline:
            time.sleep(0.02)
        run.rename(tmp_path / "elsewhere")
        if fate == "deleted":
            shutil.rmtree(tmp_path / "elsewhere")
        if fate == "replaced":
            run.mkdir()
        err = child.communicate(timeout=60)[1]
    finally:
        child.kill()
    assert child.returncode == 1, err
    assert f"{run} was deleted or moved while it was in use" in err.strip().splitlines()[-1]
    # a thread of TensorBoard's may meet the missing folder first, and says so in its own way
    assert "Traceback" not in err.partition("Exception in thread")[0]
    assert not run.exists() if fate != "replaced" else not list(run.iterdir())


def test_the_parts(tmp_path):
    run = tmp_path / "run"
    writer, store = JSONLWriter(run / "metrics.jsonl"), CheckpointStore(run)
    writer.rewind(0)
    log, place = TextLog(run / "log.txt"), SameFolder(run)
    assert store.load_newest(repair=True) is None
    writer.write(1, {"loss": 1.0})
    log("a line")
    place.check()
    run.rename(tmp_path / "moved")
    for again in (False, True):
        for use in (lambda: writer.write(2, {}), lambda: store.save({"step": 2}), place.check):
            with pytest.raises(FolderGone, match=f"{run} was deleted or moved"):
                use()
        log("said, and written nowhere")
        assert not again or not list(run.iterdir())
        run.mkdir(exist_ok=True)
