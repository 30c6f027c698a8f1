"""Samples beside data, by what they are: corner plots of vectors, curves and spectra of series, slices of volumes.
Everything stands in the data's own units, and the first set of a mapping is the data, which set the scale.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_score.visual.images import Range, own_range
from sde_score.visual.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, figure_of, save_figure

COLOURS = (GREY, BLUE, ORANGE, GREEN, PURPLE)
MOST_COLUMNS = 12  # of a corner plot; of wider vectors as many are shown, evenly spread
MOST_CHANNELS = 4


def _sets(sets: Mapping[str, Tensor], rank: int, axes: str) -> dict[str, np.ndarray]:
    """Sets of samples in float64, of one shape. Raises `ValueError` for another rank, or for values that are not
    finite: the first sample is named."""
    found = {name: torch.as_tensor(x).detach().cpu().double().numpy() for name, x in sets.items()}
    if not found or not all(len(x) for x in found.values()):
        raise ValueError("There is nothing to draw: each set needs at least one sample.")
    for name, x in found.items():
        if x.ndim != rank or x.shape[1:] != next(iter(found.values())).shape[1:] or 0 in x.shape:
            raise ValueError(f"{name} must be {axes}, of the same shape in all sets; got {x.shape}.")
        bad = ~np.isfinite(x).reshape(len(x), -1).all(1)
        if bad.any():
            raise ValueError(
                f"{int(bad.sum())} of {len(x)} {name} hold NaN or infinite values, the first is number "
                f"{int(bad.nonzero()[0][0])}."
            )
    return found


def _names(names: Sequence[str] | None, count: int, word: str) -> list[str]:
    if names is not None and len(names) != count:
        raise ValueError(f"{len(names)} names for {count}: {', '.join(names)}.")
    return list(names) if names is not None else [f"{word} {i}" for i in range(count)]


def plot_corner(
    path: str | os.PathLike, sets: Mapping[str, Tensor], *, names: Sequence[str] | None = None, most: int = 2000
) -> Path:
    """Marginals of vectors on the diagonal, pairs of their numbers below it, all sets over each other.

    Of vectors of more than 12 numbers the marginals of 12, evenly spread, are shown, and the title says so. Axes span
    the first set's central 99 %, with a margin; the legend says how many vectors of another set lie outside.

    Args:
        sets: `{"data": (N, D), "samples": (M, D)}`.
        names: of the D numbers.
        most: points drawn of each set in a pair; marginals take all.

    Raises:
        ValueError: no vector, sets of different widths, values that are not finite.
    """
    clouds = _sets(sets, 2, "vectors (N, D)")
    width = next(iter(clouds.values())).shape[1]
    names = _names(names, width, "number")
    which = list(range(width))
    if width > MOST_COLUMNS:
        which = np.linspace(0, width - 1, MOST_COLUMNS).round().astype(int).tolist()
    first = next(iter(clouds.values()))
    spans = [_span(first[:, i]) for i in which]
    legend = {name: _legend(name, x[:, which], spans) for name, x in clouds.items()}
    if width > MOST_COLUMNS:
        return _marginals(path, clouds, which, spans, names, legend, width)
    count = len(which)
    side = max(1.35, 3.6 / count) if count > 1 else 4.2
    with figure_of(count, count, size=(side, side)) as (figure, axes):
        for row in range(count):
            for column in range(count):
                ax = axes[row, column]
                if column > row:
                    ax.set_visible(False)
                    continue
                if row == column:
                    _histograms(ax, clouds, which[row], spans[row])
                else:
                    for (_, x), colour in zip(clouds.items(), COLOURS):
                        points = x[:most]
                        ax.scatter(points[:, which[column]], points[:, which[row]], s=2, color=colour, alpha=0.4, lw=0)
                    ax.set(xlim=spans[column], ylim=spans[row])
                ax.tick_params(labelsize=7, labelbottom=row == count - 1, labelleft=column == 0 and row > 0)
                ax.locator_params(nbins=3)
                if row == count - 1:
                    ax.set_xlabel(names[which[column]], fontsize=9)
                if column == 0 and row > 0:
                    ax.set_ylabel(names[which[row]], fontsize=9)
        _offsets_into_labels(figure)
        _sign(figure, legend)
        return save_figure(figure, path)


def _marginals(
    path: str | os.PathLike,
    clouds: Mapping[str, np.ndarray],
    which: Sequence[int],
    spans: Sequence[Range],
    names: Sequence[str],
    legend: Mapping[str, str],
    width: int,
) -> Path:
    with figure_of(4, 3, size=(2.6, 1.9)) as (figure, axes):
        for ax, i, span in zip(axes.flat, which, spans):
            _histograms(ax, clouds, i, span)
            ax.tick_params(labelsize=7, labelleft=False)
            ax.locator_params(nbins=4)
            ax.set_xlabel(names[i], fontsize=9)
        _offsets_into_labels(figure)
        _sign(figure, legend, f"Marginals of {len(which)} of {width} numbers, evenly spread")
        return save_figure(figure, path)


def _span(values: np.ndarray) -> Range:
    low, high = own_range(values)
    return low - 0.15 * (high - low), high + 0.15 * (high - low)


def _legend(name: str, x: np.ndarray, spans: Sequence[Range]) -> str:
    low, high = np.array(spans).T
    outside = int(((x < low) | (x > high)).any(1).sum())
    return f"{name} ({len(x):,}{f', {outside:,} reach outside' if outside else ''})"


def _histograms(ax, clouds: Mapping[str, np.ndarray], i: int, span: Range) -> None:
    edges = np.linspace(*span, 41)
    for k, ((_, x), colour) in enumerate(zip(clouds.items(), COLOURS)):
        counts, _ = np.histogram(x[:, i], edges)
        density = counts / (len(x) * (edges[1] - edges[0]))  # those outside count: less than one is seen
        ax.stairs(density, edges, color=colour, fill=k == 0, alpha=0.5 if k == 0 else 1.0, linewidth=1.3)
    ax.set(xlim=span, ylim=(0, None))


def _offsets_into_labels(figure) -> None:
    """What all ticks of an axis have in common (`+2.46e6`) joins its label, on which it would lie otherwise."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            common = axis.get_offset_text()
            if common.get_text() and axis.get_label_text():
                axis.set_label_text(f"{axis.get_label_text()} ({common.get_text()})")
            common.set_visible(False)


def _sign(figure, legend: Mapping[str, str], title: str = "") -> None:
    """A legend of the sets above all panels, and a title."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, linewidth=3) for _, colour in zip(legend, COLOURS)]
    words = {"title": title, "alignment": "left"} if title else {}
    figure.legend(lines, list(legend.values()), loc="outside upper left", ncols=len(lines), fontsize=9, **words)


def plot_series(
    path: str | os.PathLike,
    sets: Mapping[str, Tensor],
    *,
    names: Sequence[str] | None = None,
    curves: int = 8,
    range: Range | None = None,
) -> Path:
    """Series over each other, and the mean power spectrum of each set beside them, one row for each channel.

        P_k = mean over samples of |sum over l of x_l exp(-2 pi i k l / L)|^2 / L,    k = 1 .. L // 2

    Args:
        sets: `{"data": (N, C, L), "samples": (M, C, L)}`; the first four channels are shown.
        names: of the channels.
        curves: drawn of each set; the spectrum takes all.
        range: limits of the vertical axis; default: what is drawn.

    Raises:
        ValueError: no series, sets of different shapes, values that are not finite.
    """
    found = _sets(sets, 3, "series (N, C, L)")
    channels, length = next(iter(found.values())).shape[1:]
    names = _names(names, channels, "channel")
    shown = names[:MOST_CHANNELS]
    with figure_of(2, len(shown), size=(5.2, 2.4)) as (figure, axes):
        for channel, name in enumerate(shown):
            left, right = axes[channel]
            for (_, x), colour in zip(found.items(), COLOURS):
                marker = "o" if length == 1 else None
                left.plot(x[:curves, channel].T, color=colour, linewidth=0.9, alpha=0.65, marker=marker)
                power = (np.abs(np.fft.rfft(x[:, channel], axis=-1)) ** 2).mean(0)[1:] / length
                right.plot(np.arange(1, len(power) + 1), power, color=colour, linewidth=1.5)
            left.set(ylabel=name, ylim=range)
            if any((np.ptp(x[:, channel]) > 0) for x in found.values()) and length > 1:
                right.set(xscale="log", yscale="log")
        axes[-1, 0].set_xlabel("position")
        axes[-1, 1].set_xlabel("periods in the series")
        axes[0, 0].set_title(f"{curves} of each")
        axes[0, 1].set_title("Mean power spectrum")
        hidden = f"Channels 1 to {len(shown)} of {channels}" if channels > len(shown) else ""
        _sign(figure, {name: f"{name} ({len(x):,})" for name, x in found.items()}, hidden)
        return save_figure(figure, path)


def plot_volumes(
    path: str | os.PathLike, sets: Mapping[str, Tensor], *, range: Range | None = None, rows: int = 3
) -> Path:
    """The middle slices of volumes across each axis, labelled, with a colour bar; the first channel.

    Args:
        sets: `{"data": (N, C, D, H, W), "samples": (M, C, D, H, W)}`; `rows` of each are shown.
        range: the values shown as black and white; default: all but the outermost 1 % of the first set.

    Raises:
        ValueError: no volume, sets of different shapes, values that are not finite.
    """
    found = _sets(sets, 5, "volumes (N, C, D, H, W)")
    low, high = own_range(next(iter(found.values()))) if range is None else range
    channels, *sides = next(iter(found.values())).shape[1:]
    volumes = [(f"{name} {i}", x[i, 0]) for name, x in found.items() for i in np.arange(min(rows, len(x)))]
    with figure_of(3, len(volumes), size=(2.2, 2.2)) as (figure, axes):
        for (label, volume), line in zip(volumes, axes):
            for axis, ax in enumerate(line):
                middle = sides[axis] // 2
                image = ax.imshow(np.take(volume, middle, axis), cmap="gray", vmin=low, vmax=high)
                ax.set(xticks=[], yticks=[])
                ax.grid(False)
                if ax in axes[0]:
                    ax.set_title(f"axis {axis + 1}, slice {middle + 1} of {sides[axis]}", fontsize=9)
            line[0].set_ylabel(label, fontsize=9)
        figure.colorbar(image, ax=axes, shrink=0.6, extend="both")
        if channels > 1:
            figure.suptitle(f"Channel 1 of {channels}", fontsize=10)
        return save_figure(figure, path)


def plot_picture(path: str | os.PathLike, picture: np.ndarray) -> Path:
    """A picture `(H, W, 3)` of uint8 as a figure, for .svg."""
    height, width = picture.shape[:2]
    with figure_of(size=(width / 100, height / 100)) as (figure, axes):
        axes[0, 0].imshow(picture, interpolation="nearest")
        axes[0, 0].set_axis_off()
        return save_figure(figure, path)
