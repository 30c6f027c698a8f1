"""In one process: who is told to be lost, which device is picked, which weights a checkpoint gives."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sde_score.training import Record, Schedule, Trainer, make_optimizer
from sde_score.training.checkpoint import Checkpoint
from sde_score.training.distributed import LostProcess, _tell_the_loss, pick_device, rank, world_size
from sde_score.training.state import TrainState

HERE = (platform.node(), os.getpid())


@pytest.fixture
def gone():
    """A process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return (platform.node(), child.pid)


def test_the_first_that_is_left_names_the_lost(gone):
    error = RuntimeError("gloo: closed")
    with pytest.raises(LostProcess, match=rf"Of 2 processes, rank 1 \(process {gone[1]} on .*\) was lost") as told:
        _tell_the_loss([HERE, gone], error, patience=20)
    assert told.value.__cause__ is error
    with pytest.raises(LostProcess, match=r"Of 4 processes, rank 1 .* and rank 3 .* was lost"):
        _tell_the_loss([HERE, gone, HERE, gone], error, patience=20)
    with pytest.raises(LostProcess, match="One on another machine was lost"):
        _tell_the_loss([HERE, ("elsewhere", gone[1])], error, patience=0.05)


def test_the_others_end_quietly(gone):
    """This process is rank 0, which is not the first that is left where 0 itself is lost."""
    with pytest.raises(SystemExit) as ended:
        _tell_the_loss([gone, HERE], RuntimeError("gloo: closed"), patience=0.5)
    assert ended.value.code == 1


def test_a_device_that_is_named_is_taken_and_auto_is_one_that_is_there():
    assert pick_device("cpu") == torch.device("cpu") and pick_device("meta").type == "meta"
    there = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    assert pick_device("auto").type in there | ({"mps"} if torch.backends.mps.is_available() else set())
    assert (rank(), world_size()) == (0, 1)


def test_averaged_weights_are_given_where_there_are_any_and_are_asked_for():
    raw, averaged = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    both, alone = (Checkpoint(Path("a"), 1, raw, ema) for ema in ({"model": averaged}, None))
    assert both.weights() is averaged and both.weights(ema=False) is raw
    assert alone.weights() is raw and alone.weights(ema=False) is raw


def test_saving_wakes_no_gpu_that_the_run_does_not_use(monkeypatch):
    model = torch.nn.Linear(1, 1)
    state = TrainState(model, None, torch.optim.SGD(model.parameters(), lr=0.1))
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["a state"])
    for available, awake in ((True, False), (False, False), (True, True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda awake=awake: awake)
        assert ("cuda" in state.state_dict()["rng"]) == awake


def test_a_weight_that_the_loss_did_not_use_stands_still():
    """No gradient is another thing than a gradient of zero, by which Adam's momentum would carry it on."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.first = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))

    def loss(model, x0, *, noise):
        used = model.always + model.first if float(x0[0]) == 0 else model.always
        return (used - 1) ** 2 + 0 * x0[:, 0]

    seen, model = [], Model()

    def data(step):
        seen.append(float(model.first))
        return torch.full((2, 1), float(step)), None, range(2)

    optimizer = make_optimizer(model.parameters(), lr=0.1)
    Trainer(model, None, loss, optimizer, data, Schedule(4), record=Record(progress=False)).run()
    assert seen[0] == 0 and seen[1] == pytest.approx(0.1, rel=1e-3)
    assert seen[1:] == [float(model.first)] * 3 and float(model.always) > 0.3
