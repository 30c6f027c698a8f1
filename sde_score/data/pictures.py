"""One picture: from what its decoder returns to grey levels, upright, on white paper, with 8 bits.

What a file says of itself is believed only where the decoder could not say otherwise: sizes, modes and depths are those
of the decoded picture. Colour profiles (ICC) and gamma are not applied: the numbers are those that the file stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

# TIFF's own words for what its numbers mean
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
_ORIENTATION = 0x0112
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # where a PNG may keep it


# --- depth


def _is_deep(image: Image) -> bool:
    """Whether the picture holds integers of more than 8 bits."""
    return image.mode.startswith("I")


def _white(image: Image) -> int | None:
    """The number that a deep picture's file declares to be white; `None` where it declares none: 32 bits and signed
    numbers hold what was put into them."""
    tags = getattr(image, "tag_v2", {})
    if image.mode != "I":
        return (1 << tags.get(_BITS, (16,))[0]) - 1
    return 65535 if image.format in ("PNG", "PPM") else None


def _integers(image: Image) -> np.ndarray:
    """The numbers of a deep picture, `(H, W)`. Pillow itself would clip them at 255."""
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (_SIGNED,))[0] != _SIGNED:
        values &= 2**32 - 1  # Pillow keeps unsigned numbers of 32 bits as if they had a sign
    return values


def _eight_bits(values: np.ndarray, white: int) -> np.ndarray:
    """0 .. `white` to 0 .. 255, rounded."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise ValueError(
            f"holds numbers from {low} to {high}, where black is 0 and white is {white}. Say how many levels there "
            f"are: {_flag(1 << max(high, 1).bit_length())}; or save such data as a .npy array"
        )
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def levels_of(top: int, name: str) -> int:
    """How many levels integers of unknown depth have, from the largest of all: 256, or 65536 where it needs 16 bits.

    Raises `ValueError` where that does not tell.
    """
    if top < 256:
        return 256
    if 2**15 <= top < 2**16:
        return 2**16
    raise ValueError(
        f"{name} holds integers up to {top}, and the file does not say which number is white. Say how many levels "
        f"there are: {_flag(1 << top.bit_length())}; or save such data as a .npy array."
    )


def _flag(levels: int) -> str:
    """Where a number of levels is said; the configuration's key is one of arrays too, which have at most 65536."""
    return f"--config.data.levels={levels}" if levels <= 2**16 else f"folder(path=..., levels={levels})"


# --- transparency


def _transparent_value(image: Image) -> int | tuple[int, ...] | None:
    """The grey value or colour that a picture without an alpha channel declares transparent, as it will be decoded."""
    key = image.info.get("transparency")
    if image.mode not in ("1", "L", "RGB") and not _is_deep(image):
        return None  # a palette's, which Pillow knows to read
    stored = next((str(tile[3]) for tile in getattr(image, "tile", ()) if image.format == "PNG"), "")
    if key is not None and stored.startswith("RGB;16"):
        raise ValueError(
            "has 16 bits per colour and one transparent colour, which 8 bits cannot tell from its neighbours. Save it "
            "with an alpha channel"
        )
    scale = {"L;2": 85, "L;4": 17}.get(stored, 1)  # decoded to 0 .. 255, while the key is as stored
    return key * scale if isinstance(key, int) else key


def _fourth_bytes(image: Image) -> np.ndarray | None:
    """The alpha `(H, W)` that many programs, Pillow too, keep in the fourth byte of a BMP's pixels, which the format
    calls unused and Pillow does not read; `None` where there is none, or all are 0."""
    tile = next(iter(getattr(image, "tile", ())), None)
    if image.format not in ("BMP", "DIB") or tile is None or tile[3][0] != "BGRX" or image.info["compression"] != 0:
        return None
    (width, height), (_, stride, direction) = image.size, tile[3]
    image.fp.seek(tile[2])
    raw = np.frombuffer(image.fp.read(stride * height), np.uint8)
    if len(raw) < stride * height or not (alpha := raw.reshape(height, stride)[:, 3 : 4 * width : 4]).any():
        return None
    return alpha[::direction]


def _on_white(values: np.ndarray, alpha: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """uint8 `(H, W)` or `(H, W, 3)` laid on white: v a + 1 - a, or v + 1 - a where it is stored multiplied."""
    alpha = (alpha if values.ndim == 2 else alpha[..., None]).astype(np.uint16)
    if premultiplied:
        return np.minimum(values + (255 - alpha), 255).astype(np.uint8)
    return ((values * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


# --- the one way in


def _values_and_alpha(image: Image, key: int | tuple[int, ...] | None) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture of at most 8 bits as uint8 `(H, W)` or `(H, W, 3)`, and how opaque it is, `(H, W)`, if it says so."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or image.has_transparency_data else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "La", "RGB", "RGBA", "RGBa"):  # CMYK, YCbCr, HSV; of RGBX the X is nothing
        image = image.convert("RGB")
    values = np.asarray(image)
    if image.mode in ("LA", "La"):
        return values[..., 0], values[..., 1]
    if image.mode in ("RGBA", "RGBa"):
        return values[..., :3], values[..., 3]
    if key is None:
        return values, None
    same = values == key if values.ndim == 2 else (values == np.asarray(key)).all(-1)
    return values, np.where(same, 0, 255)


def decode(image: Image, levels: int | None = None, undeclared: int | None = None) -> Image:
    """An opened picture of any kind as 8-bit grey (mode L) or colour (RGB).

    It is turned upright by its orientation; transparency of every kind (an alpha channel, a palette's, one transparent
    colour) is laid on white; integers of more bits become 8 bits, white becoming 255.

    Args:
        image: a Pillow image; if it has several frames, the current one.
        levels: how many levels all deeper integers have: white is `levels` - 1. By default what the file declares.
        undeclared: how many those have whose file does not say (32 bits, signed). By default the values tell, see
            `levels_of`.

    Raises `ValueError` for floating-point and negative numbers, for L*a*b*, and where nothing tells which number is
    white.
    """
    from PIL import Image

    key, alpha = _transparent_value(image), _fourth_bytes(image)
    image.load()  # only now are size, mode and orientation what they are: decoders may change all three
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F" or (image.mode == "L" and tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED):
        kind = "floating-point" if image.mode == "F" else "signed"
        raise ValueError(f"holds {kind} values; save such data as a .npy array")
    if image.mode == "LAB":
        raise ValueError("holds L*a*b* colours of an unknown white. Convert it to RGB")
    if image.mode in ("L", "RGB") and key is None and alpha is None:
        return _upright(image, image)
    if _is_deep(image):
        stored = _integers(image)
        white = levels - 1 if levels else _white(image)
        if white is None:
            white = (undeclared or levels_of(int(stored.max()), "it")) - 1
        values = _eight_bits(stored, white)
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            values = 255 - values
        alpha = alpha if key is None else np.where(stored == key, 0, 255)
    else:
        values, declared = _values_and_alpha(image, key)
        alpha = alpha if declared is None else declared
    if alpha is not None:
        values = _on_white(values, alpha, premultiplied=image.mode in ("La", "RGBa"))
    return _upright(Image.fromarray(np.ascontiguousarray(values)), image)


def _upright(plain: Image, image: Image) -> Image:
    """`plain` turned as the picture `image`, from which it was made, is to be."""
    from PIL import ImageOps

    if (orientation := image.getexif().get(_ORIENTATION, 1)) == 1:
        return plain
    plain.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(plain)


def is_grey(image: Image) -> bool:
    """Whether an opened picture is grey by its values: three channels that are equal everywhere count as one.

    Colours below an alpha channel count, those that a palette or a file only calls transparent do not.
    """
    image.load()
    if image.mode in ("1", "L", "LA", "La") or _is_deep(image):
        return True
    x = _values_and_alpha(image, None)[0] if image.mode in ("RGBA", "RGBa") else np.asarray(decode(image))
    return bool((x[..., 0] == x[..., 1]).all() and (x[..., 1] == x[..., 2]).all())


def centre_crop(image: Image, side: int) -> Image:
    """The central `side` x `side` pixels of a Pillow image."""
    width, height = image.size
    left, top = (width - side) // 2, (height - side) // 2
    if left < 0 or top < 0:
        raise ValueError(f"cannot crop {side}x{side} out of {height}x{width} pixels")
    return image.crop((left, top, left + side, top + side))


def to_tensor(
    image: Image, size: tuple[int, int], channels: int, levels: int | None = None, undeclared: int | None = None
) -> Tensor:
    """A picture, decoded by `decode`, as uint8 `(channels, H, W)`: the largest central part of the right proportions,
    resized by an antialiased bicubic filter whose overshoot is clamped to 0 .. 255."""
    from PIL import Image

    image = decode(image, levels, undeclared).convert("L" if channels == 1 else "RGB")
    (height, width), (w, h) = size, image.size
    if (h, w) != size:
        scale = max(height / h, width / w)
        cut_w, cut_h = min(w, width / scale), min(h, height / scale)
        left, top = (w - cut_w) / 2, (h - cut_h) / 2
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + cut_w, top + cut_h))
    values = torch.from_numpy(np.array(image))
    return values.unsqueeze(0) if channels == 1 else values.permute(2, 0, 1).contiguous()


# --- what has to be known of all pictures before the first can be made a sample


@dataclass(frozen=True)
class Look:
    """What one look at a picture has shown.

    Attributes:
        size: (height, width), upright.
        grey: whether it is grey by its values; `None` where it has not been decoded to see.
        deep: whether it holds integers of more than 8 bits.
        top: the largest of them, where the file does not say which number is white; else `None`.
    """

    size: tuple[int, int]
    grey: bool | None
    deep: bool = False
    top: int | None = None


def look(image: Image, data: bytes, levels: int | None = None) -> Look:
    """A look at an opened picture of the bytes `data`: by its header where that cannot differ from what is decoded.

    So it is where a format keeps the orientation before the pixels (in a PNG it may come after them, so any sign of it
    counts; a TIFF's decoder may turn the picture or not), and the numbers tell nothing more.
    """
    early = image.format in ("JPEG", "WEBP", "BMP", "DIB", "GIF", "PPM")
    early = early or image.format == "PNG" and not any(sign in data for sign in _PNG_ORIENTATION)
    if early and image.mode != "F" and not _is_deep(image):
        width, height = image.size
        # asked for EXIF that it has not shown, a PNG would decode itself
        turned = image.format != "PNG" and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return Look((width, height) if turned else (height, width), True if image.mode in ("1", "L", "LA") else None)
    unknown = _is_deep(image) and levels is None and _white(image) is None
    plain = decode(image, levels, 2**32 if unknown else None)
    top = int(_integers(image).max()) if unknown else None
    return Look(plain.size[::-1], is_grey(image), _is_deep(image), top)
