"""Two processes (gloo) against one."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sde_score.training import distributed, load_checkpoint

DRIVER = Path(__file__).with_name("ddp_driver.py")


def run_two(run_dir):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):  # what torchrun sets
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = {key: str(value) for key, value in (names | {"OMP_NUM_THREADS": 1, "GLOO_SOCKET_IFNAME": "lo"}).items()}
        command = [sys.executable, str(DRIVER), str(run_dir)]
        children.append(subprocess.Popen(command, env=os.environ | own, stderr=subprocess.PIPE, text=True))
    errors = [child.communicate(timeout=120)[1] for child in children]
    assert all(child.returncode == 0 for child in children), "\n".join(errors)


def run_one(run_dir):
    spec = importlib.util.spec_from_file_location("ddp_driver", DRIVER)
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    driver.descend(run_dir / "plain", 1, torch.device("cpu"))
    driver.train(run_dir, 30, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run_one(folder / "one")
    run_two(folder / "two")
    return folder


def test_plain_gradient_descent_takes_the_same_steps(both):
    """The scale of the gradient, stratified times and dropped conditions do not depend on the number of processes."""
    one, two = (load_checkpoint(both / name / "plain") for name in ("one", "two"))
    assert one.step == two.step == 12
    for key in one.model:
        torch.testing.assert_close(two.model[key], one.model[key], rtol=1e-6, atol=1e-6)


def test_two_processes_equal_one(both):
    """Unequal shares, micro-batches, a skipped step and a resume. Float64: the order of sums is all that differs."""
    one, two = load_checkpoint(both / "one"), load_checkpoint(both / "two")
    assert one.step == two.step == 30
    for key in one.model:
        # losses and norms are handed over in float32
        torch.testing.assert_close(two.model[key], one.model[key], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(two.weights()[key], one.weights()[key], rtol=1e-6, atol=1e-6)
    lines = [
        [json.loads(line) for line in (both / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    lines = [[line for line in found if "loss" in line] for found in lines]  # without those of the validation
    assert [line["step"] for line in lines[1]] == [line["step"] for line in lines[0]] == [5, 10, 15, 20, 25, 30]
    for a, b in zip(*lines):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5) and b["samples"] == a["samples"] == 10 * a["step"]


def test_one_process_needs_nothing(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with distributed.processes("cpu") as device:
        assert device == torch.device("cpu")
        assert distributed.rank() == 0 and distributed.world_size() == 1 and distributed.is_main()
        assert distributed.share("x") == "x"
        module = torch.nn.Linear(1, 1)
        assert distributed.wrap(module, device) is module
    assert not torch.distributed.is_initialized()


def test_a_missing_gpu_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="torch sees no GPU"):
        distributed.pick_device("cuda")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_is_named_in_one_line(tmp_path, victim):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = {key: str(value) for key, value in (names | {"OMP_NUM_THREADS": 1, "GLOO_SOCKET_IFNAME": "lo"}).items()}
        command = [sys.executable, str(DRIVER), str(tmp_path / "run"), str(victim)]
        children.append(subprocess.Popen(command, env=os.environ | own, stderr=subprocess.PIPE, text=True))
    left = children[1 - victim]
    error = left.communicate(timeout=120)[1].strip().splitlines()[-1]
    children[victim].kill()
    children[victim].communicate()
    assert left.returncode == 1
    assert f"Of 2 processes, rank {victim} (process {children[victim].pid} on " in error
    assert "was lost" in error and "Run the same command again" in error
    assert load_checkpoint(tmp_path / "run").step == 10


def test_who_is_alive():
    assert not distributed._is_alive(2**22 + 1) and distributed._is_alive(os.getpid())
