"""Kill `sde-score train` again and again, resume it, and compare with a run left in peace.

Run by test_kill_resume_cli.py.

One process imports everything and forks a child for each attempt, so that twenty kills cost seconds. SIGKILL comes from
outside, at a random time. `main(["train", ...])` is what the console script calls.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401 - what a child would import by itself, sooner
import torch
import torch._dynamo

import sde_score.run  # noqa: F401 - imported once, before the forks
from sde_score.cli import main as command
from sde_score.training import load_checkpoint

STEPS = 60


def start(config: str, workdir: Path) -> int:
    """The process id of a child that trains."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        flags = [f"--config.training.n_iters={STEPS}", "--config.training.checkpoint_freq=2"]
        code = command(["train", f"--config={config}", f"--workdir={workdir}", *flags])
    finally:
        os._exit(code)


def attempt(config: str, workdir: Path, seconds: float | None = None, *, step: int = 0) -> bool:
    """Train, for so many seconds at most after the checkpoint of `step`; True if it came to the end."""
    child = start(config, workdir)
    if seconds is not None:
        deadline = time.monotonic() + 30
        while newest(workdir) < step and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"a run failed with status {os.WEXITSTATUS(status)}")
    return os.WIFEXITED(status)


def newest(workdir: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.stem[5:]) for path in (workdir / "checkpoints").glob("step_*.pt")), default=0)


def lines(workdir: Path) -> list[dict]:
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "samples_per_second")} for line in found]


def compare(one, other, where: str) -> None:
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


def main(config: str, folder: Path, kills: int) -> None:
    whole, killed = folder / "whole", folder / "killed"
    started = time.monotonic()
    assert attempt(config, whole)
    duration = time.monotonic() - started
    random.seed(kills)
    at_steps, done = [], 0
    for n in range(kills):
        if n % 5 == 0:  # at any moment, imports and all
            done += attempt(config, killed, random.uniform(0.02, 0.25 * duration))
        else:  # most of a child's time is its beginning; these hit the steps
            done += attempt(config, killed, random.uniform(0.0, 0.02), step=STEPS * n // (kills + 1))
        for path in (killed / "checkpoints").glob("step_*.pt"):  # whatever happened, what is there is good
            load_checkpoint(path)
        at_steps.append(newest(killed))
    assert at_steps == sorted(at_steps), "a checkpoint was lost"
    assert attempt(config, killed)
    assert lines(killed) == lines(whole)
    one, two = load_checkpoint(whole), load_checkpoint(killed)
    assert one.step == STEPS
    for part in ("step", "model", "ema", "optimizer", "progress", "rng", "config"):
        compare(getattr(one, part), getattr(two, part), part)
    pictures = [sorted((run / "samples").glob("step_*.png")) for run in (whole, killed)]
    assert [p.name for p in pictures[0]] == [p.name for p in pictures[1]] and pictures[0]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*pictures))
    facts = {"kills": kills, "after_the_end": done, "steps": at_steps, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
