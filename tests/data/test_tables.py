"""Tables: text of every dialect, data frames, missing values, labels."""

import sys
import types

import numpy as np
import pytest
import torch

from sde_score.data import Scaler, from_arrays, load_dataset

ROWS = np.round(np.random.default_rng(0).normal(size=(30, 3)) * 100, 3)


def write(path, rows=ROWS, head=("height", "mass", "age"), sep=",", point=".", encoding="utf-8", end="\n", extra=None):
    lines = [sep.join(head)] if head else []
    for k, row in enumerate(rows):
        cells = [str(value).replace(".", point) for value in row]
        lines.append(sep.join(cells + ([extra[k]] if extra is not None else [])))
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return str(path)


def table(splits):
    x = torch.cat([part[range(len(part))].x for part in (splits.train, splits.test)])
    assert x.dtype == torch.float64
    return x[np.lexsort(x.numpy().T[::-1])].numpy()


EXPECTED = ROWS[np.lexsort(ROWS.T[::-1])]


@pytest.mark.parametrize(
    "name, settings",
    [
        ("a.csv", {}),
        ("a.csv", dict(sep=";")),
        ("a.csv", dict(sep=";", point=",")),
        ("a.csv", dict(sep="\t")),
        ("a.csv", dict(sep="|")),
        ("a.csv", dict(sep=", ")),
        ("a.tsv", dict(sep="\t")),
        ("a.CSV", dict(end="\r\n")),
        ("a.csv", dict(encoding="utf-8-sig")),
        ("a.csv", dict(encoding="utf-16", sep="\t")),
        ("a.csv", dict(head=('"height"', '"mass"', '"age"'))),
        ("a.csv", dict(head=("# height", "mass", "age"))),
    ],
)
def test_dialects(tmp_path, name, settings):
    splits = load_dataset(write(tmp_path / name, **settings))
    assert splits.info.columns == ("height", "mass", "age") and splits.info.shape == (3,)
    assert np.array_equal(table(splits), EXPECTED) and not splits.info.conditions


def test_without_names_and_with_names_that_hold_delimiters(tmp_path):
    assert np.array_equal(table(load_dataset(write(tmp_path / "a.csv", head=None))), EXPECTED)
    head = ('"height, in m"', '"say ""mass"""', "Größe")
    splits = load_dataset(write(tmp_path / "b.csv", head=head))
    assert splits.info.columns == ("height, in m", 'say "mass"', "Größe")
    one = load_dataset(write(tmp_path / "c.csv", ROWS[:, :1], head=("height",)))
    assert one.info.shape == (1,) and one.info.columns == ("height",)


def test_a_column_that_counts_the_rows_is_left_out(tmp_path):
    counted = np.column_stack([np.arange(30), ROWS])
    assert load_dataset(write(tmp_path / "a.csv", counted, head=("", "a", "b", "c"))).info.columns == ("a", "b", "c")
    counted[3, 0] = 17
    assert load_dataset(write(tmp_path / "b.csv", counted, head=("", "a", "b", "c"))).info.shape == (4,)


@pytest.mark.parametrize(
    "word, values", [("label", ["cat", "dog", "eel"]), ("class", ["1", "2", "64"]), ("y", ["0", "1"])]
)
def test_labels_are_found(tmp_path, word, values):
    labels = [values[k % len(values)] for k in range(30)]
    splits = load_dataset(write(tmp_path / "a.csv", head=("a", "b", "c", word), extra=labels))
    assert splits.info.columns == ("a", "b", "c") and splits.info.num_classes == len(values)
    own = splits.info.class_names or ("0", "1")
    for part in (splits.train, splits.test):
        batch = part[range(len(part))]
        for row, label in zip(batch.x.numpy(), batch.y):
            assert own[label] == labels[np.flatnonzero((ROWS == row).all(1))[0]]


def test_what_is_not_a_label(tmp_path):
    real = write(tmp_path / "a.csv", head=("a", "b", "y"))
    assert load_dataset(real).info.columns == ("a", "b", "y")
    whole = np.column_stack([np.round(ROWS[:, :2]), np.arange(30) % 4])
    assert load_dataset(write(tmp_path / "b.csv", whole, head=("x", "z", "y"))).info.columns == ("x", "z", "y")
    path = write(tmp_path / "c.csv", whole, head=("a", "b", "y"))
    assert load_dataset(path).info.num_classes == 4
    assert load_dataset(f"table(path={path!r}, label=False)").info.columns == ("a", "b", "y")
    assert load_dataset(path, columns=("a", "y")).info.columns == ("a", "y"), "asked for as data"


def test_text_is_refused_or_a_label(tmp_path):
    path = write(tmp_path / "a.csv", head=("a", "b", "c", "city"), extra=["Paris", "Rome", "Oslo"] * 10)
    with pytest.raises(ValueError, match=r"column 'city' hold text, such as 'Paris'.*columns=\"\('a', 'b', 'c'\)\""):
        load_dataset(path)
    assert load_dataset(path, columns=("a", "c")).info.columns == ("a", "c")
    assert load_dataset(path, columns=(2, 0)).info.columns == ("c", "a")
    assert load_dataset(f"table(path={path!r}, label='city')").info.class_names == ("Oslo", "Paris", "Rome")
    with pytest.raises(ValueError, match="no column 'bb'. Did you mean 'b'"):
        load_dataset(path, columns=("bb",))
    with pytest.raises(ValueError, match="no column 'town'"):
        load_dataset(f"table(path={path!r}, label='town')")


@pytest.mark.parametrize(
    "cell, words",
    [("", "missing"), ("NA", "missing"), ("nan", "missing"), ("12 kg", "'12 kg' is no"), ("1_000", "'1_000' is no")],
)
def test_missing_values(tmp_path, cell, words):
    rows = ROWS.astype(object)
    rows[4, 1], rows[9, 1] = cell, ""
    path = write(tmp_path / "a.csv", rows)
    said = f"2 of 30 rows lack a value, first line 6, column 'mass': {words}.*on_error=skip"
    with pytest.raises(ValueError, match=said):
        load_dataset(path)
    with pytest.warns(UserWarning, match="2 of 30 rows.*left out"):
        splits = load_dataset(path, on_error="skip")
    kept = np.delete(ROWS, [4, 9], 0)
    assert np.array_equal(table(splits), kept[np.lexsort(kept.T[::-1])])
    assert len(table(load_dataset(path, columns=("height", "age")))) == 30, "what is not used may be missing"


def test_broken_files_are_explained(tmp_path):
    def load(text, **settings):
        (tmp_path / "a.csv").write_bytes(text)
        return load_dataset(str(tmp_path / "a.csv"), **settings)

    with pytest.raises(ValueError, match=r"line 3: 2 cells, where the first line has 3.*on_error=skip"):
        load(b"a,b,c\n1,2,3\n4,5\n")
    with pytest.warns(UserWarning, match="line 4: 2 cells.*1 such lines"):
        assert load(b"a,b,c\n1,2,3\n4,5,6\n7,8\n", on_error="skip").info.shape == (3,)
    for text, words in (
        (b"", "is empty"),
        (b"a,b\n", "no rows"),
        (b"a,a\n1,2\n3,4\n", "several columns called 'a'"),
        (b"a,b\n1,inf\n3,4\n", "column 'b'"),
        (b"a,b\n1,2\n", "has 1 sample: at least two"),
        ("é,b\n1,2\n3,4\n".encode("latin-1"), "not text in UTF-8"),
    ):
        with pytest.raises(ValueError, match=words):
            load(text)
    with pytest.raises(FileNotFoundError, match="no table at"):
        load_dataset(str(tmp_path / "no.csv"))
    with pytest.raises(ValueError, match="constant"):
        Scaler.fit(load(b"a,b\n1,2\n1,4\n1,5\n1,6\n"))


def test_more_rows_than_are_read_at_once(tmp_path):
    rows = np.arange(50_000.0).reshape(25_000, 2) + 0.5
    path = write(tmp_path / "a.csv", rows, head=("a", "b"))
    assert np.array_equal(table(load_dataset(path)), rows)
    broken = rows.astype(object)
    broken[20_000, 1] = "x"
    with pytest.raises(ValueError, match="1 of 25000 rows .*, first line 20002, column 'b': 'x' is no number"):
        load_dataset(write(tmp_path / "b.csv", broken, head=("a", "b")))


class Frame:
    """A data frame as pandas and polars have them: columns by name."""

    def __init__(self, **columns):
        self.data = {name: np.asarray(values) for name, values in columns.items()}
        self.columns = list(columns)

    def __getitem__(self, name):
        return types.SimpleNamespace(to_numpy=lambda: self.data[name])

    def to_numpy(self):
        raise AssertionError("a frame is read column by column: it may hold text")


def test_data_frames():
    a, b = ROWS[:, 0], ROWS[:, 1]
    labels = np.array(["u", "v"] * 15, dtype=object)
    splits = from_arrays(Frame(a=a, n=np.arange(30), flag=np.arange(30) % 2 == 0, label=labels))
    assert splits.info.columns == ("a", "n", "flag") and splits.info.class_names == ("u", "v")
    assert np.array_equal(np.sort(table(splits)[:, 0]), np.sort(a))
    nullable = np.array([1, None, *range(28)], dtype=object)
    with pytest.raises(ValueError, match=r"index \(1, 1\) \(column 'n'\): nan"):
        from_arrays(Frame(a=a, n=nullable))
    for column, words in (
        (labels, "'c' hold text, such as 'u'"),
        (np.array(["2020-01-01"] * 30, "M8[D]"), "column 'c', holds dates"),
        (np.array([[1, 2]] * 30 + [None], dtype=object)[:30], "Python objects"),
    ):
        with pytest.raises(ValueError, match=words):
            from_arrays(Frame(a=a, c=column))
    assert from_arrays(Frame(a=a, b=b), labels).info.class_names == ("u", "v")


def test_records_are_a_table():
    rows = np.zeros(30, [("a", ">f4"), ("b", "i2"), ("label", "U3")])
    rows["a"], rows["b"], rows["label"] = ROWS[:, 0], np.arange(30), ["x", "y"] * 15
    splits = from_arrays(rows)
    assert splits.info.columns == ("a", "b") and splits.info.class_names == ("x", "y")


def test_parquet(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    held = Frame(a=ROWS[:, 0], b=ROWS[:, 1])
    held.column_names, held.column = held.columns, held.__getitem__
    fake = types.ModuleType("pyarrow.parquet")
    fake.read_table = lambda found: held if found == path else None
    package = types.ModuleType("pyarrow")
    package.parquet = fake
    monkeypatch.setitem(sys.modules, "pyarrow", package)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", fake)
    assert load_dataset(str(path)).info.columns == ("a", "b")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"sde_score\[parquet\]"):
        load_dataset(str(path))
