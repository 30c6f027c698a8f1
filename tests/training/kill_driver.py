"""Kill a training run again and again, resume it, and compare with a run left in peace. Run by test_kill.py.

One process imports torch and forks a child for each attempt, so that twenty kills cost seconds. Two kinds of death:
SIGKILL from outside at a random time, and `os._exit` from inside, just before or after the n-th fsync, rename or
unlink of a run: the moments that matter.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from sde_score.models.ema import EMA
from sde_score.tensors import draw_uniform
from sde_score.training import (
    Cadence,
    CheckpointStore,
    JSONLWriter,
    Record,
    Schedule,
    Trainer,
    ValidationLoss,
    load_checkpoint,
    make_optimizer,
)

STEPS = 100


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Dropout(0.2), nn.Linear(16, 2))

    def forward(self, x, t):
        return self.network(torch.cat([x, t[:, None]], 1))


def objective(model, x0, *, noise, **cond):
    t = draw_uniform(noise, x0[:, 0])
    z = noise(x0)
    return ((model((1 - t[:, None]) * x0 + t[:, None] * z, t) - z) ** 2).sum(1)


def batch(step):
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(step)) + 1.0
    return (x * float("nan") if step in (37, 38) else x), None, range(8)


def train(run_dir: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    Trainer(
        model,
        EMA(model, 0.99),
        objective,
        make_optimizer(model.parameters(), lr=1e-2),
        batch,
        Schedule(STEPS, warmup=10, decay="cosine"),
        cadence=Cadence(7, 5, [(20, ValidationLoss(objective, [(batch(999)[0], None)]))]),
        record=Record(
            checkpoints=CheckpointStore(run_dir, keep=2, say=lambda message: None),
            writers=[JSONLWriter(run_dir / "metrics.jsonl")],
            say=lambda message: None,
            progress=False,
        ),
    ).run()


def die_at(call: int, before: bool) -> None:
    """End this process without ceremony at the `call`-th system call that changes a file's fate."""
    count = 0
    for name in ("fsync", "replace", "unlink"):
        real = getattr(os, name)

        def wrapped(*args, _real=real, **kwargs):
            nonlocal count
            count += 1
            if before and count == call:
                os._exit(9)
            result = _real(*args, **kwargs)
            if count == call:
                os._exit(9)
            return result

        setattr(os, name, wrapped)


def attempt(run_dir: Path, *, seconds: float | None = None, call: int | None = None, before: bool = False) -> bool:
    """One child that trains; True if it came to the end."""
    child = os.fork()
    if child == 0:
        try:
            if call is not None:
                die_at(call, before)
            train(run_dir)
            os._exit(0)
        except BaseException as error:
            print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
        raise SystemExit("a resumed run failed")
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def lines(run_dir: Path) -> list[dict]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "samples_per_second")} for line in found]


def compare(one, other, where="") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key != "seconds":
                compare(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other)):
            compare(a, b, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, (where, one, other)


def main(folder: Path, kills: int) -> None:
    whole, killed = folder / "whole", folder / "killed"
    started = time.monotonic()
    assert attempt(whole)
    duration = time.monotonic() - started
    random.seed(1)
    done_early = 0
    for n in range(kills):
        if n % 2:
            finished = attempt(killed, call=random.randint(1, 25), before=random.random() < 0.5)
        else:
            finished = attempt(killed, seconds=random.uniform(0.02, 2.5 * duration / kills))
        done_early += finished
        if (killed / "checkpoints").is_dir():  # whatever happened, what is there is good
            for path in (killed / "checkpoints").glob("step_*.pt"):
                load_checkpoint(path)
    assert attempt(killed)
    assert lines(killed) == lines(whole)
    a, b = (load_checkpoint(run_dir) for run_dir in (whole, killed))
    for part in ("step", "model", "ema", "optimizer", "progress", "rng"):
        compare(getattr(a, part), getattr(b, part), part)
    assert a.step == STEPS and a.progress["skipped"] == 2
    print(json.dumps({"kills": kills, "after_the_end": done_early, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
