"""The way from noise to data: film strips and movies, with Pillow, and ffmpeg for .mp4."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_score.files import first_line, write_bytes
from sde_score.visual.images import (
    BORDER,
    INK,
    UNIT,
    Range,
    check_finite,
    checked_range,
    enlarge,
    own_range,
    readable_scale,
    tiled,
    to_cells,
    with_bar,
)
from sde_score.visual.svg import format_number


def calm(frames: Tensor, range: Range = UNIT) -> Tensor:
    """Frames of a denoising path ``(T, B, *)`` brought to a common contrast, and ``range`` to [0, 1].

    The first frames of a variance-exploding path are hundreds of times wider than an image. Each frame is shrunk
    about the middle until its root mean square deviation is at most half of the range, the largest that values within
    it can have: images within the range stay what they are.
    """
    frames = torch.as_tensor(frames).detach().cpu()
    if not frames.dtype.is_floating_point:
        return frames
    for i, frame in enumerate(frames):
        try:
            check_finite(frame)
        except ValueError as error:
            raise ValueError(f"Frame {i}: {error}") from None
    low, high = checked_range(range, frames)
    frames = (frames.double() - low) / (high - low) - 0.5
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
    range: Range | None = None,
) -> np.ndarray:
    """A denoising path: rows are samples, columns are times from noise to data, ``(H, W, 3)`` uint8, enlarged already.

    Args:
        trajectory: ``(T, B, *)`` or a sequence of ``(B, *)``, in the order of sampling, in data units.
        times: ``(T,)`` written above the columns.
        columns: number of times shown, the first and the last included.
        rows: number of samples shown.
        scale: enlargement; ``None`` picks a readable one.
        range: the values shown as black and white; default: those of the last frame, at least 0 to 1.
    """
    frames = _stack(trajectory)
    which = _chosen(len(frames), columns)
    t, b = len(which), min(rows, frames.shape[1])
    cells = _path_cells(frames[which][:, :rows], range).swapaxes(0, 1)
    grid = tiled(cells.reshape(t * b, *cells.shape[2:]), columns=t)
    grid = enlarge(grid, scale or readable_scale(grid, target=1000))
    if times is not None:
        grid = _labelled(grid, [f"t = {float(times[i]):.3g}" for i in which])
    return with_bar(grid, range, shades=frames.ndim > 4)


def _path_cells(frames: Tensor, range: Range | None) -> np.ndarray:
    """Cells of a path, ``(T, B, h, w, 3)``: pictures with each frame at a common contrast, lines on one scale."""
    t, b = frames.shape[:2]
    if frames.ndim > 4 and frames.dtype.is_floating_point:
        frames = calm(frames, checked_range(range, frames[-1]))
        range = UNIT
    cells = to_cells(frames.reshape(t * b, *frames.shape[2:]), range=range)
    return cells.reshape(t, b, *cells.shape[1:])


def _labelled(picture: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """The picture with labels above it, evenly spread; too long ones lose their ``t = ``."""
    from PIL import Image, ImageDraw, ImageFont

    cell = picture.shape[1] / len(labels)
    size = int(max(10, min(16, cell // 6)))
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + 2 * size), "white")
    canvas.paste(Image.fromarray(picture), (0, 2 * size))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    short = max(draw.textlength(s, font=font) for s in labels) > cell
    for i, label in enumerate(labels):
        shown = label.removeprefix("t = ") if short else label
        draw.text(((i + 0.5) * cell, size), shown, fill=(70, 70, 70), font=font, anchor="mm")
    return np.asarray(canvas)


def _stack(trajectory: Tensor | Sequence[Tensor]) -> Tensor:
    frames = (
        trajectory if isinstance(trajectory, Tensor) else torch.stack([torch.as_tensor(f).cpu() for f in trajectory])
    )
    if frames.ndim < 3 or len(frames) == 0:
        raise ValueError(f"A trajectory is (T, B, *), got {tuple(frames.shape)}.")
    return frames.detach().cpu()


def save_movie(
    path: str | os.PathLike,
    trajectory: Tensor | Sequence[Tensor],
    *,
    times: Sequence[float] | Tensor | None = None,
    columns: int | None = None,
    scale: int | None = None,
    max_frames: int = 40,
    milliseconds: int = 80,
    hold: int = 1500,
    range: Range | None = None,
) -> Path:
    """A denoising path as a movie of the grid, .gif (endless) or .mp4; the last frame stays for ``hold`` milliseconds.

    Points of the plane move within the extent of their last frame; its limits stand below.

    Args:
        trajectory: ``(T, B, *)`` or a sequence of ``(B, *)``, in the order of sampling, in data units.
        times: ``(T,)``, each written above its frame.
        max_frames: frames kept, evenly spread, the first and the last included.
        milliseconds: duration of a frame.
        range: as in ``film_strip``.

    Raises:
        ValueError: another suffix, or .mp4 without an ffmpeg.
    """
    check_movie(path)
    frames = _stack(trajectory)
    which = _chosen(len(frames), max_frames)
    if frames.ndim == 3 and frames.shape[2] == 2:
        grids = _point_pictures(frames[which])
    else:
        grids = [tiled(cells, columns) for cells in _path_cells(frames[which], range)]
        scale = scale or readable_scale(grids[0], target=320)
        grids = [with_bar(enlarge(g, scale), range, shades=frames.ndim > 4) for g in grids]
    if times is not None:
        grids = [_labelled(g, [f"t = {float(times[i]):.3g}"]) for g, i in zip(grids, which, strict=True)]
    if Path(path).suffix.lower() == ".mp4":
        return _save_mp4(path, grids, milliseconds, hold)
    few = (frames.ndim == 5 and frames.shape[2] == 1) or frames.ndim == 6
    return write_bytes(path, _gif(grids, milliseconds, hold, greys=24 if few else None))


def _point_pictures(frames: Tensor, *, side: int = 320) -> list[np.ndarray]:
    """Points of the plane ``(T, B, 2)`` as dots, a picture for each time."""
    from PIL import Image, ImageDraw

    check_finite(frames.flatten(2).transpose(0, 1))
    low, high = torch.tensor([own_range(frames[-1, :, axis], share=0.0) for axis in (0, 1)], dtype=torch.float64).T
    margin = 0.1 * (high - low)
    low, high = low - margin, high + margin
    pictures, over = [], 2
    for points in frames.double():
        image = Image.new("RGB", (side * over, side * over), "white")
        draw = ImageDraw.Draw(image)
        u = (points - low) / (high - low)
        for a, b in u[((u >= 0) & (u <= 1)).all(1)].tolist():
            x, y = a * side * over, (1 - b) * side * over
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=INK)
        small = np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))
        words = " x ".join(f"[{format_number(float(a))}, {format_number(float(b))}]" for a, b in zip(low, high))
        pictures.append(_captioned(small, words))
    return pictures


def _captioned(picture: np.ndarray, words: str) -> np.ndarray:
    """The picture with small words below it."""
    from PIL import Image, ImageDraw, ImageFont

    size = 12
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + 2 * size), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    font = ImageFont.load_default(size)
    ImageDraw.Draw(canvas).text((4, picture.shape[0] + size), words, fill=(70, 70, 70), font=font, anchor="lm")
    return np.asarray(canvas)


def _gif(grids: Sequence[np.ndarray], milliseconds: int, hold: int, *, greys: int | None) -> bytes:
    from PIL import Image

    pictures = [Image.fromarray(g) for g in grids]
    if greys is not None:
        pictures = [p.convert("L").quantize(greys) for p in pictures]  # few greys: noise packs badly
    buffer = io.BytesIO()
    durations = [milliseconds] * (len(pictures) - 1) + [hold]
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
    )
    return buffer.getvalue()


def check_movie(path: str | os.PathLike) -> None:
    """Raise `ValueError` where no movie can be written at `path`, before the work is done."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise ValueError(f"A movie is written as .gif or .mp4; got {os.fspath(path)!r}.")
    if suffix == ".mp4":
        _ffmpeg()


def _ffmpeg() -> str:
    """The program that packs .mp4: that of the package imageio-ffmpeg, or the system's."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
    if found is None:
        raise ValueError("A movie as .mp4 needs ffmpeg: pip install imageio-ffmpeg, or write it as .gif.")
    return found


def _save_mp4(path: str | os.PathLike, grids: Sequence[np.ndarray], milliseconds: int, hold: int) -> Path:
    """H.264 with even sides, as players ask for."""
    path = Path(path)
    height, width = (n + n % 2 for n in grids[0].shape[:2])
    stay = max(1, round(hold / milliseconds))
    frames = [np.pad(g, ((0, height - g.shape[0]), (0, width - g.shape[1]), (0, 0)), constant_values=BORDER)
              for g in grids]  # fmt: skip
    raw = b"".join(f.tobytes() for f in [*frames, *[frames[-1]] * (stay - 1)])
    made = Path(tempfile.mkdtemp()) / "movie.mp4"  # ffmpeg has to go back and forth in it
    command = [_ffmpeg(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
               "-r", f"{1000 / milliseconds:g}", "-i", "-", "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p",
               str(made)]  # fmt: skip
    try:
        done = subprocess.run(command, input=raw, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"ffmpeg could not write {path}: {first_line(RuntimeError(done.stderr.decode()))}")
        return write_bytes(path, made.read_bytes())
    finally:
        shutil.rmtree(made.parent, ignore_errors=True)
