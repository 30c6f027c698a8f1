"""Samples as pictures: grids, film strips and animations, with Pillow alone.

Every rank has a picture: vectors ``(B, D)``, series ``(B, C, L)``, images ``(B, C, H, W)`` of any number of channels,
volumes ``(B, C, D, H, W)``. Images are uint8, or floats of any unit: ``range=(low, high)`` says which values are black
and white, and is written below the picture where it is not (0, 1).
"""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_score.files import first_line, write_bytes
from sde_score.visual.svg import format_number

BORDER = 255  # white gaps between cells
INK = (31, 78, 140)  # lines and dots
SHADES = ((31, 78, 140), (200, 80, 30), (40, 130, 80), (130, 70, 150))  # one for each channel of a series


Range = tuple[float, float]
"""The values that a picture shows as black and as white, in the data's own units."""

UNIT: Range = (0.0, 1.0)


def own_range(x: Tensor | np.ndarray, *, share: float = 0.005) -> Range:
    """What pictures of ``x`` show as black and white: all but the lowest and the highest ``share`` of its values.

    Raises:
        ValueError: no finite value.
    """
    values = torch.as_tensor(x).detach().cpu().flatten().double()
    values = values[:: max(1, len(values) // 1_000_000)]  # a million of them tell as much
    values = values[torch.isfinite(values)]
    if not len(values):
        raise ValueError("Values that are all NaN or infinite have no range.")
    low, high = np.quantile(values.numpy(), (share, 1 - share)).tolist()
    half = 0.0 if high > low else max(0.5, 1e-3 * abs(low))  # a constant is grey
    return low - half, high + half


def _checked_range(range: Range | None, x: Tensor) -> Range:
    """``range``, or where it is left out 0 to 1, widened to hold every value: nothing is clipped unasked."""
    if range is None:
        low, high = (float(x.min()), float(x.max())) if x.numel() else UNIT
        return min(0.0, low), max(1.0, high)
    low, high = (float(v) for v in range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"range=({low:g}, {high:g}) must be two finite numbers, the smaller one first.")
    return low, high


def to_uint8(x: Tensor | np.ndarray, *, range: Range | None = None) -> Tensor:
    """Floats to uint8 by rounding: ``low`` to 0 and ``high`` to 255, values outside are clipped; uint8 and bool pass.

    ``range=None``: 0 to 1, widened to hold every value, so that nothing is clipped.

    Raises:
        ValueError: values that are not finite (the first sample is named), integers outside 0..255, or no range.
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
    low, high = _checked_range(range, x)
    if (low, high) != UNIT:
        x = (x.double() - low) / (high - low)
    return (x.float().clamp(0, 1) * 255).round().to(torch.uint8)


def _check_finite(x: Tensor) -> None:
    bad = ~torch.isfinite(x).flatten(1).all(1) if x.ndim > 1 else ~torch.isfinite(x)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(x)} samples hold NaN or infinite values, the first is sample "
            f"{int(bad.nonzero()[0])}. Find the step where they appear before drawing them."
        )


def to_cells(x: Tensor | np.ndarray, *, range: Range | None = None) -> np.ndarray:
    """One RGB picture for each sample, ``(B, h, w, 3)`` uint8.

    One channel is grey, three are RGB, two and four to six are set side by side as grey pictures, of more the first
    three make an RGB picture. Volumes show the middle slice across each of the three axes. Series and vectors become
    line plots on a common scale, that of ``range`` or of all values.
    """
    x = torch.as_tensor(x).detach().cpu()
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"A grid needs samples (B, *) with B > 0, got {tuple(x.shape)}; add an axis: x[None].")
    if 0 in x.shape:
        raise ValueError(f"Samples without values cannot be drawn: {tuple(x.shape)}.")
    if x.ndim == 2:
        return _line_cells(x[:, None], range)
    if x.ndim == 3:
        return _line_cells(x, range)
    if x.ndim == 4:
        return _colour(to_uint8(x, range=range).numpy())
    if x.ndim == 5:
        return _slices(to_uint8(x, range=range))
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


def _line_cells(x: Tensor, range: Range | None, *, height: int = 108, width: int = 180) -> np.ndarray:
    """Series ``(B, C, L)`` as lines, one colour for each channel; one scale for all samples."""
    from PIL import Image, ImageDraw

    x = x.double()
    _check_finite(x)
    low, high = (float(x.min()), float(x.max())) if range is None else _checked_range(range, x)
    span = high - low or 1.0
    x = x.clamp(low - span, high + span)  # noise may lie far outside: the line leaves the cell
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


def to_grid(
    x: Tensor | np.ndarray, *, columns: int | None = None, pad: int = 1, range: Range | None = None
) -> np.ndarray:
    """Samples in rows and columns, one uint8 picture ``(H, W, 3)``.

    Args:
        x: ``(B, *)``, floats or uint8; see ``to_cells`` for ranks and channels.
        range: the values shown as black and white; see ``to_uint8``.
        columns: cells in a row; default: a roughly square picture.
        pad: width of the gaps, in pixels of the samples.
    """
    return _tiled(to_cells(x, range=range), columns, pad)


def _tiled(cells: np.ndarray, columns: int | None = None, pad: int = 1) -> np.ndarray:
    """Cells ``(B, h, w, 3)`` in rows and columns."""
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


PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".pdf": "PDF"}
"""Suffixes of pictures and Pillow's words for them."""


def save_picture(path: str | os.PathLike, grid: np.ndarray, *, scale: int | None = None) -> Path:
    """Write a grid, whole or not at all, in the format of the suffix: .png, .jpg, .jpeg, .webp or .pdf. Small images
    are enlarged by a whole factor so that 8x8 digits can be read.

    Raises:
        ValueError: another suffix.
    """
    from PIL import Image

    kind = PICTURES.get(Path(path).suffix.lower())
    if kind is None:
        raise ValueError(
            f"A picture is written as {', '.join(PICTURES)}; got {os.fspath(path)!r}. (Plots are written as .svg too.)"
        )
    if kind == "PNG":
        return write_bytes(path, png_bytes(grid, scale=scale))
    buffer = io.BytesIO()
    quality = {"quality": 92} if kind != "PDF" else {"resolution": 150}
    Image.open(io.BytesIO(png_bytes(grid, scale=scale))).convert("RGB").save(buffer, kind, **quality)
    return write_bytes(path, buffer.getvalue())


def save_grid(
    path: str | os.PathLike,
    x: Tensor | np.ndarray,
    *,
    columns: int | None = None,
    scale: int | None = None,
    range: Range | None = None,
) -> Path:
    """``to_grid`` into a file, with a bar of the values below where ``range`` is given and is not (0, 1)."""
    grid = to_grid(x, columns=columns, range=range)
    grid = enlarge(grid, scale or readable_scale(grid))
    return save_picture(path, with_bar(grid, range, shades=torch.as_tensor(x).ndim > 3), scale=1)


def with_bar(picture: np.ndarray, range: Range | None, *, shades: bool = True) -> np.ndarray:
    """The picture with a strip below that says which values are black and white, or, with ``shades=False``, the lower
    and the upper edge. Without a range, and for (0, 1), as it is.
    """
    if range is None or tuple(range) == UNIT:
        return picture
    from PIL import Image, ImageDraw, ImageFont

    width, size = max(picture.shape[1], 160), 12
    canvas = Image.new("RGB", (width, picture.shape[0] + 2 * size), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    low, high = (format_number(float(v)) for v in range)  # Pillow's own font has no minus sign, but a hyphen
    middle = picture.shape[0] + size
    if not shades:
        draw.text((4, middle), f"vertical axis from {low} to {high}", fill=(70, 70, 70), font=font, anchor="lm")
        return np.asarray(canvas)
    left, right = draw.textlength(low, font=font) + 10, width - draw.textlength(high, font=font) - 10
    draw.text((4, middle), low, fill=(70, 70, 70), font=font, anchor="lm")
    draw.text((width - 4, middle), high, fill=(70, 70, 70), font=font, anchor="rm")
    ramp = np.linspace(0, 255, max(int(right - left), 2)).round().astype(np.uint8)
    bar = Image.fromarray(np.repeat(ramp[None], size, axis=0)).convert("RGB")
    canvas.paste(bar, (int(left), middle - size // 2))
    draw.rectangle((int(left) - 1, middle - size // 2 - 1, int(left) + len(ramp), middle + size // 2), outline="#999")
    return np.asarray(canvas)


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
            _check_finite(frame)
        except ValueError as error:
            raise ValueError(f"Frame {i}: {error}") from None
    low, high = _checked_range(range, frames)
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
    grid = _tiled(cells.reshape(t * b, *cells.shape[2:]), columns=t)
    grid = enlarge(grid, scale or readable_scale(grid, target=1000))
    if times is not None:
        grid = _labelled(grid, [f"t = {float(times[i]):.3g}" for i in which])
    return with_bar(grid, range, shades=frames.ndim > 4)


def _path_cells(frames: Tensor, range: Range | None) -> np.ndarray:
    """Cells of a path, ``(T, B, h, w, 3)``: pictures with each frame at a common contrast, lines on one scale."""
    t, b = frames.shape[:2]
    if frames.ndim > 4 and frames.dtype.is_floating_point:
        frames = calm(frames, _checked_range(range, frames[-1]))
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
    grids = [_tiled(cells, columns) for cells in _path_cells(frames[which], range)]
    scale = scale or readable_scale(grids[0], target=320)
    grids = [with_bar(enlarge(g, scale), range, shades=frames.ndim > 4) for g in grids]
    if times is not None:
        grids = [_labelled(g, [f"t = {float(times[i]):.3g}"]) for g, i in zip(grids, which, strict=True)]
    if Path(path).suffix.lower() == ".mp4":
        return _save_mp4(path, grids, milliseconds, hold)
    few = (frames.ndim == 5 and frames.shape[2] == 1) or frames.ndim == 6
    return write_bytes(path, _gif(grids, milliseconds, hold, greys=24 if few else None))


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
    """H.264 with even sides, as players ask for; written beside its place and then moved there."""
    path = Path(path)
    height, width = (n + n % 2 for n in grids[0].shape[:2])
    stay = max(1, round(hold / milliseconds))
    frames = [np.pad(g, ((0, height - g.shape[0]), (0, width - g.shape[1]), (0, 0)), constant_values=BORDER)
              for g in grids]  # fmt: skip
    raw = b"".join(f.tobytes() for f in [*frames, *[frames[-1]] * (stay - 1)])
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
    command = [_ffmpeg(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
               "-r", f"{1000 / milliseconds:g}", "-i", "-", "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p",
               str(unfinished)]  # fmt: skip
    try:
        done = subprocess.run(command, input=raw, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"ffmpeg could not write {path}: {first_line(RuntimeError(done.stderr.decode()))}")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
