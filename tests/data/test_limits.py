"""Data that would take all memory or have no end: links in circles, images and arrays that unpack to gigabytes."""

import gzip
import io
import os
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from sde_score.data import BrokenImage, load_dataset
from sde_score.data.pictures import centre_crop, to_tensor
from sde_score.data.torchvision_sets import read_idx


def save(path, value, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def values(splits):
    """The grey value of every image of both parts."""
    return sorted(int(v) for part in (splits.train, splits.test) for v in part[range(len(part))].x[:, 0, 0, 0])


# Links.


def test_a_folder_with_links_to_itself_ends_and_has_each_image_once(tmp_path):
    root = tmp_path / "cats"
    for k, place in enumerate(("a.png", "more/b.png", "more/deep/c.png", "d.png")):
        save(root / place, k)
    (root / "more" / "up").symlink_to("..")
    (root / "more" / "self").symlink_to(".")
    (root / "a_copy").symlink_to("more")  # sorts before `more`, which is entered under its own name all the same
    (root / "nowhere").symlink_to("lost")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load_dataset(str(root), holdout=0.5)
    assert values(splits) == [0, 1, 2, 3]
    assert splits.info.num_classes is None


def test_a_folder_keeps_its_own_name_where_a_link_leads_to_it_too(tmp_path):
    for k, name in enumerate("bbcc"):
        save(tmp_path / name / f"{k}.png", k)
    (tmp_path / "a").symlink_to("b")
    assert load_dataset(str(tmp_path), holdout=0.5).info.class_names == ("b", "c")


def test_links_out_of_the_folder_are_followed_and_said(tmp_path):
    root, elsewhere = tmp_path / "cats", tmp_path / "elsewhere"
    for k in range(2):
        save(root / f"{k}.png", k)
        save(elsewhere / f"{k}.png", 10 + k)
    save(tmp_path / "one.png", 20)
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)  # out and in again: still each image once
    (root / "single.png").symlink_to(tmp_path / "one.png")
    with pytest.warns(UserWarning, match=r"2 link\(s\) lead out of .*linked -> .*elsewhere.*single.png -> .*one.png"):
        splits = load_dataset(str(root), holdout=0.4)
    assert values(splits) == [0, 1, 10, 11, 20]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    for k in range(3):
        save(tmp_path / f"{k}.png", k)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BrokenImage, match="pipe.png: is no regular file"):
        load_dataset(str(tmp_path))


# Sizes.


def bomb(side):
    """A valid grey PNG of side x side black pixels, without ever holding them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8200, 14000])  # above our limit; above that at which Pillow itself refuses
def test_an_image_above_the_limit_is_refused_by_its_header(tmp_path, monkeypatch, side):
    for k in range(3):
        save(tmp_path / f"{k}.png", k)
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    pattern = rf"bomb.png: is {side}x{side}, {side**2} pixels; at most max_pixels=67108864.*data.max_pixels={side**2}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own warning does not leak
        with pytest.raises(BrokenImage, match=pattern):
            load_dataset(str(tmp_path))


def test_the_limit_can_be_raised_above_pillows_own_which_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for k in range(3):
        save(tmp_path / f"{k}.png", k)
    assert values(load_dataset(str(tmp_path), max_pixels=16)) == [0, 1, 2]
    with pytest.raises(BrokenImage, match="4x4, 16 pixels; at most max_pixels=15"):
        load_dataset(str(tmp_path), max_pixels=15)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_zip_member_that_unpacks_to_gigabytes_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(2):
            buffer = io.BytesIO()
            Image.new("L", (4, 4), k).save(buffer, "PNG")
            archive.writestr(f"{k}.png", buffer.getvalue())
        archive.writestr("big.png", bytes(3 * 2**20))
    read = zipfile.ZipFile.read

    def guarded(self, name):
        assert name != "big.png"
        return read(self, name)

    monkeypatch.setattr(zipfile.ZipFile, "read", guarded)
    with pytest.raises(BrokenImage, match=r"big.png: takes 3145728 bytes, more than.*max_pixels=1000 does.*--config"):
        load_dataset(str(path), max_pixels=1000)
    with pytest.warns(UserWarning, match="Left out 1 of 3"):
        assert values(load_dataset(str(path), max_pixels=1000, on_error="skip", holdout=0.5)) == [0, 1]


def test_arrays_are_measured_by_their_headers(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((4, 2**18), np.uint8), y=np.arange(4))
    np.save(tmp_path / "b.npy", np.zeros((4, 50), np.float32))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=r"'x' in .*npz' takes 0.000977 GiB when unpacked; .*memory_gb=0.0005.*\.npy"):
        load_dataset(str(tmp_path / "a.npz"), memory_gb=0.0005)
    with pytest.raises(ValueError, match=r"samples of 262144 numbers.*max_pixels=1000.*--config.data.max_pixels=26"):
        load_dataset(str(tmp_path / "a.npz"), max_pixels=1000)
    with pytest.raises(ValueError, match=r"b.npy' has samples of 50 numbers.*max_pixels=49"):
        load_dataset(str(tmp_path / "b.npy"), max_pixels=49)
    assert load_dataset(str(tmp_path / "b.npy"), max_pixels=50, holdout=0.5).info.shape == (50,)


def test_a_header_that_promises_more_than_the_file_holds(tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000), }"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"abc")
    with pytest.raises(ValueError, match="shorter than its header says. Is it complete"):
        load_dataset(str(tmp_path / "a.npy"))
    (tmp_path / "images").write_bytes(struct.pack(">4BII", 0, 0, 8, 2, 100_000, 100_000) + b"abc")
    with pytest.raises(ValueError, match="10000000000 bytes of data, more than"):
        read_idx(tmp_path / "images")
    (tmp_path / "b.gz").write_bytes(gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 4) + bytes(10**6)))
    with pytest.raises(ValueError, match="should hold 4 bytes of data and holds more"):
        read_idx(tmp_path / "b.gz")


# Crops.


@pytest.mark.parametrize("width, height, side, corner", [(6, 8, 4, (2, 1)), (7, 7, 4, (1, 1)), (9, 4, 4, (0, 2))])
def test_the_crop_is_the_central_one(width, height, side, corner):
    """Every pixel holds its own number. Where the rest is odd, the smaller part lies to the top and to the left."""
    numbers = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    top, left = corner
    cut = np.asarray(centre_crop(Image.fromarray(numbers), side))
    assert np.array_equal(cut, numbers[top : top + side, left : left + side])
    with pytest.raises(ValueError, match=f"{side + 6}x{side + 6} out of {height}x{width}"):
        centre_crop(Image.fromarray(numbers), side + 6)


@pytest.mark.parametrize("size, box", [((4, 4), (3, 0, 7, 4)), ((4, 2), (4, 0, 6, 4)), ((2, 4), None), ((3, 5), None)])
def test_the_largest_part_of_the_right_proportions_is_cut_out_of_the_middle(size, box):
    """4x10 pixels, lying and standing: the part itself where it has the size; where it is resized, mirrored input gives
    mirrored output."""
    lying = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 10), dtype=np.uint8))
    for image, goal in ((lying, size), (lying.transpose(Image.Transpose.TRANSPOSE), size[::-1])):
        found = to_tensor(image, goal, 1)[0]
        if box:
            part = np.asarray(lying.crop(box))
            assert np.array_equal(found.numpy(), part if image is lying else part.T)
        for turn, axis in ((Image.Transpose.FLIP_LEFT_RIGHT, 1), (Image.Transpose.FLIP_TOP_BOTTOM, 0)):
            mirrored = to_tensor(image.transpose(turn), goal, 1)[0].flip(axis)
            assert (mirrored.int() - found.int()).abs().max() <= 1  # a rounding
