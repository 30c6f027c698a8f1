"""Pictures of samples of any kind, in the data's own units: beside the data, with their range."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sde_score.data import DataInfo
from sde_score.run.facts import RunFacts

# how many of the data are shown beside samples
SHOWN = {"vector": 3000, "series": 500, "image": 64, "volume": 3}
ENOUGH = 1000  # points of a law that can be compared by eye; the training data help out where fewer are held out


def in_units(info: DataInfo, x: Tensor) -> Tensor:
    """Stored data in data units: grey levels between 0 and 1, others as they are."""
    return x if info.levels is None else x.float() / (info.levels - 1)


def shown_range(info: DataInfo, x: Tensor) -> tuple[float, float]:
    """What pictures show as black and white: 0 and 1 for grey levels, else what the facts of the data say, else all but
    the outermost 1 % of the values of `x`."""
    from sde_score.visual.images import own_range

    if info.levels is not None:
        return 0.0, 1.0
    return getattr(info, "range", None) or own_range(x)


def column_names(info: DataInfo) -> tuple[str, ...] | None:
    """Names of a vector's numbers, or of channels, where the data have them."""
    return getattr(info, "columns", None)


def held_out(run: RunFacts) -> Tensor | None:
    """Some held-out data in data units, `None` where the data cannot be loaded."""
    if not run.has_data():
        return None
    wanted = SHOWN[run.info.kind]
    x = run.data.test[range(min(wanted, len(run.data.test)))].x
    lacking = min(wanted, ENOUGH) - len(x) if run.info.kind == "vector" else 0
    if lacking > 0:
        x = torch.cat([x, run.data.train[range(min(lacking, len(run.data.train)))].x])
    return in_units(run.info, x)


def run_range(run: RunFacts, x: Tensor) -> tuple[float, float]:
    """The range of the run's pictures; that of the samples `x` only where nothing else is known."""
    known = getattr(run.info, "range", None) is not None or run.info.levels is not None
    data = None if known else held_out(run)
    return shown_range(run.info, x if data is None else data)


def draw_picture(
    path: Path, info: DataInfo, sets: Mapping[str, Tensor], limits: tuple[float, float] | None = None
) -> Path:
    """A picture of sets of samples `(N, *)` in data units, in the format of the suffix.

    Images become a grid (of the last set), points of the plane scatter plots side by side, other vectors a corner plot,
    series curves and spectra, volumes slices. `limits` are the values shown as black and white; default: those of
    `shown_range` for the first set.
    """
    from sde_score.visual import images, kinds, plots

    first, last = next(iter(sets.values())), list(sets.values())[-1]
    limits = shown_range(info, first) if limits is None else limits
    names = column_names(info)
    if info.kind == "vector":
        if info.shape == (2,):
            return plots.plot_scatter(path, sets, names=names)
        return kinds.plot_corner(path, sets, names=names)
    if info.kind == "series":
        return kinds.plot_series(path, sets, names=names)
    if info.kind == "volume":
        return kinds.plot_volumes(path, sets, range=limits)
    if path.suffix.lower() == ".svg":
        grid = images.to_grid(last, range=limits)
        grid = images.enlarge(grid, images.readable_scale(grid))
        return kinds.plot_picture(path, images.with_bar(grid, limits))
    return images.save_grid(path, last, range=limits)


def save_picture_of(run: RunFacts, path: Path, x: Tensor) -> Path:
    """A picture of samples `x` of a run, beside held-out data where that is what the eye needs."""
    if run.info.kind == "image":
        return draw_picture(path, run.info, {"samples": x}, run_range(run, x))
    data = held_out(run)
    return draw_picture(path, run.info, ({} if data is None else {"data": data}) | {"samples": x})
