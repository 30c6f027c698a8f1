"""Pictures of every kind, made here number by number, load to these numbers or are refused by name.

What is expected is known from how the file was made, not from a decoder. Where the real ImageMagick is installed, it
has to agree, except where it is known to read a file otherwise.
"""

import io
import shutil
import struct
import subprocess
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageCms

from sde_score.data import BrokenImage, load_dataset

PILLOW = int(PIL.__version__.partition(".")[0])
H, W = 6, 9
Y, X = np.mgrid[0:H, 0:W]
GREY = (20 + 23 * Y + 7 * X).astype(np.uint8)
COLOUR = np.stack([20 + 30 * Y + 3 * X, 200 - 17 * Y - 6 * X, 90 + 11 * X], -1).astype(np.uint8)
ALPHA = np.where(Y == 0, 0, np.where(Y == 1, 255, 40 + 20 * X)).astype(np.uint8)
DEEP = (GREY.astype(np.uint16) * 256 + 7 * X + 100 * Y).astype(np.uint16)
PALETTE = np.random.default_rng(0).integers(0, 256, (16, 3), dtype=np.uint8)
GREYS = np.repeat(np.linspace(10, 240, 16).astype(np.uint8)[:, None], 3, 1)
INDEX = ((X + 2 * Y) % 16).astype(np.uint8)


def on_white(values, alpha):
    """v a + 1 - a, in units of 255."""
    a = alpha / 255.0 if values.ndim == 2 else alpha[..., None] / 255.0
    return np.rint(values * a + 255 * (1 - a)).astype(np.uint8)


def of_16(values):
    return np.rint(values / 257).astype(np.uint8)


class Picture(NamedTuple):
    """A file: its suffix and bytes, the values `(H, W)` or `(H, W, 3)` expected, how far off they may be, and whether
    ImageMagick reads the same."""

    suffix: str
    data: bytes
    values: np.ndarray
    off: int = 0
    agreed: bool = True


# --- files written here


def packed(values, depth):
    """Rows of numbers of `depth` bits as bytes, each row filled up to a whole byte."""
    values = np.asarray(values)
    if depth >= 8:
        return [row.astype(f">u{depth // 8}").tobytes() for row in values]
    bits = (values.reshape(len(values), -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1)).tobytes() for row in bits.astype(np.uint8)]


def png(values, kind, depth=8, *before, after=(), interlaced=False):
    """A PNG of colour type `kind`; `before` and `after` the pixels lie further chunks, (name, data)."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    h, w = values.shape[:2]
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    parts = [values[a::b, c::d] for a, b, c, d in passes] if interlaced else [values]
    raw = b"".join(b"\0" + row for part in parts if part.size for row in packed(part, depth))
    header = struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(raw)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def tiff(data, bits, photometric, order="<", *, form=1, extra=None, size=(H, W), more=()):
    """An uncompressed TIFF of one strip; `more` are further entries (tag, type, values), type 3 of 16 and 4 of 32
    bits."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = {
        256: (3, [size[1]]), 257: (3, [size[0]]), 258: (3, bits), 259: (3, [1]), 262: (3, [photometric]),
        273: (4, [8]), 277: (3, [len(bits)]), 278: (3, [size[0]]), 279: (4, [len(data)]), 339: (3, [form] * len(bits)),
    }  # fmt: skip
    if extra is not None:
        entries[338] = (3, [extra])
    entries |= {tag: (kind, values) for tag, kind, values in more}
    place = 8 + len(data) + len(data) % 2
    tail = place + 2 + 12 * len(entries) + 4
    table, values_after = struct.pack(f"{order}H", len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        body = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(body) > 4:
            table += struct.pack(f"{order}HHII", tag, kind, len(values), tail + len(values_after))
            values_after += body
        else:
            table += struct.pack(f"{order}HHI", tag, kind, len(values)) + body.ljust(4, b"\0")
    start = struct.pack(f"{order}I", place)
    return mark + start + data.ljust(place - 8, b"\0") + table + b"\0" * 4 + values_after


def written(values, form, mode=None, **settings):
    """What Pillow writes."""
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, form, **settings)
    return buffer.getvalue()


def raw_image(mode, values):
    return Image.frombytes(mode, (values.shape[1], values.shape[0]), np.ascontiguousarray(values).tobytes())


def with_palette(index, colours, **info):
    image = raw_image("P", index)
    image.putpalette(colours.tobytes())
    image.info |= info
    return image


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def turned(values, orientation):
    """As it is to be shown: 2 mirrored, 3 turned by 180 degrees, 4 upside down, 5 transposed, 6 turned to the right, 7
    transposed about the other diagonal, 8 turned to the left."""
    return {
        1: lambda v: v, 2: lambda v: v[:, ::-1], 3: lambda v: v[::-1, ::-1], 4: lambda v: v[::-1],
        5: lambda v: v.swapaxes(0, 1), 6: lambda v: v[::-1].swapaxes(0, 1),
        7: lambda v: v[::-1, ::-1].swapaxes(0, 1), 8: lambda v: v.swapaxes(0, 1)[::-1],
    }[orientation](values)  # fmt: skip


# --- the corpus

PICTURES: dict[str, Picture] = {}


def add(name, suffix, data, values, off=0, agreed=True):
    PICTURES[name] = Picture(suffix, data, values, off, agreed)


def add_pngs():
    for depth in (1, 2, 4, 8):
        few = GREY >> (8 - depth)
        shown = (few.astype(int) * (255 // (2**depth - 1))).astype(np.uint8)
        key = int(few[3, 4])
        add(f"png grey {depth}", ".png", png(few, 0, depth), shown)
        add(f"png grey {depth} interlaced", ".png", png(few, 0, depth, interlaced=True), shown)
        clear = np.where(few == key, np.uint8(255), shown)
        add(f"png grey {depth} one clear", ".png", png(few, 0, depth, (b"tRNS", struct.pack(">H", key))), clear)
        index = INDEX % min(2**depth, 16)
        for title, colours in (("palette", PALETTE), ("grey palette", GREYS)):
            table = (b"PLTE", colours[: 2**depth].tobytes())
            values = colours[index] if title == "palette" else colours[index][..., 0]
            add(f"png {title} {depth}", ".png", png(index, 3, depth, table), values)
            alphas = np.array([128, 0, *range(20, 240, 16)], np.uint8)[: 2**depth]
            alphas = alphas[: max(1, len(alphas) // 2)]  # the others are opaque
            full = np.concatenate([alphas, np.full(16, 255, np.uint8)])
            data = png(index, 3, depth, table, (b"tRNS", alphas.tobytes()))
            add(f"png {title} {depth} with alphas", ".png", data, on_white(values, full[index]), 1)
    add("png grey 16", ".png", png(DEEP, 0, 16), of_16(DEEP))
    add("png grey 16 interlaced", ".png", png(DEEP, 0, 16, interlaced=True), of_16(DEEP))
    key = int(DEEP[2, 5])  # and no number beside it: they all differ in their low bytes
    data = png(DEEP, 0, 16, (b"tRNS", struct.pack(">H", key)))
    add("png grey 16 one clear", ".png", data, np.where(DEEP == key, np.uint8(255), of_16(DEEP)))
    for interlaced in (False, True):
        word = " interlaced" * interlaced
        add(f"png colour{word}", ".png", png(COLOUR, 2, interlaced=interlaced), COLOUR)
        both = np.dstack([COLOUR, ALPHA])
        add(f"png colour and alpha{word}", ".png", png(both, 6, interlaced=interlaced), on_white(COLOUR, ALPHA), 1)
        both = np.dstack([GREY, ALPHA])
        add(f"png grey and alpha{word}", ".png", png(both, 4, interlaced=interlaced), on_white(GREY, ALPHA), 1)
    key = COLOUR[4, 4]
    clear = np.where((COLOUR == key).all(-1, keepdims=True), np.uint8(255), COLOUR)
    add("png colour one clear", ".png", png(COLOUR, 2, 8, (b"tRNS", struct.pack(">3H", *key))), clear)
    # Pillow keeps the high bytes of such colours: up to one level below the nearest
    wide = COLOUR.astype(np.uint16) * 257
    add("png colour 16", ".png", png(wide, 2, 16), COLOUR)
    both = np.dstack([wide, ALPHA.astype(np.uint16) * 257])
    add("png colour and alpha 16", ".png", png(both, 6, 16), on_white(COLOUR, ALPHA), 1)
    both = np.dstack([GREY.astype(np.uint16) * 257, ALPHA.astype(np.uint16) * 257])
    add("png grey and alpha 16", ".png", png(both, 4, 16), on_white(GREY, ALPHA), 1)
    add("png grey stored as colour", ".png", png(np.dstack([GREY] * 3), 2), GREY)
    late = (b"eXIf", exif(6).tobytes()[6:])
    add("png exif after the pixels", ".png", png(COLOUR, 2, after=[late]), turned(COLOUR, 6), agreed=False)
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    add("png xmp", ".png", png(COLOUR, 2, after=[(b"iTXt", xmp)]), turned(COLOUR, 6), agreed=False)
    add("png gamma", ".png", png(GREY, 0, 8, (b"gAMA", struct.pack(">I", 100_000))), GREY, agreed=False)


def add_tiffs():
    for order, word in (("<", ""), (">", " big-endian")):

        def put(name, values, bits, photometric, expected, off=0, agreed=True, order=order, word=word, **more):
            kind = "" if bits[0] <= 8 else f"{order}u{bits[0] // 8}"
            data = b"".join(packed(values, bits[0])) if bits[0] <= 8 else values.astype(kind).tobytes()
            add(f"tiff {name}{word}", ".tif", tiff(data, bits, photometric, order, **more), expected, off, agreed)

        put("1 bit", GREY > 100, [1], 1, np.where(GREY > 100, 255, 0).astype(np.uint8))
        put("1 bit white is 0", GREY > 100, [1], 0, np.where(GREY > 100, 0, 255).astype(np.uint8))
        put("4 bits", GREY >> 4, [4], 1, (GREY >> 4) * 17)
        put("grey", GREY, [8], 1, GREY)
        put("grey white is 0", GREY, [8], 0, 255 - GREY)
        put("grey 16", DEEP, [16], 1, of_16(DEEP))
        if order == "<":
            put("grey 16 white is 0", DEEP, [16], 0, of_16(65535 - DEEP))
        put("colour", COLOUR, [8] * 3, 2, COLOUR)
        put("colour 16", COLOUR.astype(np.uint16) * 257, [16] * 3, 2, COLOUR)
        put("colour and an unused byte", np.dstack([COLOUR, ALPHA]), [8] * 4, 2, COLOUR, extra=0, agreed=False)
        put("colour and alpha", np.dstack([COLOUR, ALPHA]), [8] * 4, 2, on_white(COLOUR, ALPHA), 1, extra=2)
        # multiplied already: v a is stored, so that a byte of it is 255/a levels of v and one of the picture on white
        times = np.rint(COLOUR * (ALPHA[..., None] / 255.0)).astype(np.uint8)
        put("colour times alpha", np.dstack([times, ALPHA]), [8] * 4, 2, on_white(COLOUR, ALPHA), 2, extra=1)
        put("grey and alpha", np.dstack([GREY, ALPHA]), [8] * 2, 1, on_white(GREY, ALPHA), 1, extra=2)
        times = np.rint(GREY * (ALPHA / 255.0)).astype(np.uint8)
        if PILLOW >= 13:  # those before refuse it by name
            put("grey times alpha", np.dstack([times, ALPHA]), [8] * 2, 1, on_white(GREY, ALPHA), 1, extra=1)
        ink = np.dstack([COLOUR, 255 - GREY])
        dry = np.rint((255.0 - COLOUR) * GREY[..., None] / 255).astype(np.uint8)
        put("inks", ink, [8] * 4, 5, dry, 1)
        colours = np.zeros((256, 3), int)
        colours[:16] = PALETTE
        table = (320, 3, (colours.T.reshape(-1) * 257).tolist())
        put("palette", INDEX, [8], 3, PALETTE[INDEX], 1, more=[table])
        colours[:16] = GREYS
        table = (320, 3, (colours.T.reshape(-1) * 257).tolist())
        put("grey palette", INDEX, [8], 3, GREYS[INDEX][..., 0], 1, more=[table])
        # the file does not say which number is white: the depth is that of the values
        if order == "<":
            put("32 bits holding 8", GREY.astype(np.uint32), [32], 1, GREY, agreed=False)
            put("32 bits holding 16", DEEP.astype(np.uint32), [32], 1, of_16(DEEP), agreed=False)
        put("32 bits with a sign holding 8", GREY.astype(np.uint32), [32], 1, GREY, agreed=False, form=2)
        put("16 bits with a sign holding 8", GREY.astype(np.uint16), [16], 1, GREY, agreed=False, form=2)
    twelve = (DEEP >> 4).astype(int)
    bits = ((twelve[..., None] >> np.arange(11, -1, -1)) & 1).astype(np.uint8)
    data = b"".join(np.packbits(row.reshape(-1)).tobytes() for row in bits)
    add("tiff grey 12", ".tif", tiff(data, [12], 1), np.rint(twelve * 255 / 4095).astype(np.uint8))
    for method in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        add(f"tiff {method}", ".tif", written(COLOUR, "TIFF", compression=method), COLOUR)
    add("tiff jpeg", ".tif", written(GREY, "TIFF", compression="jpeg", quality=95), GREY, 6)


def add_jpegs_and_webps():
    # 8 bits of a cosine transform at quality 95: a few levels
    for name, settings in (("", {}), (" progressive", {"progressive": True}), (" optimised", {"optimize": True})):
        add(f"jpeg grey{name}", ".jpg", written(GREY, "JPEG", quality=95, **settings), GREY, 6)
        data = written(COLOUR, "JPEG", quality=95, subsampling=0, **settings)
        add(f"jpeg colour{name}", ".jpg", data, COLOUR, 12)
    data = written(COLOUR, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0no such thing")
    add("jpeg damaged exif", ".jpg", data, COLOUR, 12)
    add("jpeg grey stored as colour", ".jpg", written(np.dstack([GREY] * 3), "JPEG", quality=95), GREY, 6)
    inks = np.dstack([COLOUR, 255 - GREY])
    dry = np.rint((255.0 - COLOUR) * GREY[..., None] / 255).astype(np.uint8)
    add("jpeg inks", ".jpg", written(raw_image("CMYK", inks), "JPEG", quality=98), dry, 12)
    add("webp colour", ".webp", written(COLOUR, "WEBP", lossless=True), COLOUR)
    add("webp grey", ".webp", written(GREY, "WEBP", lossless=True), GREY)
    data = written(np.dstack([COLOUR, ALPHA]), "WEBP", lossless=True, exact=True)
    add("webp colour and alpha", ".webp", data, on_white(COLOUR, ALPHA), 1)
    data = written(np.dstack([GREY, ALPHA]), "WEBP", lossless=True, exact=True)
    add("webp grey and alpha", ".webp", data, on_white(GREY, ALPHA), 1)
    add("webp with losses", ".webp", written(GREY, "WEBP", quality=95), GREY, 12)


def add_gifs_bmps_and_pnms():
    for interlace in (0, 1):
        data = written(with_palette(INDEX, PALETTE), "GIF", interlace=interlace)
        add(f"gif colour{' interlaced' * interlace}", ".gif", data, PALETTE[INDEX])
    add("gif grey", ".gif", written(GREY, "GIF"), GREY)
    add("gif grey palette", ".gif", written(with_palette(INDEX, GREYS), "GIF"), GREYS[INDEX][..., 0])
    magenta = GREYS.copy()
    magenta[3] = 255, 0, 255  # how a clear place is often marked
    clear = np.where(INDEX == 3, np.uint8(255), GREYS[INDEX][..., 0])
    add("gif clear", ".gif", written(with_palette(INDEX, magenta), "GIF", transparency=3), clear)

    add("bmp 1 bit", ".bmp", written(Image.fromarray(GREY > 100), "BMP"), np.where(GREY > 100, 255, 0).astype(np.uint8))
    add("bmp grey", ".bmp", written(GREY, "BMP"), GREY)
    add("bmp palette", ".bmp", written(with_palette(INDEX, PALETTE), "BMP"), PALETTE[INDEX])
    add("bmp colour", ".bmp", written(COLOUR, "BMP"), COLOUR)
    data = written(np.dstack([COLOUR, ALPHA]), "BMP")
    add("bmp colour and alpha", ".bmp", data, on_white(COLOUR, ALPHA), 1)
    add("bmp colour and zeros", ".bmp", written(np.dstack([COLOUR, 0 * ALPHA]), "BMP"), COLOUR, agreed=False)
    down = data[:22] + struct.pack("<i", -H) + data[26:54] + np.dstack([COLOUR[..., ::-1], ALPHA]).tobytes()
    add("bmp from the top", ".bmp", down, on_white(COLOUR, ALPHA), 1)

    size = f"{W} {H}\n"
    dark = (GREY <= 100).astype(np.uint8)  # 1 is black
    add("pbm", ".pbm", f"P4 {size}".encode() + b"".join(packed(dark, 1)), (1 - dark) * 255)
    add("pbm text", ".pbm", f"P1 {size}{' '.join(map(str, dark.ravel()))}\n".encode(), (1 - dark) * 255)
    add("pgm", ".pgm", f"P5 {size}255\n".encode() + GREY.tobytes(), GREY)
    add("pgm text", ".pgm", f"P2 # a remark\n{size}255\n{' '.join(map(str, GREY.ravel()))}\n".encode(), GREY)
    few = GREY % 16
    add("pgm of 16 levels", ".pgm", f"P5 {size}15\n".encode() + few.tobytes(), few * 17)
    add("pgm 16", ".pgm", f"P5 {size}65535\n".encode() + DEEP.astype(">u2").tobytes(), of_16(DEEP))
    some = DEEP.astype(int) % 1001
    expected = np.rint(some * 255 / 1000).astype(np.uint8)
    add("pgm of 1001 levels", ".pgm", f"P5 {size}1000\n".encode() + some.astype(">u2").tobytes(), expected, 1)
    add("ppm", ".ppm", f"P6 {size}255\n".encode() + COLOUR.tobytes(), COLOUR)
    add("ppm text", ".ppm", f"P3 {size}255\n{' '.join(map(str, COLOUR.ravel()))}\n".encode(), COLOUR)
    wide = (COLOUR.astype(np.uint16) * 257).astype(">u2")
    add("ppm 16", ".pnm", f"P6 {size}65535\n".encode() + wide.tobytes(), COLOUR)


def add_turned_profiled_and_tiny():
    forms = {
        "jpeg": (".jpg", dict(form="JPEG", quality=95, subsampling=0), 12),
        "png": (".png", dict(form="PNG"), 0),
        "webp": (".webp", dict(form="WEBP", lossless=True), 0),
        "tiff": (".tif", dict(form="TIFF"), 0),
    }
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for form, (suffix, settings, off) in forms.items():
        for n in range(1, 9):
            data = written(COLOUR, exif=exif(n), **settings)
            agreed = n == 1 or form in ("jpeg", "tiff")  # ImageMagick 6 does not turn the others
            add(f"{form} orientation {n}", suffix, data, turned(COLOUR, n), off, agreed)
        add(f"{form} with a profile", suffix, written(COLOUR, icc_profile=profile, **settings), COLOUR, off)
        dot = np.full((1, 1, 3), (10, 200, 90), np.uint8)
        add(f"{form} 1x1", suffix, written(dot, **settings), dot, off)
    for form, suffix in (("GIF", ".gif"), ("BMP", ".bmp"), ("PPM", ".pgm")):
        dot = np.full((1, 1), 77, np.uint8)
        add(f"{form.lower()} 1x1", suffix, written(dot, form), dot)


for add_some in (add_pngs, add_tiffs, add_jpegs_and_webps, add_gifs_bmps_and_pnms, add_turned_profiled_and_tiny):
    add_some()


def load_twice(folder, picture, **settings):
    """The values of a data set of the same picture twice, without a warning."""
    for name in "ab":
        (folder / f"{name}{picture.suffix}").write_bytes(picture.data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load_dataset(str(folder), holdout=0.5, **settings)
    first, second = splits.train[[0]].x, splits.test[[0]].x
    assert torch.equal(first, second)
    return first[0].numpy()


@pytest.mark.parametrize("name", PICTURES)
def test_the_numbers_of_the_file(tmp_path, name):
    picture = PICTURES[name]
    found = load_twice(tmp_path, picture)
    expected = picture.values[None] if picture.values.ndim == 2 else picture.values.transpose(2, 0, 1)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= picture.off


def test_the_corpus_is_as_large_as_it_should_be():
    assert len(PICTURES) > 150
    assert {p.suffix for p in PICTURES.values()} >= {".png", ".jpg", ".webp", ".tif", ".gif", ".bmp", ".pgm", ".ppm"}


def cut(form, share, **settings):
    data = written(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8), form, **settings)
    return data[: int(len(data) * share)]


def damaged(data):
    """One bit of the pixels of a PNG turned over."""
    k = data.index(b"IDAT") + 12
    return data[:k] + bytes([data[k] ^ 16]) + data[k + 1 :]


LAB = raw_image("LAB", COLOUR)
AMBIGUOUS = tiff((DEEP.astype("<u4") // 16).tobytes(), [32], 1)
REFUSED = {
    "empty": (".png", b"", "not an image"),
    "text": (".jpg", b"this is no picture", "not an image"),
    "damaged png": (".png", damaged(png(COLOUR, 2)), ""),
    "cut png": (".png", cut("PNG", 0.6), "truncated"),
    "cut jpeg": (".jpg", cut("JPEG", 0.6), "truncated"),
    "cut webp": (".webp", cut("WEBP", 0.6, lossless=True), ""),
    "cut tiff": (".tif", cut("TIFF", 0.6), ""),
    "cut gif": (".gif", cut("GIF", 0.6), ""),
    "cut bmp": (".bmp", cut("BMP", 0.6), "truncated"),
    "cut ppm": (".ppm", cut("PPM", 0.6), "truncated"),
    "floats": (".tif", written(GREY.astype(np.float32), "TIFF"), "floating-point.*npy"),
    "pfm": (
        ".pnm", f"Pf\n{W} {H}\n-1.0\n".encode() + GREY.astype("<f4").tobytes(),
        "floating-point.*npy" if PILLOW > 10 else "not an image",
    ),
    "lab": (".tif", written(LAB, "TIFF"), r"L\*a\*b.*Convert it to RGB"),
    "signed": (".tif", tiff(GREY.tobytes(), [8], 1, form=2), "signed values.*npy"),
    "negative": (".tif", tiff((GREY.astype("<i4") - 100).tobytes(), [32], 1, form=2), "from -80 to.*levels=.*npy"),
    "colours of 16 bits, one clear": (
        ".png", png(COLOUR.astype(np.uint16) * 257, 2, 16, (b"tRNS", struct.pack(">3H", 1, 2, 3))), "alpha channel",
    ),
    "32 bits, big-endian": (".tif", tiff(GREY.astype(">u4").tobytes(), [32], 1, ">"), "kind that Pillow does not"),
    "16 bits white is 0, big-endian": (".tif", tiff(DEEP.astype(">u2").tobytes(), [16], 0, ">"), "kind that Pillow"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_known_is_refused_by_name(tmp_path, name):
    suffix, data, words = REFUSED[name]
    for k in range(2):
        (tmp_path / f"{k}.png").write_bytes(png(np.roll(COLOUR, k), 2))
    (tmp_path / f"the_odd_one{suffix}").write_bytes(data)
    with pytest.raises(BrokenImage, match=rf"1 of 3 .*the_odd_one\{suffix}: .*{words}.*on_error=skip"):
        load_dataset(str(tmp_path), image_size=4)
    with pytest.warns(UserWarning, match=rf"Left out 1 of 3 .*the_odd_one\{suffix}: "):
        splits = load_dataset(str(tmp_path), image_size=4, on_error="skip")
    assert len(splits.train) == len(splits.test) == 1


def test_levels_say_what_a_file_does_not(tmp_path):
    """12 bits kept in 16 or 32: neither the file nor the values tell, so 32 bits are refused without `levels`."""
    picture = Picture(".tif", AMBIGUOUS, np.rint((DEEP // 16).astype(int) * 255 / 4095).astype(np.uint8))
    with pytest.raises(ValueError, match=r"b.tif holds integers up to \d{4}, .*--config.data.levels=4096"):
        load_twice(tmp_path, picture)
    assert np.array_equal(load_twice(tmp_path, picture, levels=4096)[0], picture.values)
    spec = f"folder(path={str(tmp_path)!r}, levels=4096, holdout=0.5)"
    assert np.array_equal(load_dataset(spec).train[[0]].x[0, 0].numpy(), picture.values)
    for k in "ab":
        (tmp_path / f"{k}.tif").write_bytes(tiff((DEEP // 16).astype("<u2").tobytes(), [16], 1))
    assert np.array_equal(load_dataset(spec).train[[0]].x[0, 0].numpy(), picture.values)
    assert load_dataset(str(tmp_path), holdout=0.5).train[[0]].x.max() < 16, "as the file says: 16 bits, nearly black"
    with pytest.raises(BrokenImage, match="2 of 2.*holds numbers from .* where black is 0 and white is 255.*levels"):
        load_dataset(spec.replace("4096", "256"))
    for k in "ab":
        (tmp_path / f"{k}.tif").write_bytes(tiff(GREY.tobytes(), [8], 1))
    with pytest.raises(ValueError, match=r"levels=4096.* is for images of more than 8 bits, and .* holds none"):
        load_dataset(spec)


@pytest.mark.parametrize(
    "top, white", [(1, 255), (255, 255), (256, None), (32767, None), (32768, 65535), (65535, 65535), (65536, None)]
)
def test_the_depth_of_values(tmp_path, top, white):
    """Up to 255 they are of 8 bits; where they need 16, of 16; between and above nothing tells."""
    values = np.array([[0, top // 2, top]])
    picture = Picture(".tif", tiff(values.astype("<i4").tobytes(), [32], 1, form=2, size=(1, 3)), values)
    if white is None:
        flag = f"--config.data.levels={1 << top.bit_length()}" if top < 65536 else r"folder\(path=..., levels=131072\)"
        with pytest.raises(ValueError, match=f"up to {top}, and the file does not say which number is white.*{flag}"):
            load_twice(tmp_path, picture)
    else:
        assert np.array_equal(load_twice(tmp_path, picture)[0], np.rint(values * 255 / white))


def test_depth_is_that_of_all_pictures_together(tmp_path):
    """A dark picture of 16 bits in 32 stays dark beside a bright one."""
    bright = np.full((H, W), 60_000, np.int32)
    dark = np.full((H, W), 200, np.int32)
    for k, values in enumerate((dark, bright, dark)):
        Image.fromarray(values).save(tmp_path / f"{k}.tif")
    splits = load_dataset(str(tmp_path), holdout=0.5)
    found = [int(part[[k]].x.max()) for part in (splits.train, splits.test) for k in range(len(part))]
    assert sorted(found) == [1, 1, 233]


def _magick():
    program = shutil.which("convert-im6.q16") or shutil.which("magick") or shutil.which("convert")
    if program is None:
        return None
    said = subprocess.run([program, "-version"], capture_output=True, text=True)
    return program if said.stdout.startswith("Version: ImageMagick") else None


@pytest.mark.skipif(_magick() is None, reason="needs ImageMagick")
@pytest.mark.parametrize("name", [name for name, picture in PICTURES.items() if picture.agreed])
def test_imagemagick_agrees(tmp_path, name):
    picture = PICTURES[name]
    path = tmp_path / f"picture{picture.suffix}"
    path.write_bytes(picture.data)
    command = [_magick(), f"{path}[0]", "-auto-orient", "-background", "white", "-alpha", "remove"]
    done = subprocess.run([*command, "-colorspace", "sRGB", "-depth", "8", "rgb:-"], capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.uint8)
    expected = picture.values if picture.values.ndim == 3 else np.dstack([picture.values] * 3)
    assert np.abs(found.reshape(expected.shape).astype(int) - expected.astype(int)).max() <= picture.off + 1
