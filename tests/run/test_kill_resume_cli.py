"""`kill -9` at any moment of `sde-score train`: the same command goes on bit for bit, nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_left_in_peace(digits_config, tmp_path, kills):
    driver = Path(__file__).with_name("kill_cli_driver.py")
    ended = subprocess.run(
        [sys.executable, str(driver), str(digits_config), str(tmp_path), str(kills)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    facts = json.loads(ended.stdout.splitlines()[-1])
    assert facts["kills"] == kills and facts["after_the_end"] <= kills / 2, facts
    assert kills < 20 or len(set(facts["steps"])) > 2, f"the kills hit too few moments: {facts}"


def test_interrupted_and_gone_on(digits_config, tmp_path):
    """SIGTERM (as Ctrl-C) saves a checkpoint, says how to go on, and the exit status tells that it is not done."""
    command = [
        sys.executable,
        "-m",
        "sde_score",
        "train",
        f"--workdir={tmp_path}/run",
        "--config.training.n_iters=100000",
    ]
    command += [f"--config={digits_config}", "--config.training.checkpoint_freq=100000"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "run the same command again" in err and err.strip().splitlines()[-1] == "sde-score train: interrupted"
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "interrupted"
    assert len(list((tmp_path / "run/checkpoints").glob("step_*.pt"))) == 1
