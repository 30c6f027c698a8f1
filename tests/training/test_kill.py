"""`kill -9` at any moment: every resume continues bit for bit, nothing is lost or half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_left_in_peace(tmp_path, kills):
    driver = Path(__file__).with_name("kill_driver.py")
    ended = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), str(kills)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["kills"] == kills and report["after_the_end"] < kills / 2, (
        "most kills must hit the run before its end"
    )
