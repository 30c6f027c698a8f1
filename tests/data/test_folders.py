"""Where pictures lie: links, archives, parts and classes named by folders, files with several frames."""

import io
import os
import stat
import tarfile
import warnings
import zipfile

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from sde_score.cli.arguments import chosen_config, parse
from sde_score.data import BrokenImage, load_dataset
from sde_score.data.images import _split_of_names
from sde_score.data.sources import Tar, walk
from sde_score.run import build_data


def grey(value, size=(5, 4)):
    return Image.new("L", size, value)


def save(path, value, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey(value).save(path, **settings)


def values(split):
    return sorted(int(v) for v in split[range(len(split))].x[:, 0, 0, 0])


def all_values(splits):
    return sorted(values(splits.train) + values(splits.test))


def png_bytes(value, size=(5, 4)):
    buffer = io.BytesIO()
    grey(value, size).save(buffer, "PNG")
    return buffer.getvalue()


def quietly(*arguments, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_dataset(*arguments, **settings)


# Links.


def test_a_file_that_links_lead_to_is_taken_once(tmp_path):
    root = tmp_path / "cats"
    for k in range(3):
        save(root / f"{k}.png", k)
    save(tmp_path / "far.png", 10)
    (root / "again.png").symlink_to("1.png")
    (root / "a").symlink_to(".")
    for name in ("p.png", "q.png"):  # two links to one file
        (root / name).symlink_to(tmp_path / "far.png")
    with pytest.warns(UserWarning) as seen:
        splits = load_dataset(str(root), holdout=0.5)
    said = " ".join(str(w.message) for w in seen)
    assert all_values(splits) == [0, 1, 2, 10]
    assert "2 link(s) lead out of" in said and "2 link(s) in" in said and "again.png, q.png" in said


def test_a_link_to_nowhere_is_a_broken_picture(tmp_path):
    for k in range(2):
        save(tmp_path / f"{k}.png", k)
    (tmp_path / "lost.png").symlink_to("gone.png")
    with pytest.raises(BrokenImage, match="lost.png: .*No such file"):
        load_dataset(str(tmp_path))


def test_two_folders_that_lead_to_each_other_end(tmp_path):
    for name in "ab":
        save(tmp_path / name / f"{name}.png", ord(name))
    (tmp_path / "a" / "b").symlink_to("../b")
    (tmp_path / "b" / "a").symlink_to("../a")
    files, out, again = walk(tmp_path)
    assert sorted(files) == ["a/a.png", "b/b.png"] and not out and not again


# Archives.


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.xz", ".zip"])
def test_an_archive_equals_its_folder(tmp_path, suffix):
    root = tmp_path / "pets"
    for k, name in enumerate("aabbbccc"):
        save(root / name / f"{k}.png", k)
    (root / "notes.txt").write_text("hello")
    path = tmp_path / f"pets{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(root.rglob("*.*"), reverse=True):
                # as some programs write it
                archive.writestr(zipfile.ZipInfo(str(file.relative_to(tmp_path)).replace("/", "\\")), file.read_bytes())
    else:
        with tarfile.open(path, "w:" + {"ar": "", "gz": "gz", "xz": "xz"}[suffix[-2:]]) as archive:
            for file in sorted(root.rglob("*.*"), reverse=True):
                archive.add(file, f"./{file.relative_to(tmp_path)}")
    packed, plain = quietly(str(path)), quietly(str(root))
    assert packed.info.class_names == ("a", "b", "c") and packed.info.name == "pets"
    for part in ("train", "test"):
        a, b = (getattr(splits, part) for splits in (packed, plain))
        a, b = a[range(len(a))], b[range(len(b))]
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    assert all_values(packed) == list(range(8))
    lazy = quietly(f"folder(path={str(path)!r}, memory_gb=1e-6)")
    assert torch.equal(lazy.train[range(len(lazy.train))].x, packed.train[range(len(packed.train))].x)


def values_of(batch):
    return [int(v) for v in batch.x[:, 0, 0, 0]]


def add(archive, name, data=b"", **facts):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in facts.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def test_names_in_a_tar_lead_nowhere(tmp_path):
    """Links, devices and names that point out of the archive: nothing is followed, nothing is written."""
    secret = tmp_path / "secret.png"
    save(secret, 99)
    path = tmp_path / "in" / "set.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        add(archive, "../1.png", png_bytes(1))
        add(archive, "/2.png", png_bytes(2))
        add(archive, "3.png", type=tarfile.SYMTYPE, linkname=str(secret))
        add(archive, "4.png", type=tarfile.LNKTYPE, linkname="../1.png")  # another name of the first
        add(archive, "5.png", type=tarfile.FIFOTYPE)
        add(archive, "6.png", png_bytes(6))
        add(archive, "6.png", png_bytes(7))  # added later: this one counts
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(UserWarning, match=r"1 link\(s\) in .*set.tar' are left out: 3.png. If they lead"):
        assert all_values(load_dataset(str(path), holdout=0.5)) == [1, 1, 2, 7]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_a_zip_is_said(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for k in range(2):
            archive.writestr(f"{k}.png", png_bytes(k))
        link = zipfile.ZipInfo("2.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "1.png")
    with pytest.warns(UserWarning, match=r"1 link\(s\) in .*set.zip' are left out: 2.png"):
        assert all_values(load_dataset(str(tmp_path / "set.zip"))) == [0, 1]


@pytest.mark.parametrize("kind", ["w", "w:gz"])
def test_a_tar_member_that_unpacks_to_gigabytes_is_refused_unread(tmp_path, monkeypatch, kind):
    path = tmp_path / ("set.tar" if kind == "w" else "set.tgz")
    with tarfile.open(path, kind) as archive:
        for k in range(2):
            add(archive, f"{k}.png", png_bytes(k))
        add(archive, "big.png", bytes(3 * 2**20))
    extract = tarfile.TarFile.extractfile
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda self, m: extract(self, m) if m.size < 2**20 else 1 / 0)
    monkeypatch.setattr(Tar, "read", lambda self, name, read=Tar.read: 1 / 0 if name == "big.png" else read(self, name))
    with pytest.raises(BrokenImage, match=r"big.png: takes 3145728 bytes, more than.*max_pixels=1000 does"):
        load_dataset(str(path), max_pixels=1000)


def test_a_packed_tar_is_held_in_memory_up_to_its_limit(tmp_path, monkeypatch):
    path = tmp_path / "set.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for k in range(4):
            add(archive, f"{k}.png", png_bytes(k))
    size = sum(len(png_bytes(k)) for k in range(4))
    assert len(Tar(path, 2**20, size).kept) == 4
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda *a: pytest.fail("read"))
    with pytest.raises(ValueError, match=r"take .* GiB.*held in memory: at most memory_gb=.*plain .tar or a .zip"):
        Tar(path, 2**20, size - 1)


@pytest.mark.parametrize("kind", ["", ":gz", ":xz"])
def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path, kind):
    """In a header, between files or in one: tarfile alone says nothing of the first two."""
    whole = tmp_path / "whole"
    with tarfile.open(whole, f"w{kind}") as archive:
        for k in range(3):
            add(archive, f"{k}.png", png_bytes(k) + bytes(600))
    data, path = whole.read_bytes(), tmp_path / "set.tar"
    path.write_bytes(data)
    assert len(quietly(str(path)).train) == 2
    for length in (0, 300, 1536, 1700, 2048, 2500, 4608) if not kind else (len(data) // 2, len(data) - 4):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"Cannot open .*set.tar' as a tar archive: .*Is the file complete"):
            load_dataset(str(path))


def test_archives_put_one_behind_the_other_are_not_read_in_part(tmp_path):
    for name in "ab":
        with tarfile.open(tmp_path / name, "w") as archive:
            add(archive, f"{name}.png", png_bytes(1))
            add(archive, f"{name}{name}.png", png_bytes(2))
    (tmp_path / "set.tar").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    with pytest.raises(ValueError, match="something follows its end; unpack it and give the folder"):
        load_dataset(str(tmp_path / "set.tar"))


def test_what_else_lies_there_is_told(tmp_path):
    for name in ("a.heic", "b.heic", "notes.txt", "README", ".hidden.png"):
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"4 file\(s\) seen \(2 .heic, 1 .txt, 1 without suffix\)"):
        load_dataset(str(tmp_path))


# Parts and classes.


def tree(root, **parts):
    """Pictures of the given values; a name like `train_cat` stands for train/cat."""
    for name, numbers in parts.items():
        for value in numbers:
            save(root / name.replace("_", "/") / f"{value}.png", value)
    return str(root)


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_val_is_the_validation_set(tmp_path, val):
    splits = quietly(tree(tmp_path, train=[1, 2, 3], test=[7, 8], **{val: [4, 5]}))
    assert [values(part) for part in (splits.train, splits.val, splits.test)] == [[1, 2, 3], [4, 5], [7, 8]]
    assert splits.val.name == f"{tmp_path.name}/val"
    assert splits.val.names == [f"{val}/4.png", f"{val}/5.png"]


def test_val_without_a_test_part_stands_in_for_it(tmp_path):
    splits = quietly(tree(tmp_path, train=[1, 2, 3], val=[4, 5]))
    assert splits.val is None and values(splits.test) == [4, 5]


def test_a_test_path_leaves_val_what_it_is(tmp_path):
    path, other = tree(tmp_path / "a", train=[1, 2], val=[4]), tree(tmp_path / "b", x=[7, 8])
    splits = quietly(f"folder(path={path!r}, test_path={other!r})")
    assert [values(part) for part in (splits.train, splits.val, splits.test)] == [[1, 2], [4], [7, 8]]
    assert not splits.info.conditions
    tree(tmp_path / "a", test=[9])
    with pytest.raises(ValueError, match="test_path is given, and .* has a folder for test too"):
        load_dataset(f"folder(path={path!r}, test_path={other!r})")


def test_classes_of_all_three_parts(tmp_path):
    splits = quietly(tree(tmp_path, train_cat=[1], train_dog=[2, 3], val_dog=[4], test_cat=[5, 6], train_emu=[9]))
    assert splits.info.class_names == ("cat", "dog", "emu")
    for part, expected in ((splits.train, {1: 0, 2: 1, 3: 1, 9: 2}), (splits.val, {4: 1}), (splits.test, {5: 0, 6: 0})):
        batch = part[range(len(part))]
        assert dict(zip(values_of(batch), batch.y.tolist())) == expected


def test_a_class_that_was_never_trained_is_an_error(tmp_path):
    path = tree(tmp_path, train_cat=[1], train_dog=[2], test_cat=[3], test_dgo=[4])
    with pytest.raises(ValueError, match=r"The test images have classes that no training image has: dgo \(known: cat"):
        load_dataset(path)
    splits = quietly(f"folder(path={path!r}, labels=False)")
    assert not splits.info.conditions and values(splits.test) == [3, 4]


def test_pictures_outside_the_class_folders_are_said(tmp_path):
    with pytest.warns(UserWarning, match="name no classes: 1 images are in none of them, 9.png"):
        splits = load_dataset(tree(tmp_path, cat=[1, 2], dog=[3, 4], **{"": [9]}))
    assert not splits.info.conditions


@pytest.mark.parametrize("outside", ["extra/9.png", "9.png"])
def test_pictures_outside_the_parts_are_an_error(tmp_path, outside):
    """They would have been mixed into both parts."""
    path = tree(tmp_path, train=[1, 2], test=[3])
    save(tmp_path / outside, 9)
    with pytest.raises(ValueError, match=f"folders for test and train, and 1 images outside them, {outside} first"):
        load_dataset(path)


def test_a_part_for_training_is_needed(tmp_path):
    with pytest.raises(ValueError, match="validation and test, but none called train"):
        load_dataset(tree(tmp_path, val=[1, 2], test=[3]))


# The split by name.


def test_no_picture_changes_sides_when_others_come(tmp_path):
    for k in range(40):
        save(tmp_path / f"{k}.png", k)
    before = quietly(str(tmp_path), holdout=0.3)
    for k in range(40, 90):
        save(tmp_path / f"{k}.png", k)
    after = quietly(str(tmp_path), holdout=0.3)
    assert set(values(before.test)) <= set(values(after.test))
    assert set(values(before.train)) <= set(values(after.train))
    assert set(before.test.names) == {f"{v}.png" for v in values(before.test)}


def test_the_share_held_out_and_at_least_one_on_each_side():
    """Binomial: 10,000 names, deviation 30 of 1,000."""
    roles = _split_of_names([f"{k}.png" for k in range(10_000)], 0.1, "data")
    assert 880 < roles.count("test") < 1120
    for holdout in (1e-9, 1 - 1e-9):
        assert sorted(_split_of_names(["a", "b"], holdout, "data")) == ["test", "train"]


# Frames.


def movie(path, numbers, **settings):
    frames = [grey(v) for v in numbers]
    frames[0].save(path, save_all=True, append_images=frames[1:], **settings)


@pytest.mark.parametrize("suffix, settings", [(".gif", {}), (".tif", {}), (".png", {}), (".webp", {"lossless": True})])
def test_frames_are_said_once_and_taken_if_wanted(tmp_path, suffix, settings):
    save(tmp_path / "a.png", 5)
    for name, numbers in (("b", [10, 60, 110]), ("c", [20, 70])):
        movie(tmp_path / f"{name}{suffix}", numbers, **settings)
    with pytest.warns(UserWarning, match=rf"2 of 3 files hold several images \(b\{suffix} 3; c\{suffix} 2\)"):
        splits = load_dataset(str(tmp_path))
    assert all_values(splits) == [5, 10, 20]
    for memory in (2.0, 0):
        splits = quietly(str(tmp_path), frames="all", memory_gb=memory)
        assert all_values(splits) == [5, 10, 20, 60, 70, 110]
        named = {
            name: value for part in (splits.train, splits.test)
            for name, value in zip(part.names, values_of(part[range(len(part))]))
        }  # fmt: skip
        assert named == {
            "a.png": 5, f"b{suffix}#1": 10, f"b{suffix}#2": 60, f"b{suffix}#3": 110, f"c{suffix}#1": 20,
            f"c{suffix}#2": 70,
        }  # fmt: skip
    with pytest.raises(ValueError, match=r"`folder\(frames=...\)` is 'first' or 'all'; got 'every'"):
        load_dataset(str(tmp_path), frames="every")


def test_frames_of_a_movie_are_what_it_shows(tmp_path):
    """Each on top of the one before where it is clear, and on white where nothing was."""
    first = np.array([[1, 3, 2], [3, 0, 3]], np.uint8)  # 3 is clear
    second = np.array([[3, 3, 0], [1, 3, 3]], np.uint8)
    colours = np.array([[10] * 3, [90, 0, 200], [160] * 3, [255, 0, 255]], np.uint8)
    frames = []
    for index in (first, second):
        frame = Image.frombytes("P", (3, 2), index.tobytes())
        frame.putpalette(colours.tobytes())
        frames.append(frame)
    settings = dict(save_all=True, append_images=frames[1:], transparency=3, disposal=1, optimize=False)
    for name in "ab":
        frames[0].save(tmp_path / f"{name}.gif", **settings)
    shown = [np.where(index[..., None] == 3, np.uint8(255), colours[index]) for index in (first, second)]
    shown[1] = np.where(second[..., None] == 3, shown[0], shown[1])
    splits = quietly(str(tmp_path), frames="all", holdout=0.5)
    found = torch.cat([part[range(len(part))].x for part in (splits.train, splits.test)]).permute(0, 2, 3, 1)
    assert {x.contiguous().numpy().tobytes() for x in found} == {x.tobytes() for x in shown}


@pytest.mark.skipif(int(PIL.__version__.partition(".")[0]) < 12, reason="Pillow turns all pages as the first")
def test_pages_are_each_turned_and_smaller_versions_are_no_pages(tmp_path):
    lying, standing = np.arange(20, dtype=np.uint8).reshape(4, 5), np.arange(20, dtype=np.uint8).reshape(5, 4) + 100
    for name in "ab":
        with tiff_writer(tmp_path / f"{name}.tif") as add_page:
            add_page(lying, {})
            add_page(standing, {274: 6})  # shown lying
            add_page(lying[::2, ::2], {254: 1})
    splits = quietly(str(tmp_path), frames="all", holdout=0.5)
    found = torch.cat([part[range(len(part))].x[:, 0] for part in (splits.train, splits.test)])
    expected = [lying, np.rot90(standing, -1)]
    assert len(found) == 4
    assert {x.numpy().tobytes() for x in found} == {np.ascontiguousarray(x).tobytes() for x in expected}


class tiff_writer:
    """Pages with tags of their own."""

    def __init__(self, path):
        self.path, self.pages = path, []

    def __enter__(self):
        return lambda page, tags: self.pages.append((page, tags))

    def __exit__(self, *error):
        images = []
        for page, tags in self.pages:
            image = Image.fromarray(page)
            image.encoderinfo = {"tiffinfo": tags}
            images.append(image)
        images[0].save(self.path, "TIFF", save_all=True, append_images=images[1:])


def test_what_a_camera_adds_to_a_photograph_is_no_picture_of_its_own(tmp_path):
    for name in "ab":
        grey(100, (8, 8)).save(tmp_path / f"{name}.jpg", "MPO", save_all=True, append_images=[grey(1, (8, 8))])
    for frames in ("first", "all"):
        assert len(all_values(quietly(str(tmp_path), frames=frames))) == 2


def test_frames_of_a_broken_file_are_left_out_together(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 256, (4, 5), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(tmp_path / "c.gif", save_all=True, append_images=pages[1:])
    data = (tmp_path / "c.gif").read_bytes()
    (tmp_path / "c.gif").write_bytes(data[: len(data) - 12])
    with pytest.warns(UserWarning, match="Left out 1 of 3.*c.gif"):
        splits = load_dataset(str(tmp_path), frames="all", on_error="skip")
    assert all_values(splits) == [1, 2]


# Grey.


def test_one_coloured_picture_makes_the_data_coloured(tmp_path):
    for k in range(100):
        Image.new("RGB", (4, 4), (k, k, k)).save(tmp_path / f"{k:03}.png")
    assert quietly(str(tmp_path)).info.shape == (1, 4, 4)
    assert quietly(str(tmp_path), channels=3).info.shape == (3, 4, 4)
    Image.new("RGB", (4, 4), (9, 9, 10)).save(tmp_path / "last.png")
    assert quietly(str(tmp_path)).info.shape == (3, 4, 4)


@pytest.mark.skipif(not hasattr(os, "link"), reason="no hard links on this system")
def test_a_hard_link_is_a_file_of_its_own(tmp_path):
    save(tmp_path / "a.png", 1)
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    assert all_values(quietly(str(tmp_path))) == [1, 1]


# From the command line.


def test_the_sizes_and_frames_that_messages_advise_can_be_typed(tmp_path):
    for k, size in enumerate(((60, 50), (40, 70))):
        grey(k, size).save(tmp_path / f"{k}.png")
    with pytest.raises(ValueError, match=r'--config.data.image_size="\(48, 80\)"'):
        load_dataset(str(tmp_path))
    flags = [f"--config.data.name={tmp_path}", "--config.data.image_size=(20, 28)", "--config.data.frames=all"]
    config = chosen_config(parse("train", ["--config=images", *flags], lambda values: None))
    assert build_data(config).info.shape == (1, 20, 28)
    for text, words in (("(0, 3)", "positive number"), ("20x28", "positive number")):
        config.data.image_size = text if "x" in text else (0, 3)
        with pytest.raises(ValueError, match=f"config.data: `image_size` is a {words}"):
            build_data(config)
