"""Labels keep their own values: the classes are those that occur."""

import numpy as np
import pytest
import torch

from sde_score.data import Condition, DataInfo, from_arrays, load_dataset

X = np.random.default_rng(0).normal(size=(60, 2))


def classes(y, **settings):
    """Names of the classes, and the label of every sample by its name, in the order given."""
    splits = from_arrays(X, y, **settings)
    described = splits.info.conditions["y"]
    number = {}
    for part in (splits.train, splits.test):
        batch = part[range(len(part))]
        number |= {row.numpy().tobytes(): int(label) for row, label in zip(batch.x, batch.y)}
    numbers = [number[row.tobytes()] for row in X]
    assert set(numbers) <= set(range(described.num))
    return described.names, [k if described.names is None else described.names[k] for k in numbers]


@pytest.mark.parametrize(
    "labels, names",
    [
        (range(3), None),
        (range(1, 11), tuple(map(str, range(1, 11)))),  # numbers in their order, not that of their letters
        ((0, 1, 2, 64, 71), ("0", "1", "2", "64", "71")),
        ((0, 1_000_000), ("0", "1000000")),
        ((-1, 1), ("-1", "1")),
        (("dog", "cat"), ("cat", "dog")),
        ((True, False), ("False", "True")),
    ],
)
@pytest.mark.parametrize("kind", [list, np.array, "tensor", "column"])
def test_classes_are_those_that_occur(labels, names, kind):
    y = [labels[k % len(labels)] for k in range(60)]
    if kind == "tensor":
        if isinstance(labels[0], str):
            pytest.skip("tensors hold no text")
        given = torch.tensor(y)
    else:
        given = np.array(y)[:, None] if kind == "column" else kind(y)
    found, own = classes(given)
    assert found == names and [str(label) for label in own] == [str(label) for label in y]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.uint64, np.float64, ">i4", object])
def test_labels_of_any_width(dtype):
    y = 10 * (np.arange(60) % 3) + 5
    assert classes(y.astype(dtype))[0] == ("5", "15", "25")


def test_what_is_no_label_is_refused():
    for wrong, words in (
        (np.full(60, 0.5), r"60 whole numbers or texts, shape \(60,\); got torch.float64.*cond=\{'angle': values\}"),
        (np.zeros(59, int), r"got torch.int64 \(59,\)"),
        (np.eye(60), r"\(60, 60\)"),
        (np.full(60, np.nan), "whole numbers or texts"),
        (["a", None] * 30, "missing at row 1: None"),
        (np.ma.masked_equal(np.arange(60), 3), "1 masked"),
    ):
        with pytest.raises(ValueError, match=words):
            from_arrays(X, wrong)


def test_a_label_that_training_lacks_is_named():
    y, y_test = np.arange(60) % 3 + 1, np.array([1, 72])
    with pytest.raises(ValueError, match=r"'y' of the test part of array: There is no class 72.*Known: 1, 2, 3"):
        from_arrays(X, y, x_test=X[:2], y_test=y_test)
    fine = from_arrays(X, y, x_test=X[:2], y_test=[3, 1])
    assert fine.test[[0, 1]].y.tolist() == [2, 0] and fine.info.num_classes == 3


def test_numbers_of_classes_by_the_users_own_labels():
    own = Condition(num=3, names=("1", "64", "71"))
    assert own.numbers([71, "1", np.int64(64), 1.0, "01"]).tolist() == [2, 0, 1, 0, 0]
    assert own.convert(torch.tensor([71, 1]), 2).tolist() == [2, 0]
    # a number is never taken for another
    with pytest.raises(ValueError, match="There is no class 0. Known: 1, 64, 71"):
        own.numbers([0])
    words = Condition(num=2, names=("cat", "dog"))
    assert words.numbers(["dog", 0, "1"]).tolist() == [1, 0, 1] and words.convert(["dog"], 1).tolist() == [1]
    with pytest.raises(ValueError, match="no class 'dgo'. Did you mean 'dog'"):
        words.numbers(["dgo"])
    with pytest.raises(ValueError, match="no class 2"):
        Condition(num=2).numbers([2])
    assert Condition(num=2).numbers(["1", 0]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="has no classes"):
        Condition("vector", (2,)).numbers([0])
    info = DataInfo("d", (2,), conditions={"y": own})
    assert DataInfo.from_json(info.to_json()) == info


def test_text_labels_in_files(tmp_path):
    names = np.array(["b", "a"] * 30)
    np.savez(tmp_path / "a.npz", x=X, y=names)
    splits = load_dataset(str(tmp_path / "a.npz"))
    assert splits.info.class_names == ("a", "b") and set(splits.train[range(len(splits.train))].y.tolist()) == {0, 1}
