"""The user's own folder, zip or array; and what is said when something is wrong with it."""

import io
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from sde_score.data import BatchLoader, BrokenImage, Condition, Scaler, from_arrays, iterate, load_dataset


def picture(height=8, width=8, mode="RGB", seed=0):
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "cats"
    (folder / "sub").mkdir(parents=True)
    for i in range(6):
        picture(seed=i).save(folder / ("sub" if i % 2 else "") / f"{i}.png")
    return folder


def everything(split):
    return split[range(len(split))]


def test_a_bare_path_is_a_data_set(images):
    splits = load_dataset(str(images))
    assert splits.info.shape == (3, 8, 8) and splits.info.levels == 256 and splits.info.num_classes is None
    assert splits.info.name == "cats" and (len(splits.train), len(splits.test)) == (5, 1)
    stored = {np.asarray(Image.open(path)).tobytes() for path in images.rglob("*.png")}
    got = torch.cat([everything(splits.train).x, everything(splits.test).x])
    assert {x.permute(1, 2, 0).contiguous().numpy().tobytes() for x in got} == stored


def test_a_zip_equals_its_folder_and_strange_names_are_paths(images, tmp_path):
    odd = tmp_path / "my cats (1).zip"
    with zipfile.ZipFile(odd, "w") as archive:
        for path in images.rglob("*.png"):
            archive.write(path, f"cats/{path.relative_to(images)}")
        archive.writestr("__MACOSX/cats/._0.png", b"resource fork")
        archive.writestr("cats/readme.txt", b"hello")
    a, b = load_dataset(str(odd)), load_dataset(f"folder(path={str(images)!r})")
    assert torch.equal(everything(a.train).x, everything(b.train).x)
    assert a.info.num_classes is None, "a single top folder is not a class"


def test_classes_and_official_split(tmp_path):
    for part, n in (("train", 3), ("test", 2)):
        for name in ("dog", "cat"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                picture(mode="L", seed=i).save(tmp_path / part / name / f"{i}.png")
    splits = load_dataset(str(tmp_path))
    assert splits.info.class_names == ("cat", "dog") and splits.info.num_classes == 2 and splits.info.shape == (1, 8, 8)
    assert everything(splits.train).y.tolist() == [0, 0, 0, 1, 1, 1] and len(splits.test) == 4
    two = load_dataset(f"folder(path={str(tmp_path / 'train')!r}, test_path={str(tmp_path / 'test')!r})")
    assert torch.equal(everything(two.test).x, everything(splits.test).x)
    assert everything(two.test).y.tolist() == [0, 0, 1, 1]


def test_lazy_reading_equals_reading_at_once(images):
    fast = load_dataset(f"folder(path={str(images)!r}, image_size=(4, 6))")
    slow = load_dataset(f"folder(path={str(images)!r}, image_size=(4, 6), memory_gb=0)")
    for part in ("train", "test"):
        assert torch.equal(everything(getattr(fast, part)).x, everything(getattr(slow, part)).x)


@pytest.mark.parametrize("size", [(16, 16), (12, 30), (5, 3)])
def test_resizing_keeps_constants_proportions_and_range(tmp_path, size):
    """A constant stays constant, the centre is kept, and a sharp edge's overshoot is clamped instead of wrapping
    round."""
    values = np.zeros((80, 40, 3), np.uint8)
    values[:, 20:] = 255
    Image.fromarray(values).save(tmp_path / "edge.png")
    Image.new("RGB", (66, 94), (7, 100, 255)).save(tmp_path / "flat.png")
    splits = load_dataset(str(tmp_path), image_size=size, holdout=0.5)
    x = torch.cat([everything(splits.train).x, everything(splits.test).x])
    flat = next(v for v in x if v[0].float().std() == 0)
    edge = next(v for v in x if v[0].float().std() > 0)
    assert flat[:, 0, 0].tolist() == [7, 100, 255]
    # 127.5 is rounded to one side: one grey level.
    assert (edge.flip(-1).int() - (255 - edge.int())).abs().max() <= 1, "mirror symmetry: the cut is central"
    assert (edge[..., 0] == 0).all() and (edge[..., -1] == 255).all()


def test_unequal_sizes_need_a_size_and_small_images_are_reported(tmp_path):
    picture(8, 8).save(tmp_path / "a.png")
    picture(9, 7).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"a.png is 8x8.*b.png 9x7.*image_size=64"):
        load_dataset(str(tmp_path))
    with pytest.warns(UserWarning, match="2 of 2 images are smaller than 16x16"):
        load_dataset(str(tmp_path), image_size=16)
    for wrong in (0, (3, 4, 5), "big"):
        with pytest.raises(ValueError, match="image_size"):
            load_dataset(str(tmp_path), image_size=wrong)


def test_grey_stays_grey_and_modes_are_converted(tmp_path):
    picture(mode="L").save(tmp_path / "grey.png")
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(deep).save(tmp_path / "deep.png")
    splits = load_dataset(str(tmp_path), holdout=0.5)
    assert splits.info.shape == (1, 8, 8)
    x = torch.cat([everything(splits.train).x, everything(splits.test).x])
    assert any(np.abs(v[0].numpy().astype(float) * 257 - deep).max() <= 129 for v in x), (
        "16 bits are scaled, not clipped"
    )
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    colour = load_dataset(str(tmp_path), holdout=0.3)
    assert colour.info.shape == (3, 8, 8)
    x = torch.cat([everything(colour.train).x, everything(colour.test).x])
    assert any((v == 255).all() for v in x), "full transparency shows the white paper"
    assert load_dataset(str(tmp_path), channels=1).info.shape == (1, 8, 8)


def test_exif_orientation_is_obeyed(tmp_path):
    image = picture(8, 12)
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        image.save(tmp_path / f"{i}.png", exif=exif)
    assert load_dataset(str(tmp_path)).info.shape == (3, 12, 8)


def test_broken_images_are_named_and_refused_or_skipped(images):
    (images / "text.png").write_text("this is no image")
    (images / "empty.jpg").write_bytes(b"")
    buffer = io.BytesIO()
    picture(64, 64).save(buffer, "PNG")
    (images / "sub" / "cut.png").write_bytes(buffer.getvalue()[:2000])
    with pytest.raises(BrokenImage, match=r"2 of 9.*empty.jpg.*text.png.*on_error='skip'"):
        load_dataset(str(images))
    with pytest.warns(UserWarning) as seen:
        splits = load_dataset(str(images), on_error="skip", image_size=8)
    text = " ".join(str(w.message) for w in seen)
    assert all(name in text for name in ("text.png", "empty.jpg", "sub/cut.png"))
    assert len(splits.train) + len(splits.test) == 6
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        load_dataset(str(images), on_error="ignore")


def test_broken_images_met_later_are_replaced_or_named(images):
    buffer = io.BytesIO()
    picture(8, 8).save(buffer, "PNG")
    (images / "2.png").write_bytes(buffer.getvalue()[:100])
    strict = load_dataset(f"folder(path={str(images)!r}, memory_gb=0, holdout=0.2)")
    with pytest.raises(BrokenImage, match="2.png"):
        everything(strict.train), everything(strict.test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lenient = load_dataset(f"folder(path={str(images)!r}, memory_gb=0, holdout=0.2, on_error='skip')")
        assert everything(lenient.train).x.shape == (5, 3, 8, 8)
        assert everything(lenient.test).x.shape == (1, 3, 8, 8)


def test_hopeless_folders(tmp_path):
    with pytest.raises(ValueError, match="no images.*0 file"):
        load_dataset(str(tmp_path))
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(ValueError, match="1 file"):
        load_dataset(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="looked for .*nowhere"):
        load_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="Cannot read .*note.txt.* as a data set"):
        load_dataset(str(tmp_path / "note.txt"))
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK\x03\x04 nothing more")
    with pytest.raises(ValueError, match="zip archive"):
        load_dataset(str(bad))
    picture().save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="1 sample: at least two"):
        load_dataset(str(tmp_path))


def test_names_are_suggested_and_impossible_sizes_refused():
    with pytest.raises(ValueError, match="Did you mean 'checkerboard'.*give a path"):
        load_dataset("chekerboard")
    with pytest.raises(ValueError, match="no argument 'sidee'.*'side'"):
        load_dataset("mixture_grid(sidee=3)")
    with pytest.raises(ValueError, match="8x8; image_size=32 is not available"):
        load_dataset("digits", image_size=32)
    with pytest.raises(ValueError, match="channels=3 is not available"):
        load_dataset("digits", channels=3)
    with pytest.raises(TypeError, match="from_arrays"):
        load_dataset(3)
    assert load_dataset("digits", image_size=8, channels=1, root="x", download=False).info.name == "digits"


# --- arrays


@pytest.mark.parametrize(
    "shape, layout, expected",
    [
        ((10, 5), None, (5,)),
        ((10, 3, 16), None, (3, 16)),
        ((10, 16, 3), "NLC", (3, 16)),
        ((10, 16), "NL", (1, 16)),
        ((10, 1, 6, 8), None, (1, 6, 8)),
        ((10, 6, 8, 3), None, (3, 6, 8)),
        ((10, 5, 6, 8), "NCHW", (5, 6, 8)),
        ((10, 6, 8, 5), "NHWC", (5, 6, 8)),
        ((10, 6, 8), "NHW", (1, 6, 8)),
        ((10, 1, 4, 6, 8), None, (1, 4, 6, 8)),
        ((10, 4, 6, 8), "NDHW", (1, 4, 6, 8)),
        ((10, 4, 6, 8, 2), "NDHWC", (2, 4, 6, 8)),
    ],
)
def test_float_arrays_of_any_rank(tmp_path, shape, layout, expected):
    x = np.random.default_rng(0).normal(3, 2, shape)
    np.save(tmp_path / "a.npy", x)
    splits = load_dataset(str(tmp_path / "a.npy"), layout=layout, holdout=0.2)
    assert splits.info.shape == expected and splits.info.levels is None and 1 <= len(splits.test) <= 5
    got = torch.cat([everything(splits.train).x, everything(splits.test).x])
    assert got.dtype == torch.float64 and float(got.sum()) == pytest.approx(float(x.sum()), rel=1e-12)
    z = Scaler.fit(splits).encode(everything(splits.train).x)
    assert abs(float(z.mean())) < 1e-5 and float(z.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_channels_are_moved_and_not_reshaped(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=x, labels=np.array([2, 0, 1, 1], np.int8))
    splits = load_dataset(str(tmp_path / "a.npz"), holdout=0.25)
    assert splits.info.shape == (3, 5, 6) and splits.info.levels == 256 and splits.info.num_classes == 3
    images, labels = everything(splits.train).x, everything(splits.train).y
    originals = {v.tobytes(): int(l) for v, l in zip(x, [2, 0, 1, 1])}
    for image, label in zip(images, labels):
        assert originals[image.permute(1, 2, 0).contiguous().numpy().tobytes()] == label


def test_official_split_levels_and_booleans(tmp_path):
    x = np.arange(60).reshape(10, 6) % 17
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x[:2], y_train=np.arange(10), y_test=np.arange(2))
    splits = load_dataset(f"array(path={str(tmp_path / 'a.npz')!r}, levels=17)")
    assert splits.info.levels == 17 and len(splits.test) == 2 and splits.info.num_classes == 10
    assert everything(splits.test).x.dtype == torch.uint8
    assert from_arrays(torch.rand(9, 4) > 0.5).info.levels == 2
    np.save(tmp_path / "b.npy", np.random.default_rng(0).normal(size=(8, 3)).astype(">f8"))
    assert load_dataset(str(tmp_path / "b.npy")).info.shape == (3,)


def test_malformed_arrays_are_explained(tmp_path):
    def load(x, **settings):
        np.save(tmp_path / "a.npy", x)
        return load_dataset(str(tmp_path / "a.npy"), **settings)

    bad = np.zeros((5, 3))
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 5 samples, first at index \(2, 1\): nan"):
        load(bad)
    bad[2, 1] = 1e300
    with pytest.raises(ValueError, match="too large for float32"):
        load(bad)
    with pytest.raises(ValueError, match=r"from 16 to 16 \(int64\).*--config.data.levels=17"):
        load(np.full((5, 3), 16))
    with pytest.raises(ValueError, match="layout='NCHW'"):
        load(np.zeros((5, 16, 24, 20), np.float32))
    with pytest.raises(ValueError, match="layout='NCL'"):
        load(np.zeros((5, 16, 4), np.float32))
    with pytest.raises(ValueError, match="Unknown layout 'WHAT'"):
        load(np.zeros((5, 16, 4, 3), np.float32), layout="WHAT")
    with pytest.raises(ValueError, match="names 3"):
        load(np.zeros((5, 16, 4, 3), np.float32), layout="NCL")
    with pytest.raises(ValueError, match="samples along the first axis"):
        load(np.zeros(5))
    with pytest.raises(ValueError, match="samples along the first axis"):
        load(np.zeros((0, 5)))
    with pytest.raises(ValueError, match="1 to 4 axes"):
        load(np.zeros((2, 2, 2, 2, 2, 2)))
    with pytest.raises(ValueError, match="complex"):
        load(np.zeros((5, 3), np.complex64))
    with pytest.raises(ValueError, match="not numbers but text"):
        load(np.array([["a", "b"]]))
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="never loaded"):
        load_dataset(str(tmp_path / "o.npy"))
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(ValueError, match="Is it complete"):
        load_dataset(str(tmp_path / "t.npz"))
    (tmp_path / "e.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="Is it complete"):
        load_dataset(str(tmp_path / "e.npy"))
    np.savez(tmp_path / "k.npz", weights=np.zeros((3, 3)))
    with pytest.raises(ValueError, match="holds weights: name the data x, or x_train"):
        load_dataset(str(tmp_path / "k.npz"))
    with pytest.raises(FileNotFoundError, match="looked for"):
        load_dataset(str(tmp_path / "no.npy"))
    for labels in (np.zeros(4, int), np.full(5, 0.5), np.zeros((5, 2), int)):
        with pytest.raises(ValueError, match="whole numbers or texts"):
            from_arrays(np.random.rand(5, 2), labels)
    with pytest.raises(ValueError, match="constant"):
        Scaler.fit(load(np.ones((5, 3))))


def test_the_place_of_a_nan_is_told_in_a_later_chunk_too():
    x = np.zeros((4_500_000, 1), np.float32)  # more than the numbers of a chunk
    x[[4_300_000, 4_400_000]] = np.nan
    with pytest.raises(ValueError, match=r"in 2 of 4500000 samples, first at index \(4300000, 0\): nan"):
        from_arrays(x)


def test_a_malicious_pickle_is_not_run(tmp_path):
    """An object array whose unpickling would write a file."""

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="never loaded"):
        load_dataset(str(tmp_path / "trap.npy"))
    assert not (tmp_path / "sprung").exists()


# --- real images


def test_cifar_zip(shared_data_dir):
    source = shared_data_dir / "cifar10-jpeg" / "test.zip"
    splits = load_dataset(str(source))
    assert splits.info.shape == (3, 32, 32) and splits.info.num_classes == 10
    assert splits.info.class_names[:2] == ("airplane", "automobile")
    assert len(splits.train) + len(splits.test) == 1000
    assert 70 <= len(splits.test) <= 130  # binomial with p = 0.1: three deviations
    y = torch.cat([everything(splits.train).y, everything(splits.test).y])
    assert y.bincount().tolist() == [100] * 10


# --- conditions


def test_conditions_stay_with_their_samples_through_every_split():
    x = torch.arange(40.0).view(20, 2) + 0.5
    cond = {"y": torch.arange(20) % 3, "angle": x[:, 0].double(), "tags": torch.rand(20, 4) > 0.5}
    splits = from_arrays(x, cond=cond)
    assert splits.info.conditions == {
        "y": Condition(num=3), "angle": Condition("vector", (1,)), "tags": Condition("labels", num=4)
    }  # fmt: skip
    for part in (splits.train, splits.test):
        batch = part[range(len(part))]
        numbers = ((batch.x[:, 0] - 0.5) / 2).long()
        assert torch.equal(batch.y, numbers % 3) and torch.equal(batch.positions, torch.arange(len(part)))
        assert torch.equal(batch.cond["angle"][:, 0], batch.x[:, 0])
        assert torch.equal(batch.cond["tags"], cond["tags"][numbers].float())
    batch = BatchLoader(splits.train, 6, seed=1).batch(2)
    assert torch.equal(batch.y, ((batch.x[:, 0] - 0.5) / 2).long() % 3)
    assert all(torch.equal(b.cond["angle"][:, 0], b.x[:, 0]) for b in iterate(splits.train, 7))


def test_conditions_are_described_by_both_parts_or_by_hand():
    x = torch.rand(6, 2)
    tokens = {"words": torch.tensor([[0, 1], [2, 3]] * 3)}
    splits = from_arrays(x, cond=tokens, x_test=x, cond_test={"words": tokens["words"] + 4})
    assert splits.info.conditions["words"].num == 8 and splits.test[[1]].cond["words"].tolist() == [[6, 7]]
    names = ("a", "b", "c")
    given = from_arrays(x, torch.zeros(6, dtype=torch.long), conditions={"y": Condition(num=3, names=names)})
    assert given.info.class_names == names
    for wrong, words in (
        (dict(y=torch.zeros(6, dtype=int), cond={"y": torch.zeros(6, dtype=int)}), "given twice"),
        (dict(cond={"a": torch.zeros(6)}, x_test=x), "all parts or for none"),
        (dict(cond={"a": torch.zeros(5)}), r"'a' of array must hold real numbers.*\(6, 1\); got .*\(5, 1\)"),
        (dict(cond={"x": torch.zeros(6)}), "cannot be called 'x'"),
        (dict(conditions={"b": Condition(num=2)}), "describes b, of which no values"),
        (dict(cond={"a": torch.full((6,), torch.nan)}), r"'a' of array is not finite, first at index \(0, 0\)"),
    ):
        with pytest.raises(ValueError, match=words):
            from_arrays(x, **wrong)
