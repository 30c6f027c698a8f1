"""Drawing samples from a run."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_score.data import DataInfo
from sde_score.data.conversion import as_condition
from sde_score.files import first_line, write_bytes
from sde_score.metrics.base import data_hash
from sde_score.protocols import Constraint
from sde_score.registry import SettingError, suggest
from sde_score.run.build import build_sampler, naming, sampler_settings, told_conditions
from sde_score.run.facts import RunFacts, provenance, write_json
from sde_score.run.pictures import column_names, draw_picture, in_units, run_range, save_picture_of, shown_range
from sde_score.run.results import (
    check_tag,
    costs_nothing,
    keep_earlier,
    read_json,
    result_name,
    settings_of,
    spec_word,
    weights_digest,
    write_table,
)
from sde_score.sampling import Callback, Progress, ProgressBar, Sampler, Trajectory, callbacks
from sde_score.score import Score
from sde_score.sdes import SDE
from sde_score.tensors import SampleNoise
from sde_score.training import distributed

TRAJECTORY_SAMPLES, TRAJECTORY_FRAMES = 8, 12
TRAJECTORY_POINTS = 1000  # as many of vectors: a few points show no law
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")
MOVIES = (".gif", ".mp4")
NUMBERS = (".npz", ".npy", ".csv")


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
        return in_units(self.info, self.stored)

    @property
    def labels(self) -> Tensor | None:
        """The classes of a class-conditional model's samples."""
        return self.cond.get("y")

    def save(self, path: str | Path) -> Path:
        """Write `path` as its suffix says:

        - a picture (.png, .jpg, .webp, .pdf, .svg): images as a grid, vectors, series and volumes as a plot;
        - a movie from noise to data (.gif, .mp4), where a trajectory was kept;
        - the numbers: .npz (`x` and the conditions), .npy (`x`), .csv (vectors, a column for each number).

        Raises `ValueError` for another suffix, and for one that these samples have nothing to write in.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (*PICTURES, *MOVIES, *NUMBERS):
            raise ValueError(
                f"Samples are written as {', '.join((*PICTURES, *MOVIES, *NUMBERS))}; got {str(path)!r}."
            )
        if suffix in MOVIES and self.trajectory is None:
            raise ValueError(f"{path.name}: no trajectory was kept to make a movie of; draw with trajectory=True.")
        if suffix == ".csv" and self.stored.ndim != 2:
            raise ValueError(
                f"{path.name}: a .csv holds vectors; samples of shape {tuple(self.stored.shape[1:])} are written as "
                ".npz or .npy."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix in PICTURES:
            return draw_picture(path, self.info, {"samples": self.x})
        if suffix in MOVIES:
            return self.save_movie(path, shown_range(self.info, self.x))
        if suffix == ".npz":
            return write_table(path, {"x": self.stored} | self._told())
        if suffix == ".csv":
            return write_table(path, self._columns())
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, self.stored.numpy())
        return write_bytes(path, buffer.getvalue())

    def save_movie(self, path: str | Path, limits: tuple[float, float]) -> Path:
        """A movie from noise to data (.gif, .mp4) that shows `limits` as black and white."""
        from sde_score.visual.movies import save_movie

        return save_movie(path, self.trajectory, times=self.times, max_frames=len(self.trajectory), range=limits)

    def _told(self) -> dict[str, Tensor | list[int | str]]:
        """The conditions as the user has them: classes by their own labels."""
        described = self.info.conditions
        classes = {name for name, one in described.items() if one.kind == "class"}
        return {n: described[n].own_labels(values) if n in classes else values for n, values in self.cond.items()}

    def _columns(self) -> dict[str, Tensor | list[int | str]]:
        """The numbers of vectors, and their conditions, under their names."""
        width = self.stored.shape[1]
        names = column_names(self.info) or [f"x{i}" for i in range(width)]
        columns: dict[str, Tensor | list[int | str]]
        columns = {str(name): self.stored[:, i] for i, name in enumerate(names)}
        for name, values in self._told().items():
            if isinstance(values, list):
                columns[name] = values
                continue
            flat = values.flatten(1) if values.ndim > 1 else values[:, None]
            columns |= {f"{name}{i if flat.shape[1] > 1 else ''}": flat[:, i] for i in range(flat.shape[1])}
        return columns


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
    `callback` is told of each step. Each chunk is put through `decode` when it is drawn, and in its place of the one
    tensor that is returned. Sample i depends on (seed, i) only.
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
        try:
            result = sampler(score_for(indices), x_T, noise=noise, constraint=constraint, callback=watch)
        finally:
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

    def __init__(self, inner: Trajectory, count: int) -> None:
        self.inner, self.count = inner, count

    def __call__(self, progress: Progress) -> None:
        progress.x, progress.x_mean = progress.x[: self.count], progress.x_mean[: self.count]
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
    trajectory: bool | int = False,
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
        trajectory: keep states of the first samples on their way, the samples themselves at the end: 12, or so many.
        shared: share the work among the processes of a torchrun.
    """
    if num < 1:
        raise ValueError(f"The number of samples must be positive; got {num}.")
    frames = TRAJECTORY_FRAMES if trajectory is True else int(trajectory)
    if frames and frames < 2:
        raise ValueError(f"A trajectory has at least two states; got trajectory={trajectory}.")
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
    kept = Trajectory(frames=frames - 1) if frames else None
    shown = TRAJECTORY_POINTS if run.info.kind == "vector" else TRAJECTORY_SAMPLES
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
        trajectory=None if kept is None else _First(kept, shown),
        constraint=constraint,
        callback=callback,
        shared=shared,
        decode=run.codec.to_levels if images else run.codec.decode,
    )
    facts = {
        "num": num,
        "seed": seed,
        "step": run.step,
        "weights": weights_digest(run.model),
        "sde": run.config.sde,
        "sampling": settings,
        "told": {name: data_hash(values) for name, values in known.items()},
        "nfe": max(nfes) if nfes else 0,
        "seconds": round(time.monotonic() - began, 2),
        "provenance": provenance(),
    }
    samples = Samples(stored=x, info=run.info, cond=known, facts=facts)
    if kept is not None and kept.kept:  # the states on the way, and where it led
        way = torch.stack([run.codec.decode(state).cpu() for state in kept.states])
        samples.trajectory = torch.cat([way, samples.x[None, : way.shape[1]].to(way.dtype)])
        samples.times = [*kept.times, 0.0]
    return samples


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
        name: conditions[name].convert(
            as_condition(values, len(values), f"The condition {name!r}"), len(values), f"The condition {name!r}"
        )
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
    return {name: found[name][torch.arange(num) % len(found[name])] for name in told}


def sampler_tag(run: RunFacts) -> str:
    """How samples are drawn, in a word: `pc_reverse_diffusion_langevin`, `ode`."""
    settings = sampler_settings(run.config)
    parts = [run.config.sampling.method, *(settings[key] for key in ("predictor", "corrector") if key in settings)]
    return "_".join(spec_word(part) for part in parts)


def samples_name(samples: Samples, run: RunFacts) -> str:
    """A file name that says what the samples are."""
    facts = samples.facts
    words = [sampler_tag(run), f"n{facts['num']}", f"step{facts['step']}", f"seed{facts['seed']}"]
    return result_name(words, settings_of(facts))


def save_samples(samples: Samples, run: RunFacts, tag: str | None = None) -> dict[str, str]:
    """Write numbers, facts and pictures of samples into the run directory; returns the paths.

    They are called `tag`, or else by what they are. Other samples that have the name `tag` are kept under another. A
    picture that fails is one line on stderr. Raises `ValueError` where the tag is no plain name.
    """
    folder = run.workdir / "samples"
    folder.mkdir(exist_ok=True)
    name = samples_name(samples, run) if tag is None else check_tag(tag)
    if tag is not None and (moved := keep_earlier(folder, tag, settings_of(samples.facts))):
        print(f"The earlier samples of the name {tag} are now called {moved}.", file=sys.stderr)
    files = {"npz": str(samples.save(folder / f"{name}.npz"))}
    if samples.stored.ndim == 2:
        files["csv"] = str(samples.save(folder / f"{name}.csv"))
    files["json"] = str(folder / f"{name}.json")
    write_json(folder / f"{name}.json", samples.facts)
    with costs_nothing("The picture of the samples"):
        files["png"] = str(save_picture_of(run, folder / f"{name}.png", samples.x))
    if samples.trajectory is not None and samples.stored.ndim > 2:
        from sde_score.visual.images import save_picture
        from sde_score.visual.movies import film_strip

        with costs_nothing("The pictures of the way from noise to data"):
            limits = run_range(run, samples.x)
            film = film_strip(samples.trajectory, times=samples.times, range=limits)
            files["trajectory"] = str(save_picture(folder / f"{name}_trajectory.png", film, scale=1))
            files["gif"] = str(samples.save_movie(folder / f"{name}_trajectory.gif", limits))
    return files


def load_samples(run: RunFacts, source: str | Path) -> Samples:
    """Samples that were drawn before: the name of a set in the run directory, or an .npz file with `x` and conditions.

    Raises `ValueError` where there are none, or where they are not like the data of the run.
    """
    import numpy as np

    folder, path = run.workdir / "samples", Path(source)
    if path.suffix.lower() != ".npz" or not path.is_file():
        path = folder / f"{source}.npz"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.npz"))
        hint = suggest(str(source), known)
        raise ValueError(f"There are no samples {str(source)!r}, neither as a file nor in {folder}.{hint}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
        x = held.pop("x")
    except Exception as error:  # whatever numpy makes of arbitrary bytes
        raise ValueError(f"{path} holds no samples `x` that can be read: {first_line(error)}") from error
    if tuple(x.shape[1:]) != run.info.shape or not len(x):
        wanted = ", ".join(map(str, ("N", *run.info.shape)))
        raise ValueError(f"{path} holds samples of shape {tuple(x.shape)}; those of this run are ({wanted}).")
    levels = run.info.levels
    if levels is not None and (x.dtype != torch.uint8 or int(x.max()) >= levels):
        raise ValueError(f"{path} must hold grey levels 0 to {levels - 1} in uint8; got {x.dtype} up to {x.max()}.")
    if levels is None and not x.is_floating_point():
        raise ValueError(f"{path} must hold real numbers in the data's units; got {x.dtype}.")
    try:
        facts = read_json(path.with_suffix(".json"))
    except ValueError:
        facts = {}
    facts = {"num": len(x), "seed": None, "step": None, "nfe": None, "sampling": None} | facts
    return Samples(stored=x, info=run.info, cond=held, facts=facts | {"num": len(x), "file": str(path)})
