"""What is said of a data set before anything is trained on it, and of broken files without an error."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sde_score.data import from_arrays, load_dataset
from sde_score.data.overview import inspect_source, overview


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


@pytest.fixture
def pets(tmp_path):
    """train: two classes of random pictures, one of them twice; test: one that is in train, one of one value."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 200, (6, 5, 4))
    for k in range(4):
        save(tmp_path / "pets" / "train" / ("cat" if k < 3 else "dog") / f"{k}.png", pictures[k])
    save(tmp_path / "pets" / "train" / "dog" / "again.png", pictures[1])
    save(tmp_path / "pets" / "test" / "dog" / "seen.png", pictures[3])
    save(tmp_path / "pets" / "test" / "dog" / "flat.png", np.full((5, 4), 250))
    return tmp_path / "pets", pictures


def test_counts_ranges_classes_and_duplicates(pets):
    path, pictures = pets
    found = overview(load_dataset(str(path)))
    assert (found.kind, found.shape, found.levels) == ("image", (1, 5, 4), 256)
    assert found.counts == found.looked_at == {"train": 5, "test": 2}
    every = np.concatenate([pictures[:4], pictures[1:2], pictures[3:4], np.full((1, 5, 4), 250)])
    assert found.ranges["grey"] == pytest.approx((every.min(), every.mean(), 250))
    assert found.classes == {"cat": {"train": 3, "test": 0}, "dog": {"train": 2, "test": 2}}
    assert found.duplicates["train"].count == 1
    assert found.duplicates["train"].examples == (("train/cat/1.png", "train/dog/again.png"),)
    assert found.duplicates["test"].count == 0
    assert found.duplicates["test in train"].examples == (("train/dog/3.png", "test/dog/seen.png"),)
    assert found.flat == (1, ("test/dog/flat.png",)) and not found.constant
    text = "\n".join(found.lines())
    for words in (
        "pets: images of 5x4, 1 channel, 256 levels", "samples: train 5, test 2", "cat 3/0, dog 2/2",
        "equal samples, test in train: 1 (train/dog/3.png = test/dog/seen.png)", "images of one value: 1",
    ):  # fmt: skip
        assert words in text
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_broken_files_are_listed_and_raise_nothing(pets):
    path, _ = pets
    (path / "train" / "cat" / "text.png").write_text("nothing")
    data = (path / "train" / "cat" / "0.png").read_bytes()
    (path / "train" / "cat" / "cut.png").write_bytes(data[: len(data) // 2])
    (path / "notes.txt").write_text("hello")
    frames = [Image.fromarray(np.full((6, 7), v, np.uint8)) for v in (10, 90)]
    frames[0].save(path / "train" / "dog" / "two.gif", save_all=True, append_images=frames[1:])
    found = inspect_source(path)
    assert set(found.broken) == {"train/cat/text.png", "train/cat/cut.png"}
    assert "truncated" in found.broken["train/cat/cut.png"] and "not an image" in found.broken["train/cat/text.png"]
    assert found.sizes == {(5, 4): 7, (6, 7): 1} and found.frames == {"train/dog/two.gif": 2}
    assert found.others == {".txt": 1} and found.decoded == len(found.names) == 8
    assert inspect_source(path, frames="all").names[-2:] == ("train/dog/two.gif#1", "train/dog/two.gif#2")
    assert inspect_source(path, sample=2).decoded <= 2
    with pytest.warns(UserWarning):
        splits = load_dataset(str(path), on_error="skip", image_size=4)
    shown = overview(splits, files=found)
    text = "\n".join(shown.lines())
    assert "sizes: 5x4 7, 6x7 1" in text and "broken files: 2: train/cat/cut.png (" in text
    assert "files of other kinds: 1 .txt" in text
    assert shown.to_dict()["files"][0]["sizes"] == {"5x4": 7, "6x7": 1}


def test_a_table_with_a_constant_column_and_equal_rows():
    x = torch.arange(30.0).view(10, 3).double()
    x[:, 1] = 7
    x[9] = x[2]
    found = overview(from_arrays(x, x_test=x[2:4]))
    assert found.constant == ("column 1",) and found.levels is None and found.classes is None
    assert found.ranges["column 0"] == (0, pytest.approx((x[:, 0].sum() + x[2:4, 0].sum()).item() / 12), 24)
    assert found.duplicates["train"].examples == (("train[2]", "train[9]"),)
    assert found.duplicates["test in train"].count == 2
    days = 2.46e6 + torch.arange(10.0, dtype=torch.float64)[:, None]
    assert "column 0: 2460000 to 2460009, mean 2460004.5" in overview(from_arrays(days)).lines()
    assert "the same in all training samples: column 1" in "\n".join(found.lines())


def test_a_large_set_is_looked_at_in_part_and_that_is_said():
    x = torch.arange(4000.0).view(1000, 2, 2)
    found = overview(from_arrays(x, x_test=x[:10], layout="NCL"), numbers=400)
    assert found.counts["train"] == 1000 and found.looked_at == {"train": 100, "test": 10}
    assert "looked at, evenly spaced: 100 of train" in found.lines()
    assert found.ranges["channel 0"][2] == x[990, 0].max()  # every tenth
