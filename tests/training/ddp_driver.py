"""Train on a share of each batch, as one of several processes; run by test_distributed.py under torchrun's
environment variables.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from sde_score.models import ScoreModel
from sde_score.models.ema import EMA
from sde_score.objectives import OBJECTIVES
from sde_score.sdes import SDES
from sde_score.tensors import draw_uniform
from sde_score.training import (
    Cadence,
    CheckpointStore,
    JSONLWriter,
    Record,
    Schedule,
    StepSettings,
    Trainer,
    ValidationLoss,
    distributed,
    make_optimizer,
)

SIZE = 10
VICTIM = int(sys.argv[2]) if __name__ == "__main__" and len(sys.argv) > 2 else None  # killed in step 13


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))

    def eps(self, x, t):  # not `forward`: DDP must see the gradients all the same
        return self.network(torch.cat([x, t[:, None]], 1))


def objective(model, x0, *, noise, **cond):
    t = draw_uniform(noise, x0[:, 0])
    z = noise(x0)
    return ((model.eps((1 - t[:, None]) * x0 + t[:, None] * z, t) - z) ** 2).sum(1)


def batch(step):
    if step == 13 and distributed.rank() == VICTIM:
        os.kill(os.getpid(), signal.SIGKILL)
    x = torch.randn(SIZE, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) + 1.0
    if step == 4:
        x[0] = float("nan")  # on one process only; all must skip
    rank, world = distributed.rank(), distributed.world_size()
    bounds = [0, 3, SIZE] if world == 2 else [0, SIZE]  # unequal shares
    mine = range(bounds[rank], bounds[rank + 1])
    return x[mine.start : mine.stop], None, mine


def train(run_dir: Path, steps: int, micro_batches: int, device: torch.device) -> None:
    torch.manual_seed(distributed.rank())  # different weights, to see that the main process's are taken
    model = Net().double().to(device)
    if distributed.is_main():
        torch.manual_seed(0)
        model.load_state_dict({k: torch.randn_like(v) / 3 for k, v in model.state_dict().items()})
    ema = EMA(model, 0.9)
    said = []
    result = Trainer(
        model,
        ema,
        objective,
        make_optimizer(model.parameters(), lr=1e-2),
        batch,
        Schedule(steps),
        step=StepSettings(micro_batches=micro_batches),
        cadence=Cadence(5, 10, [(7, ValidationLoss(objective, [(batch(0)[0], None)]))]),  # on the main process only
        record=Record(
            checkpoints=CheckpointStore(run_dir, say=said.append),
            writers=[JSONLWriter(run_dir / "metrics.jsonl")],
            say=said.append,
            progress=False,
        ),
    ).run()
    assert result.skipped == 1, result
    assert distributed.is_main() or not said, "only the main process speaks"
    if distributed.world_size() > 1:
        mine = torch.cat([p.detach().flatten() for p in (*model.parameters(), *ema.model.parameters())])
        box = [torch.empty_like(mine) for _ in range(distributed.world_size())]
        torch.distributed.all_gather(box, mine)
        assert torch.equal(box[0], box[1]), "the processes went apart"


class ToldNet(nn.Module):
    """Told a number, of which -1 means none."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, x, t, angle):
        return self.layers(torch.cat([x, t[:, None], angle], 1))

    def no_condition(self, cond):
        return {"angle": torch.full_like(cond["angle"], -1.0)}


def descend(run_dir: Path, micro_batches: int, device: torch.device) -> None:
    """Plain gradient descent, which hides no factor of the gradient; times in the strata of the whole batch, and some
    conditions dropped."""
    torch.manual_seed(0)
    sde = SDES.build("vp(t_min=0.)")
    model = ScoreModel(ToldNet(), sde, "eps(c_noise='t')").double().to(device)

    def told_batch(step: int):
        x, _, positions = batch(step + 10)
        return x, {"angle": x[:, :1].sin()}, positions

    Trainer(
        model,
        None,
        OBJECTIVES.build("dsm(times='stratified')", sde),
        torch.optim.SGD(model.parameters(), lr=0.3),
        told_batch,
        Schedule(12),
        step=StepSettings(grad_clip=-1.0, micro_batches=micro_batches, condition_dropout=0.4),
        record=Record(CheckpointStore(run_dir, say=lambda m: None), say=lambda m: None, progress=False),
    ).run()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.processes("cpu") as device:
        if VICTIM is None:
            descend(Path(sys.argv[1]) / "plain", 2, device)
        train(Path(sys.argv[1]), 20, 2, device)
        train(Path(sys.argv[1]), 30, 1, device)  # goes on from step 20
