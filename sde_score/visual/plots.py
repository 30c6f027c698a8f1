"""Curves and planes with matplotlib: losses, and for 2-D data densities, score fields and scatters. No display is
needed."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_score.files import write_bytes

BLUE, ORANGE, GREEN, PURPLE, GREY = "#1f4e8c", "#d9622b", "#2a8c5a", "#7d4a9e", "#8a8f98"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": "#444",
    "axes.edgecolor": "#bbb",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#666",
    "ytick.color": "#666",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

Density = Callable[[Tensor], Tensor]
Points = Tensor | np.ndarray


@contextmanager
def figure_of(columns: int = 1, rows: int = 1, *, size: tuple[float, float] = (6.4, 3.8), **keywords: Any) -> Iterator:
    """A figure in the style of the house on its own Agg canvas: the user's backend and settings stay as they are."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **keywords)


PLOTS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")


def save_figure(figure: Any, path: str | os.PathLike) -> Path:
    """Write the figure in the format of the suffix; a PNG with at most 256 colours: a third of the size at no visible
    loss.

    Raises:
        ValueError: another suffix.
    """
    from PIL import Image

    suffix = Path(path).suffix.lower()
    if suffix not in PLOTS:
        raise ValueError(f"A plot is written as {', '.join(PLOTS)}; got {os.fspath(path)!r}.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:])
    if suffix != ".png":
        return write_bytes(path, buffer.getvalue())
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return write_bytes(path, out.getvalue())


# Losses -------------------------------------------------------------------------------------------------------------


def read_metrics(metrics: str | os.PathLike | Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line that a crash left half-written is skipped, any other damage is
    named."""
    if not isinstance(metrics, (str, os.PathLike)):
        return [dict(row) for row in metrics]
    rows = []
    lines = Path(metrics).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{os.fspath(metrics)}, line {number} is not JSON: {error.msg}.") from None
    return rows


def series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one key, in order of step; rows without it, or with a value that is not a finite number,
    are left out.
    A step that occurs twice (a run resumed from an earlier checkpoint) keeps its last value."""
    points = {}
    for row in rows:
        value = row.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and "step" in row:
            points[float(row["step"])] = float(value)
    steps = sorted(points)
    return steps, [points[s] for s in steps]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving average; at the ends over what there is."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    n, half = len(values), window // 2
    return [
        float((total[min(n, i + half + 1)] - total[max(0, i - half)]) / (min(n, i + half + 1) - max(0, i - half)))
        for i in range(n)
    ]


LOSSES = (("loss", "training"), ("val/loss", "validation, EMA"), ("val_raw/loss", "validation, raw weights"))


def plot_loss(path: str | os.PathLike, metrics: str | os.PathLike | Iterable[Mapping[str, Any]]) -> Path:
    """Training and validation loss over the steps, from a ``metrics.jsonl`` or its rows; logarithmic when the values
    span a decade.

    Raises:
        ValueError: no row holds a loss.
    """
    rows = read_metrics(metrics)
    curves = [(label, *series(rows, key)) for key, label in LOSSES]
    curves = [curve for curve in curves if curve[1]]
    if not curves:
        raise ValueError(f"No row with 'step' and one of {', '.join(k for k, _ in LOSSES)}; there is no loss to draw.")
    with figure_of() as (figure, axes):
        ax = axes[0, 0]
        shown = []
        for (label, steps, values), colour in zip(curves, COLOURS):
            if len(steps) > 60:
                ax.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
                values = smooth(values, max(5, len(values) // 30))
            marker = "o" if len(steps) < 20 else None
            ax.plot(steps, values, color=colour, linewidth=1.8, label=label, marker=marker, ms=4)
            shown += values
        if min(shown) > 0 and max(shown) > 10 * min(shown):
            ax.set_yscale("log")
        ax.set(xlabel="step", title="Loss")
        if len(curves) > 1:
            ax.legend()
        return save_figure(figure, path)


_BIN = re.compile(r"(?P<prefix>.+)/loss/logsnr(?P<bin>[<>]?-?[\d.e+-]+?(?:\.\.-?[\d.e+-]+)?)$")


Curve = tuple[list[float], list[float]]  # steps and values


def loss_by_noise(rows: Sequence[Mapping[str, Any]], *, prefix: str = "val") -> dict[str, Curve]:
    """Curves of ``{prefix}/loss/logsnr...``, keyed by bin such as ``-3..0``, from the noisiest to the cleanest."""
    keys = {key for row in rows for key in row if (m := _BIN.match(key)) and m["prefix"] == prefix}
    bins = {_BIN.match(key)["bin"]: series(rows, key) for key in keys}

    def position(label: str) -> tuple[float, int]:
        edge = float(label.lstrip("<>").split("..")[0])
        return edge, -1 if label.startswith("<") else 1

    return {label: bins[label] for label in sorted(bins, key=position) if bins[label][0]}


def bin_in_words(label: str) -> str:
    """``-6..-3`` as "−6 to −3", ``<-6`` as "below −6"."""
    words = label.replace("<", "below ").replace(">", "above ").replace("..", " to ")
    return words.replace("-", "\N{MINUS SIGN}")


def plot_loss_by_noise(
    path: str | os.PathLike, metrics: str | os.PathLike | Iterable[Mapping[str, Any]], *, prefix: str = "val"
) -> Path:
    """Validation loss by log-SNR: one curve for each bin over the steps, and the newest values beside the first.

    The total is dominated by a few noise levels and hides over-fitting at the others.
    """
    bins = loss_by_noise(read_metrics(metrics), prefix=prefix)
    if not bins:
        raise ValueError(f"No row holds {prefix}/loss/logsnr...; give the validation action a log_snr.")
    import matplotlib

    with figure_of(2, size=(4.6, 3.6)) as (figure, axes):
        colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, len(bins)))
        everything = []
        for (label, (steps, values)), colour in zip(bins.items(), colours):
            words = bin_in_words(label)
            axes[0, 0].plot(steps, values, color=colour, linewidth=1.6, label=words, marker="o", ms=3)
            everything += values
        if min(everything) > 0 and max(everything) > 10 * min(everything):
            axes[0, 0].set_yscale("log")
            axes[0, 1].set_yscale("log")
        axes[0, 0].set(xlabel="step", title="Validation loss by log-SNR")
        axes[0, 0].legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2), title="log-SNR")
        first = [values[0] for _, values in bins.values()]
        last = [values[-1] for _, values in bins.values()]
        words = [bin_in_words(label) for label in bins]
        steps = [step for steps, _ in bins.values() for step in steps]
        axes[0, 1].plot(words, first, "o--", color=GREY, ms=4, label=f"step {min(steps):.0f}")
        axes[0, 1].plot(words, last, "o-", color=BLUE, ms=5, label=f"step {max(steps):.0f}")
        axes[0, 1].set(xlabel="log-SNR, from noise to data", title="First and newest")
        axes[0, 1].tick_params(axis="x", labelsize=8, rotation=30)
        axes[0, 1].legend()
        return save_figure(figure, path)


# Planes -------------------------------------------------------------------------------------------------------------


def _as_points(x: Points, what: str = "points") -> np.ndarray:
    x = torch.as_tensor(x).detach().cpu().double()
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"{what} must be (N, 2), got {tuple(x.shape)}.")
    return x[:, :2].numpy()


def extent_of(*clouds: Points, margin: float = 0.15, square: bool = True) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) around the central 99.8 % of the points, square unless told otherwise, with a
    margin."""
    x = np.concatenate([_as_points(c) for c in clouds])
    x = x[np.isfinite(x).all(1)]
    if len(x) == 0:
        raise ValueError("There is no finite point to take an extent from.")
    low, high = np.quantile(x, 0.001, axis=0), np.quantile(x, 0.999, axis=0)
    centre, half = (low + high) / 2, np.maximum((high - low) / 2, 1e-6) * (1 + margin)
    if square:
        half = np.full(2, half.max())
    return (centre[0] - half[0], centre[0] + half[0], centre[1] - half[1], centre[1] + half[1])


def plane(extent: Sequence[float], resolution: int) -> Tensor:
    """Points of a regular grid, ``(resolution^2, 2)`` float32, row by row from the bottom."""
    left, right, bottom, top = extent
    u = torch.linspace(left, right, resolution, dtype=torch.float32)
    v = torch.linspace(bottom, top, resolution, dtype=torch.float32)
    return torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1).reshape(-1, 2)


def _on_plane(log_density: Density | Tensor | np.ndarray, extent: Sequence[float], resolution: int) -> np.ndarray:
    """log p on the grid, ``(R, R)``; a callable maps ``(N, 2)`` to ``(N,)``."""
    if callable(log_density):
        points = plane(extent, resolution)
        values = torch.cat([torch.as_tensor(log_density(part)).detach().cpu() for part in points.split(4096)])
        values = values.reshape(resolution, resolution)
    else:
        values = torch.as_tensor(log_density).detach().cpu()
    values = values.double().numpy()
    if values.ndim != 2:
        raise ValueError(f"A density array must be (rows, columns) on the extent, got {values.shape}.")
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {values.size} log densities are NaN; mask them with -inf.")
    return values


def _plain(ax: Any, extent: Sequence[float], title: str) -> None:
    ax.set(xlim=extent[:2], ylim=extent[2:], aspect="equal", title=title)
    ax.grid(False)


def plot_density(
    path: str | os.PathLike,
    densities: Mapping[str, Density | Tensor | np.ndarray],
    *,
    extent: Sequence[float],
    resolution: int = 120,
    nats: float = 8.0,
) -> Path:
    """Heat maps of log densities side by side on one colour scale, e.g. ``{"truth": log_p, "model": log_q}``.

    Args:
        densities: title -> log density in nats, a callable ``(N, 2) -> (N,)`` or an array ``(R, R)`` whose first row
        is the bottom. extent: (left, right, bottom, top).
        resolution: points along an axis for callables.
        nats: what lies further below the first map's maximum is shown as background.
    """
    maps = {title: _on_plane(d, extent, resolution) for title, d in densities.items()}
    if not maps:
        raise ValueError("plot_density needs at least one density.")
    top = float(next(iter(maps.values())).max())
    with figure_of(len(maps), size=(3.9, 3.6), sharex=True, sharey=True) as (figure, axes):
        for ax, (title, values) in zip(axes[0], maps.items()):
            image = ax.imshow(
                values, origin="lower", extent=tuple(extent), vmin=top - nats, vmax=top, cmap="magma",
                interpolation="bilinear"
            )  # fmt: skip
            _plain(ax, extent, title)
        bar = figure.colorbar(image, ax=list(axes[0]), shrink=0.85, extend="min")
        bar.set_label("log p (nats)")
        bar.outline.set_visible(False)
        return save_figure(figure, path)


def plot_score_field(
    path: str | os.PathLike,
    scores: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    extent: Sequence[float],
    log_density: Density | Tensor | np.ndarray | None = None,
    resolution: int = 22,
) -> Path:
    """Arrows of scores side by side, e.g. ``{"truth": score, "model": model_score}``, each a map ``(N, 2) -> (N, 2)``
    at one time.

    Length is compressed (by the square root) and common to all panels; colour is the norm.

    Args:
        log_density: shaded behind the arrows.
    """
    points = plane(extent, resolution)
    fields = {title: torch.as_tensor(f(points)).detach().cpu().double().numpy() for title, f in scores.items()}
    for title, field in fields.items():
        if field.shape != tuple(points.shape):
            raise ValueError(
                f"The score {title!r} must map {tuple(points.shape)} to the same shape, got {field.shape}."
            )
        if not np.isfinite(field).all():
            raise ValueError(f"The score {title!r} is not finite at {int((~np.isfinite(field).all(1)).sum())} points.")
    largest = max(float(np.linalg.norm(f, axis=1).max()) for f in fields.values()) or 1.0
    shade = None if log_density is None else np.exp(_on_plane(log_density, extent, 120))
    step = (extent[1] - extent[0]) / resolution
    with figure_of(len(fields), size=(3.9, 3.6), sharex=True, sharey=True) as (figure, axes):
        for ax, (title, field) in zip(axes[0], fields.items()):
            if shade is not None:
                grey = {"cmap": "Greys", "alpha": 0.6, "vmin": 0.0, "vmax": 1.6 * float(shade.max())}
                ax.imshow(shade, origin="lower", extent=tuple(extent), interpolation="bilinear", **grey)
            norm = np.linalg.norm(field, axis=1)
            arrows = field / np.maximum(norm, 1e-12)[:, None] * np.sqrt(norm / largest)[:, None] * 1.3 * step
            look = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006, "cmap": "viridis"}
            quiver = ax.quiver(*points.numpy().T, *arrows.T, norm, clim=(0, largest), **look)
            _plain(ax, extent, title)
        bar = figure.colorbar(quiver, ax=list(axes[0]), shrink=0.85)
        bar.set_label("norm of the score")
        bar.outline.set_visible(False)
        return save_figure(figure, path)


def plot_scatter(
    path: str | os.PathLike,
    clouds: Mapping[str, Points],
    *,
    extent: Sequence[float] | None = None,
    most: int = 3000,
    names: Sequence[str] | None = None,
) -> Path:
    """Point clouds side by side on one scale, e.g. ``{"data": x, "samples": y}``; the first ``most`` points of each.

    A title tells how many points there are, and how many lie outside the picture or are not finite, so that no stray
    sample is hidden. ``names`` are those of the two axes. Both have one scale, unless one is five times as wide.
    """
    points = {title: _as_points(x, title) for title, x in clouds.items()}
    if not points:
        raise ValueError("plot_scatter needs at least one cloud of points.")
    # The first cloud (the data) sets the scale: a few stray samples must not shrink it to a dot.
    if extent is None:
        left, right, bottom, top = extent = extent_of(next(iter(points.values())), square=False)
        if 0.2 < (right - left) / (top - bottom) < 5:
            extent = extent_of(next(iter(points.values())))
    one_scale = math.isclose(extent[1] - extent[0], extent[3] - extent[2])
    with figure_of(len(points), size=(3.6, 3.7), sharex=True, sharey=True) as (figure, axes):
        for ax, (title, x), colour in zip(axes[0], points.items(), [GREY, BLUE, ORANGE, GREEN, PURPLE] * len(points)):
            inside = (x >= [extent[0], extent[2]]).all(1) & (x <= [extent[1], extent[3]]).all(1)
            shown = x[inside][:most]
            ax.scatter(*shown.T, s=4, color=colour, alpha=0.45 if len(shown) > 500 else 0.8, linewidths=0)
            outside = len(x) - int(inside.sum())
            _plain(ax, extent, f"{title} ({len(x):,}{f', {outside:,} outside' if outside else ''})")
            if not one_scale:
                ax.set_aspect("auto")
            if names is not None:
                ax.set(xlabel=names[0], ylabel=names[1])
        return save_figure(figure, path)
