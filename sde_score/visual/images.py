"""Samples as pictures: grids, film strips and animations, with Pillow alone.

Every rank has a picture: vectors ``(B, D)``, series ``(B, C, L)``, images ``(B, C, H, W)`` of any number of channels,
volumes ``(B, C, D, H, W)``. Images are floats in [0, 1] (values outside are clipped) or uint8.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_score.files import write_bytes

BORDER = 255  # white gaps between cells
INK = (31, 78, 140)  # lines and dots
SHADES = ((31, 78, 140), (200, 80, 30), (40, 130, 80), (130, 70, 150))  # one for each channel of a series


def to_uint8(x: Tensor | np.ndarray) -> Tensor:
    """Floats in [0, 1] to uint8 by rounding, clipped; uint8 and bool pass.

    Raises:
        ValueError: values that are not finite (the first sample is named), or integers outside 0..255.
    """
    x = torch.as_tensor(x).detach().cpu()
    if x.dtype == torch.uint8:
        return x
    if x.dtype == torch.bool:
        return x.to(torch.uint8) * 255
    if not x.dtype.is_floating_point:
        if x.numel() and (int(x.min()) < 0 or int(x.max()) > 255):
            raise ValueError(
                f"Integer images run from {int(x.min())} to {int(x.max())}; a picture needs 0..255. Divide them."
            )
        return x.to(torch.uint8)
    _check_finite(x)
    return (x.float().clamp(0, 1) * 255).round().to(torch.uint8)


def _check_finite(x: Tensor) -> None:
    bad = ~torch.isfinite(x).flatten(1).all(1) if x.ndim > 1 else ~torch.isfinite(x)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(x)} samples hold NaN or infinite values, the first is sample "
            f"{int(bad.nonzero()[0])}. Find the step where they appear before drawing them."
        )


def to_cells(x: Tensor | np.ndarray) -> np.ndarray:
    """One RGB picture for each sample, ``(B, h, w, 3)`` uint8.

    One channel is grey, three are RGB, two and four to six are set side by side as grey pictures, of more the first
    three make an RGB picture. Volumes show the middle slice across each of the three axes. Series and vectors become
    line plots on a common scale.
    """
    x = torch.as_tensor(x).detach().cpu()
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"A grid needs samples (B, *) with B > 0, got {tuple(x.shape)}; add an axis: x[None].")
    if 0 in x.shape:
        raise ValueError(f"Samples without values cannot be drawn: {tuple(x.shape)}.")
    if x.ndim == 2:
        return _line_cells(x[:, None])
    if x.ndim == 3:
        return _line_cells(x)
    if x.ndim == 4:
        return _colour(to_uint8(x).numpy())
    if x.ndim == 5:
        return _slices(to_uint8(x))
    raise ValueError(f"No picture is known for samples of shape {tuple(x.shape[1:])}. Index them down to (B, C, H, W).")


def _colour(x: np.ndarray) -> np.ndarray:
    channels = x.shape[1]
    if channels == 1:
        return np.repeat(x.transpose(0, 2, 3, 1), 3, axis=3)
    if channels == 3 or channels > 6:
        return np.ascontiguousarray(x[:, :3].transpose(0, 2, 3, 1))
    side_by_side = np.concatenate([x[:, c] for c in range(channels)], axis=2)
    return np.repeat(side_by_side[..., None], 3, axis=3)


def _slices(x: Tensor) -> np.ndarray:
    _, _, d, h, w = x.shape
    middle = [x[:, :, d // 2], x[:, :, :, h // 2], x[:, :, :, :, w // 2]]
    cells = [_colour(s.numpy()) for s in middle]
    height = max(c.shape[1] for c in cells)
    padded = [np.pad(c, ((0, 0), (0, height - c.shape[1]), (0, 0), (0, 0))) for c in cells]
    return np.concatenate(padded, axis=2)


def _line_cells(x: Tensor, *, height: int = 108, width: int = 180) -> np.ndarray:
    """Series ``(B, C, L)`` as lines, one colour for each channel; one scale for all samples."""
    from PIL import Image, ImageDraw

    x = x.double()
    _check_finite(x)
    low, high = float(x.min()), float(x.max())
    span = high - low or 1.0
    over, margin = 3, 4  # drawn three times as large, then reduced: smooth lines
    cells = []
    for sample in x:
        image = Image.new("RGB", (width * over, height * over), (250, 250, 250))
        draw = ImageDraw.Draw(image)
        for c, channel in enumerate(sample):
            u = torch.linspace(margin, width - margin, len(channel)) if len(channel) > 1 else torch.tensor([width / 2])
            v = height - margin - (channel - low) / span * (height - 2 * margin)
            points = [(float(a) * over, float(b) * over) for a, b in zip(u, v, strict=True)]
            colour = SHADES[c % len(SHADES)]
            if len(points) > 1:
                draw.line(points, fill=colour, width=over + 1, joint="curve")
            if len(points) <= 16:
                for a, b in points:
                    draw.ellipse((a - 5, b - 5, a + 5, b + 5), fill=colour)
        cells.append(np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)))
    return np.stack(cells)


def to_grid(x: Tensor | np.ndarray, *, columns: int | None = None, pad: int = 1) -> np.ndarray:
    """Samples in rows and columns, one uint8 picture ``(H, W, 3)``.

    Args:
        x: ``(B, *)``, floats in [0, 1] or uint8; see ``to_cells`` for ranks and channels.
        columns: cells in a row; default: a roughly square picture.
        pad: width of the gaps, in pixels of the samples.
    """
    cells = to_cells(x)
    n, h, w, _ = cells.shape
    if columns is None:
        columns = max(1, min(n, round(math.sqrt(n * (h + pad) / (w + pad)))))
        if n % columns and (better := [c for c in (columns + 1, columns - 1) if c > 0 and n % c == 0]):
            columns = better[0]
    if columns < 1:
        raise ValueError(f"columns = {columns} must be at least 1.")
    rows = -(-n // columns)
    grid = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, 3), BORDER, dtype=np.uint8)
    for i, cell in enumerate(cells):
        top, left = pad + (i // columns) * (h + pad), pad + (i % columns) * (w + pad)
        grid[top : top + h, left : left + w] = cell
    return grid


def enlarge(grid: np.ndarray, scale: int) -> np.ndarray:
    """Each pixel becomes ``scale`` x ``scale`` pixels; nothing is blurred."""
    if scale < 1 or scale != int(scale):
        raise ValueError(f"scale = {scale} must be a whole number of at least 1.")
    return np.repeat(np.repeat(grid, int(scale), axis=0), int(scale), axis=1)


def readable_scale(grid: np.ndarray, *, target: int = 800) -> int:
    """The largest whole factor (at most 12) that keeps the longer side within ``target`` pixels."""
    return max(1, min(12, target // max(grid.shape[:2])))


def png_bytes(grid: np.ndarray, *, scale: int | None = None) -> bytes:
    """A grid ``(H, W)`` or ``(H, W, 3)`` of uint8 as a PNG; ``scale=None`` picks a readable size."""
    from PIL import Image

    grid = np.asarray(grid)
    if grid.dtype != np.uint8 or grid.ndim not in (2, 3):
        raise ValueError(
            f"A picture is uint8 of shape (H, W) or (H, W, 3), got {grid.dtype} {grid.shape}. Use to_grid(x)."
        )
    if grid.ndim == 3 and grid.shape[2] == 1:
        grid = grid[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(enlarge(grid, scale or readable_scale(grid))).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | os.PathLike, grid: np.ndarray, *, scale: int | None = None) -> Path:
    """Write a grid as PNG, whole or not at all; small images are enlarged by a whole factor so that 8x8 digits can be
    read."""
    return write_bytes(path, png_bytes(grid, scale=scale))


def save_grid(
    path: str | os.PathLike, x: Tensor | np.ndarray, *, columns: int | None = None, scale: int | None = None
) -> Path:
    """``save_png(path, to_grid(x))``."""
    return save_png(path, to_grid(x, columns=columns), scale=scale)


def calm(frames: Tensor) -> Tensor:
    """Frames of a denoising path ``(T, B, *)`` brought to a common contrast.

    The first frames of a variance-exploding path are hundreds of times wider than an image. Each frame is shrunk
    about 1/2 until its root mean square deviation is at most 1/2, the largest that values in [0, 1] can have: images
    within [0, 1] stay what they are.
    """
    frames = torch.as_tensor(frames).detach().cpu()
    if not frames.dtype.is_floating_point:
        return frames
    for i, frame in enumerate(frames):
        try:
            _check_finite(frame)
        except ValueError as error:
            raise ValueError(f"Frame {i}: {error}") from None
    frames = frames.double() - 0.5
    rms = frames.flatten(1).square().mean(1).sqrt().clamp(min=1e-12)
    factor = (0.5 / rms).clamp(max=1.0)
    return (frames * factor.reshape(-1, *[1] * (frames.ndim - 1)) + 0.5).float()


def _chosen(n: int, count: int) -> list[int]:
    """``count`` indices from the first to the last of ``n``, evenly spread."""
    count = min(n, count)
    return [round(i * (n - 1) / max(count - 1, 1)) for i in range(count)] if count > 1 else [n - 1]


def film_strip(
    trajectory: Tensor | Sequence[Tensor],
    *,
    times: Sequence[float] | Tensor | None = None,
    columns: int = 10,
    rows: int = 6,
    scale: int | None = None,
) -> np.ndarray:
    """A denoising path: rows are samples, columns are times from noise to data, ``(H, W, 3)`` uint8, enlarged already.

    Args:
        trajectory: ``(T, B, *)`` or a sequence of ``(B, *)``, in the order of sampling, in data units [0, 1].
        times: ``(T,)`` written above the columns.
        columns: number of times shown, the first and the last included.
        rows: number of samples shown.
        scale: enlargement; ``None`` picks a readable one.
    """
    from PIL import Image, ImageDraw, ImageFont

    frames = _stack(trajectory)
    which = _chosen(len(frames), columns)
    frames = frames[which][:, :rows]
    if frames.ndim > 4:  # (T, B, C, H, W) and volumes: pictures have a range, series their own scale
        frames = calm(frames)
    t, b = frames.shape[:2]
    grid = to_grid(frames.transpose(0, 1).reshape(t * b, *frames.shape[2:]), columns=t)
    scale = scale or readable_scale(grid, target=1000)
    grid = enlarge(grid, scale)
    if times is None:
        return grid
    labels = [f"t = {float(times[i]):.3g}" for i in which]
    size = max(10, min(16, grid.shape[1] // t // 6))
    canvas = Image.new("RGB", (grid.shape[1], grid.shape[0] + 2 * size), "white")
    canvas.paste(Image.fromarray(grid), (0, 2 * size))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    cell = grid.shape[1] / t
    short = max(draw.textlength(s, font=font) for s in labels) > cell
    for i, label in enumerate(labels):
        draw.text(((i + 0.5) * cell, size), label[4:] if short else label, fill=(70, 70, 70), font=font, anchor="mm")
    return np.asarray(canvas)


def _stack(trajectory: Tensor | Sequence[Tensor]) -> Tensor:
    frames = (
        trajectory if isinstance(trajectory, Tensor) else torch.stack([torch.as_tensor(f).cpu() for f in trajectory])
    )
    if frames.ndim < 3 or len(frames) == 0:
        raise ValueError(f"A trajectory is (T, B, *), got {tuple(frames.shape)}.")
    return frames.detach().cpu()


def save_gif(
    path: str | os.PathLike,
    trajectory: Tensor | Sequence[Tensor],
    *,
    columns: int | None = None,
    scale: int | None = None,
    max_frames: int = 40,
    milliseconds: int = 80,
    hold: int = 1500,
) -> Path:
    """A denoising path as an endless animation of the grid; the last frame stays for ``hold`` milliseconds.

    Args:
        trajectory: ``(T, B, *)`` or a sequence of ``(B, *)``, in the order of sampling, in data units [0, 1].
        max_frames: frames kept, evenly spread, the first and the last included.
        milliseconds: duration of a frame.
    """
    from PIL import Image

    frames = _stack(trajectory)
    frames = frames[_chosen(len(frames), max_frames)]
    if frames.ndim > 4:
        frames = calm(frames)
        grids = [to_grid(f, columns=columns) for f in frames]
    else:  # one scale for the whole path: draw all frames together
        t, b = frames.shape[:2]
        cells = to_cells(frames.reshape(t * b, *frames.shape[2:]))
        cells = torch.from_numpy(cells).permute(0, 3, 1, 2).reshape(t, b, 3, *cells.shape[1:3])
        grids = [to_grid(c, columns=columns) for c in cells]
    scale = scale or readable_scale(grids[0], target=320)
    pictures = [Image.fromarray(enlarge(g, scale)) for g in grids]
    if (frames.ndim == 5 and frames.shape[2] == 1) or frames.ndim == 6:
        pictures = [p.convert("L").quantize(24) for p in pictures]  # few greys: noise packs badly
    buffer = io.BytesIO()
    durations = [milliseconds] * (len(pictures) - 1) + [hold]
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
    )
    return write_bytes(path, buffer.getvalue())
