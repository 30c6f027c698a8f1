"""Drawing samples from a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_score.data import DataInfo
from sde_score.files import write_bytes
from sde_score.protocols import Constraint
from sde_score.registry import SettingError, suggest
from sde_score.run.build import build_sampler, naming, sampler_settings, told_conditions
from sde_score.run.facts import RunFacts, provenance, write_json
from sde_score.sampling import Callback, ProgressBar, Sampler, Trajectory, callbacks
from sde_score.score import Score
from sde_score.sdes import SDE
from sde_score.tensors import SampleNoise, mix_seed
from sde_score.training import distributed

TRAJECTORY_SAMPLES = 8


@dataclass
class Samples:
    """Samples `(N, *)` as the data are stored: images as whole grey levels, `stored` in uint8; other data as numbers.

    `info` describes the data; `cond` are the conditions of the samples; `facts` say how they were drawn; `trajectory`
    holds some states on the way, in data units.
    """

    stored: Tensor
    info: DataInfo
    cond: dict[str, Tensor]
    facts: dict[str, Any]
    trajectory: Tensor | None = None
    times: list[float] | None = None

    @property
    def levels(self) -> Tensor | None:
        """Images as whole grey levels; `None` for continuous data."""
        return self.stored if self.info.levels is not None else None

    @property
    def x(self) -> Tensor:
        """In data units: images between 0 and 1, made anew at each call."""
        return self.stored if self.info.levels is None else self.stored / (self.info.levels - 1)

    @property
    def labels(self) -> Tensor | None:
        """The classes of a class-conditional model's samples."""
        return self.cond.get("y")

    def save(self, path: str | Path) -> Path:
        """Write `path` (.png: a grid, or a scatter plot of 2-D points; .npz: the numbers)."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            import io

            import numpy as np

            arrays = {"x": self.stored.numpy()} | {name: values.numpy() for name, values in self.cond.items()}
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)
            return write_bytes(path, buffer.getvalue())
        if self.stored.ndim == 2 and self.stored.shape[1] == 2:
            from sde_score.visual.plots import plot_scatter

            return plot_scatter(path, {"samples": self.x})
        if self.stored.ndim == 2:
            raise ValueError("Vectors have no picture; save them as .npz.")
        from sde_score.visual.images import save_grid

        return save_grid(path, self.x)


def draw(
    sampler: Sampler,
    sde: SDE,
    score_for: Callable[[range], Score],
    num: int,
    shape: tuple[int, ...],
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    progress: bool = False,
    trajectory: Callback | None = None,
    constraint: Constraint | None = None,
    callback: Callback | None = None,
    shared: bool = True,
    decode: Callable[[Tensor], Tensor] = lambda z: z,
) -> tuple[Tensor, list[int]]:
    """Samples 0 ... num−1 of `seed`, in chunks, shared among the processes of a torchrun: `(num, *)` on every process,
    and the NFE of each chunk.

    With `shared=False` this process draws them all. `score_for(indices)` gives the score function for those samples.
    Each chunk is put through `decode` when it is drawn, and in its place of the one tensor that is returned. Sample i
    depends on (seed, i) only.
    """
    rank, world = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
    chunks = [range(start, min(start + batch_size, num)) for start in range(0, num, batch_size)]
    out: Tensor | None = None
    nfes = []

    def put(part: Tensor, indices: range) -> None:
        nonlocal out
        if out is None:
            out = torch.empty((num, *part.shape[1:]), dtype=part.dtype)
        out[indices.start : indices.stop] = part

    for number, indices in enumerate(chunks):
        if number % world != rank:
            continue
        noise = SampleNoise(seed, indices)
        x_T = sde.prior_sampling((len(indices), *shape), noise=noise, device=device, dtype=torch.float32)
        bar = ProgressBar(f"samples {indices.start}-{indices.stop - 1} of {num}") if progress else None
        watch = callbacks(bar, callback, trajectory if number == 0 else None)  # the last one may cut the batch
        result = sampler(score_for(indices), x_T, noise=noise, constraint=constraint, callback=watch)
        if bar is not None:
            bar.close()
        put(decode(result.x).cpu(), indices)
        nfes.append(result.nfe)
    if world > 1:
        mine = {k: out[c.start : c.stop].clone() for k, c in enumerate(chunks) if k % world == rank}
        for part in distributed.gather(mine):
            for number, samples in part.items():
                put(samples, chunks[number])
    return out, nfes


class _First:
    """Keeps the first samples of a trajectory only."""

    def __init__(self, inner: Trajectory) -> None:
        self.inner = inner

    def __call__(self, progress) -> None:
        progress.x, progress.x_mean = progress.x[:TRAJECTORY_SAMPLES], progress.x_mean[:TRAJECTORY_SAMPLES]
        self.inner(progress)


def sample(
    run: RunFacts,
    num: int = 64,
    *,
    seed: int = 0,
    labels: Sequence[int | str] | None = None,
    cond: Mapping[str, Tensor] | None = None,
    sampler: Sampler | None = None,
    constraint: Constraint | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    trajectory: bool = False,
    shared: bool = True,
) -> Samples:
    """Draw `num` samples with the settings of `run.config.sampling`.

    Args:
        run: the run.
        num: how many; must be positive.
        seed: sample i is a function of (seed, i), whatever the batch size, the device or the number of processes.
        labels: classes of a class-conditional model, by the data's own labels, repeated in turn; default: all in turn.
        cond: other conditions the model is told, by name, each `(n, *)`, repeated in turn; default: those of the
            held-out samples, in their order.
        sampler: this sampler in the place of that of the configuration.
        constraint: `(z, moment) -> z` in model space, see `Sampler.__call__`.
        callback: sees every step, of each chunk of the batch.
        progress: show a bar.
        trajectory: keep some states of the first samples.
        shared: share the work among the processes of a torchrun.
    """
    if num < 1:
        raise ValueError(f"The number of samples must be positive; got {num}.")
    section = run.config.sampling
    if shared:
        run.warn_of_prior()
    settings = {"method": section.method, **sampler_settings(run.config)}
    if sampler is None:
        sampler = build_sampler(run.config, run.sde)
    else:
        settings = {"method": type(sampler).__name__}
    known = conditions_of(run, num, labels, cond)
    score = run.model.score_fn(compile=section.compile)

    def score_for(indices: range) -> Score:
        return score.bind(**{k: v[indices.start : indices.stop].to(run.device) for k, v in known.items()})

    images = run.info.levels is not None
    kept = Trajectory(frames=12) if trajectory else None
    began = time.monotonic()
    x, nfes = draw(
        sampler,
        run.sde,
        score_for,
        num,
        run.codec.shape,
        seed=seed,
        batch_size=section.batch_size,
        device=run.device,
        progress=progress,
        trajectory=None if kept is None else _First(kept),
        constraint=constraint,
        callback=callback,
        shared=shared,
        decode=run.codec.to_levels if images else run.codec.decode,
    )
    facts = {
        "num": num,
        "seed": seed,
        "step": run.step,
        "sde": run.config.sde,
        "sampling": settings,
        "nfe": max(nfes) if nfes else 0,
        "seconds": round(time.monotonic() - began, 2),
        "provenance": provenance(),
    }
    recorded = kept is not None and bool(kept.kept)
    return Samples(
        stored=x,
        info=run.info,
        cond=known,
        facts=facts,
        trajectory=torch.stack([run.codec.decode(state).cpu() for state in kept.states]) if recorded else None,
        times=kept.times if recorded else None,
    )


def conditions_of(
    run: RunFacts, num: int, labels: Sequence[int | str] | None, cond: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """What the samples 0 ... num−1 are told, each `(num, *)`; see `sample`."""
    told, given = told_conditions(run.config, run.info), dict(cond or {})
    if labels and "y" not in told:
        raise SettingError(
            "This model is not class-conditional: it was trained with config.model.class_conditional=False."
        )
    for name in given:
        if name not in told:
            raise SettingError(f"This model is not told {name!r}.{suggest(name, told)}")
    conditions = run.info.conditions
    found = {
        name: conditions[name].convert(torch.as_tensor(values), len(values), f"The condition {name!r}")
        for name, values in given.items()
    }
    if labels:
        with naming("labels"):
            found["y"] = conditions["y"].numbers(labels)
    elif run.info.num_classes and told == ("y",):
        found.setdefault("y", torch.arange(run.info.num_classes))
    if missing := [name for name in told if name not in found]:
        held_out = run.data.test[range(min(num, len(run.data.test)))].cond
        found |= {name: held_out[name] for name in missing}
    found = {name: found[name][torch.arange(num) % len(found[name])] for name in told}
    return found


def sampler_tag(run: RunFacts) -> str:
    """A file name that says how samples were drawn: `pc_reverse_diffusion_langevin`, `ode`."""
    settings = sampler_settings(run.config)
    parts = [run.config.sampling.method, *(settings[key] for key in ("predictor", "corrector") if key in settings)]
    return "_".join(str(part).partition("(")[0] for part in parts)


def save_samples(samples: Samples, run: RunFacts, tag: str) -> dict[str, str]:
    """Write pictures, numbers and facts of samples into the run directory; returns the paths."""
    folder = run.workdir / "samples"
    folder.mkdir(exist_ok=True)
    files = {"npz": str(samples.save(folder / f"{tag}.npz"))}
    if samples.stored.ndim > 2 or samples.stored.shape[1] == 2:
        files["png"] = str(save_picture(samples, run, folder / f"{tag}.png"))
    if samples.trajectory is not None and samples.stored.ndim > 2:
        from sde_score.visual.images import film_strip, save_gif, save_png

        files["trajectory"] = str(save_png(folder / f"{tag}_trajectory.png", film_strip(samples.trajectory)))
        files["gif"] = str(save_gif(folder / f"{tag}_trajectory.gif", samples.trajectory))
    write_json(folder / f"{tag}.json", samples.facts | {"files": files})
    return files


def save_picture(samples: Samples, run: RunFacts, path: Path) -> Path:
    """A grid; for points of the plane a scatter plot beside the data."""
    if samples.stored.ndim == 2:
        from sde_score.visual.plots import plot_scatter

        if not run.has_data():
            return samples.save(path)
        count = min(len(run.data.test), len(samples.stored))
        return plot_scatter(
            path, {"data": run.codec.decode(run.codec.encode(run.data.test[range(count)].x)), "samples": samples.x}
        )
    return samples.save(path)


def sample_action(run: RunFacts, num: int, seed: int):
    """A training action: a grid of samples of the averaged weights."""

    def action(state) -> None:
        model = state.ema.model if state.ema is not None else state.model
        now = replace(run, model=model, step=state.step)
        try:
            # the other processes wait at the next step
            samples = sample(now, num, seed=mix_seed(seed, 1), shared=False)
            if samples.stored.ndim > 2 or samples.stored.shape[1] == 2:
                (run.workdir / "samples").mkdir(exist_ok=True)  # fails where the run directory was deleted
                save_picture(samples, now, run.workdir / "samples" / f"step_{state.step:08d}.png")
        # an early model may diverge under a sampler; training need not stop for that
        except (FloatingPointError, RuntimeError) as error:
            print(f"No sample grid at step {state.step}: {error}", file=sys.stderr)

    return action
