"""Every verb of a run from Python; `mypy --strict` knows the type of each answer."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import sde_score
from sde_score.run import LogProb, Run, Samples
from sde_score.sampling import Moment, PCSampler, Progress
from sde_score.sdes import SDE, SDES


def main(folder: Path) -> dict[str, float]:
    x = 5 + 2 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    run: Run = sde_score.train(data=x, workdir=folder / "run", minutes=0.05, training={"n_iters": 20})
    run = sde_score.load(folder / "run", data=x)

    def keep_first(z: Tensor, moment: Moment) -> Tensor:
        return torch.cat([torch.zeros_like(z[:, :1]), z[:, 1:]], 1)

    def watch(progress: Progress) -> None:
        steps.append(progress.step)

    steps: list[int] = []
    sde: SDE = SDES.build(run.config.sde)
    sampler = PCSampler(sde, "reverse_diffusion", "none", steps=5)
    drawn: Samples = run.sample(8, sampler=sampler, constraint=keep_first, callback=watch, seed=1)
    again: Samples = run.sample(8, steps=5, predictor="euler_maruyama", trajectory=True)
    found: LogProb = run.log_prob(drawn.x, trace="exact")
    mean, error = run.nats("test", num=20)
    score: Tensor = run.score(x[:4], 0.5)
    clean: Tensor = run.denoise(x[:4], 0.5)
    code: Tensor = run.encode(x[:2])
    way = run.interpolate(x[0], x[1], 4).x + run.decode(code.repeat(2, 1)).x
    metrics = run.evaluate(num_samples=16)
    report: Path = run.report()
    picture: Path = again.save(folder / "samples.png")
    values = [found.values.mean(), score.norm(), clean.norm(), way.norm()]
    return {"log p": mean, "error": error, "num": float(metrics["num"]), "steps": float(len(steps))} | {
        f"value {k}": float(v) for k, v in enumerate(values)
    } | {path.suffix: float(path.stat().st_size) for path in (report, picture)}


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
