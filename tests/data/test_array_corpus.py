"""Arrays of every kind through both doors, a file and Python: the same values, or the same refusal."""

import numpy as np
import pytest
import torch

from sde_score.data import from_arrays, load_dataset

REAL = np.random.default_rng(0).normal(100, 30, (12, 3))
WHOLE = np.random.default_rng(1).integers(0, 17, (12, 3))


class ByNumber(torch.utils.data.Dataset):
    """Rows of an array, in the way that `make` puts them."""

    def __init__(self, x, make=lambda row, k: row):
        self.x, self.make = x, make

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        return self.make(self.x[k], k)


def table(splits):
    """All samples, sorted, so that the split does not matter."""
    x = torch.cat([part[range(len(part))].x for part in (splits.train, splits.test)])
    assert x.is_contiguous() and x.dtype in (torch.uint8, torch.float32, torch.float64)
    return x.double()[np.lexsort(x.double().flatten(1).numpy().T[::-1])].numpy()


def expected(x):
    x = np.asarray(x, np.float64)
    return x[np.lexsort(x.reshape(len(x), -1).T[::-1])]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


ARRAYS = {
    **{f"float {t}": (REAL.astype(t), {}) for t in ("f2", "f4", "f8", ">f2", ">f4", ">f8", "<f8", np.longdouble)},
    **{f"levels {t}": (WHOLE.astype(t), {"levels": 17})
       for t in ("u1", "i1", "i2", "u2", "u4", "u8", ">u2", ">i4", "i8")},
    "uint8": (WHOLE.astype(np.uint8), {}),
    "uint16 of 256 levels": (WHOLE.astype(np.uint16) * 15, {"levels": 256}),
    "bool": (WHOLE > 8, {}),
    "fortran": (np.asfortranarray(REAL), {}),
    "upside down": (REAL[::-1], {}),
    "backwards": (REAL[:, ::-1], {}),
    "every second": (np.repeat(REAL, 2, 0)[::2], {}),
    "big-endian and upside down": (REAL.astype(">f4")[::-1, ::-1], {}),
    "transposed": (np.ascontiguousarray(REAL.T).T, {}),
    "one column": (REAL[:, :1], {}),
    "broadcast": (np.broadcast_to(REAL[:, None], (12, 2, 3)), {"layout": "NCL"}),
    "read only": (read_only(REAL), {}),
    "offset": (REAL + 2.46e6, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_both_doors_give_the_values(tmp_path, name):
    x, settings = ARRAYS[name]
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    for splits in (
        from_arrays(x, **settings),
        load_dataset(str(tmp_path / "x.npy"), **settings),
        load_dataset(str(tmp_path / "x.npz"), **settings),
    ):
        assert np.array_equal(table(splits), expected(x))
    assert from_arrays(x, **settings).fingerprint() == load_dataset(str(tmp_path / "x.npy"), **settings).fingerprint()


TENSORS = {
    "gradients": lambda: torch.tensor(REAL, requires_grad=True),
    "parameter": lambda: torch.nn.Parameter(torch.tensor(REAL)),
    "transposed": lambda: torch.tensor(REAL.T.copy()).t(),
    "expanded": lambda: torch.tensor(REAL)[:, None].expand(12, 2, 3),
    "float32": lambda: torch.tensor(REAL, dtype=torch.float32),
    "float16": lambda: torch.tensor(REAL, dtype=torch.float16),
    "bfloat16": lambda: torch.tensor(REAL, dtype=torch.bfloat16),
    "negative view": lambda: torch.tensor(REAL + 0j).conj().imag + torch.tensor(REAL),
    "list of tensors": lambda: [torch.tensor(row) for row in REAL],
    "list of arrays": lambda: list(REAL),
    "nested lists": lambda: REAL.tolist(),
    "matrix": lambda: np.asmatrix(REAL),
    "no mask": lambda: np.ma.masked_array(REAL),
    "Fraction-like": lambda: memoryview(REAL),
    "data set": lambda: ByNumber(REAL),
    "data set of pairs": lambda: ByNumber(torch.tensor(REAL), lambda row, k: (row, k % 2)),
    "data set of mappings": lambda: ByNumber(REAL, lambda row, k: {"image": row, "label": k % 2}),
    "tensor data set": lambda: torch.utils.data.TensorDataset(torch.tensor(REAL)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_what_python_has(name):
    given = TENSORS[name]()
    exact = np.broadcast_to(REAL[:, None], (12, 2, 3)) if name == "expanded" else REAL
    if name in ("float32", "float16", "bfloat16"):
        exact = torch.tensor(REAL).to(getattr(torch, name)).double().numpy()
    splits = from_arrays(given, layout="NCL" if name == "expanded" else None)
    assert np.array_equal(table(splits), expected(exact))
    if name in ("data set of pairs", "data set of mappings"):
        assert splits.info.num_classes == 2


def bad(value, place=(7, 1)):
    x = REAL.copy()
    x[place] = value
    return x


REFUSED = {
    "complex": (REAL + 1j, "complex: store the real and the imaginary part"),
    "records": (np.zeros((3, 4), [("a", "f8"), ("b", "f8")]), "records: choose fields"),
    "text": (np.array([["a", "b"]] * 3), "not numbers but text"),
    "bytes": (np.array([[b"a", b"b"]] * 3), "not numbers but text"),
    "dates": (np.array([["2020-01-01"]] * 3, "M8[D]"), "dates: say them as numbers"),
    "times": (np.array([[1]] * 3, "m8[s]"), "times: say them as numbers"),
    "nan": (bad(np.nan), r"in 1 of 12 samples, first at index \(7, 1\): nan"),
    "inf": (bad(-np.inf), r"index \(7, 1\): -inf.*on_error=skip"),
    "too large": (bad(1e300), "too large for float32"),
    "too large, longdouble": (bad(1).astype(np.longdouble) * np.longdouble("1e2000"), "12 of 12 samples"),
    "nan, big-endian": (bad(np.nan).astype(">f4"), r"index \(7, 1\)"),
    "no axis": (np.array(3.0), r"shape \(\)"),
    "one axis": (np.zeros(5), r"shape \(5,\)"),
    "no rows": (np.zeros((0, 3)), r"shape \(0, 3\)"),
    "no columns": (np.zeros((3, 0)), r"shape \(3, 0\)"),
    "one row": (REAL[:1], "has 1 sample: at least two"),
    "integers": (WHOLE, r"whole numbers from 0 to 16 \(int64\).*levels=17.*astype"),
    "negative integers": (WHOLE - 3, r"from -3 to 13 \(int64\). If they are measurements"),
    "wide integers": (WHOLE.astype(np.uint16) * 1000, r"from 0 to 16000 \(uint16\). If they are measurements"),
    "huge integers": (np.full((3, 2), 2**64 - 1, np.uint64), r"above 2\^63"),
    "seven axes": (np.zeros((2,) * 7), "1 to 4 axes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_both_doors_refuse_alike(tmp_path, name):
    x, words = REFUSED[name]
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=words):
        from_arrays(x)
    with pytest.raises(ValueError, match=words):
        load_dataset(str(tmp_path / "x.npy"))


REFUSED_OBJECTS = {
    "masked": (lambda: np.ma.masked_greater(REAL, 130), r"masked values.*x.filled"),
    "objects": (lambda: REAL.astype(object), "Python objects: convert them, x.astype"),
    "ragged": (lambda: [[1.0, 2.0], [3.0]], "NumPy makes no array of this list"),
    "unlike tensors": (lambda: [torch.zeros(2), torch.zeros(3)], "list of tensors that are not all alike"),
    "sparse": (lambda: torch.tensor(REAL).to_sparse(), "x.to_dense"),
    "compressed": (lambda: torch.tensor(REAL).to_sparse_csr(), "x.to_dense"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.rand(4, 3), 0.1, 0, torch.quint8), "x.dequantize"),
    "meta": (lambda: torch.zeros(3, 2, device="meta"), "no values"),
    "complex tensor": (lambda: torch.zeros(3, 2, dtype=torch.complex64), "is complex"),
    "nothing": (lambda: None, "is None: give an array"),
    "path": (lambda: "data.npy", "of type str"),
    "mapping": (lambda: {"x": REAL}, "of type dict"),
    "generator": (lambda: (row for row in REAL), "of type generator"),
    "loader": (lambda: torch.utils.data.DataLoader(ByNumber(REAL)), "give its data set"),
    "empty data set": (lambda: ByNumber(REAL[:0]), "is empty"),
    "triples": (lambda: ByNumber(REAL, lambda row, k: (row, k, k)), "items of 3 parts"),
}


@pytest.mark.parametrize("name", REFUSED_OBJECTS)
def test_what_python_has_and_is_refused(name):
    make, words = REFUSED_OBJECTS[name]
    with pytest.raises(ValueError, match=words):
        from_arrays(make())


def test_samples_that_are_not_finite_can_be_left_out(tmp_path):
    x = bad(np.nan)
    x[3, 0] = np.inf
    y = np.arange(12)
    np.save(tmp_path / "x.npy", x)
    keep = np.delete(np.arange(12), [3, 7])
    path = str(tmp_path / "x.npy")
    for load in (lambda: from_arrays(x, y, on_error="skip"), lambda: load_dataset(path, on_error="skip")):
        with pytest.warns(UserWarning, match="2 of 12 samples.*left out"):
            splits = load()
        assert np.array_equal(table(splits), expected(x[keep]))
    labelled = from_arrays(np.nan_to_num(x, posinf=0), y)
    assert labelled.info.num_classes == 12
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        from_arrays(x, on_error="ignore")


# --- names of the arrays in a .npz


def keys(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return load_dataset(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    "train, test", [("x", "x_test"), ("x_train", "x_test"), ("X_train", "X_test"), ("train_images", "test_images"),
                    ("data", "data_test"), ("images_train", "images_test")]
)  # fmt: skip
def test_a_test_part_is_used(tmp_path, train, test):
    splits = keys(tmp_path, **{train: REAL[:8], test: REAL[8:]})
    assert np.array_equal(splits.test[range(4)].x.numpy(), REAL[8:]) and len(splits.train) == 8


def test_three_parts_with_labels(tmp_path):
    y = np.arange(12) % 2
    parts = {"train": slice(6), "val": slice(6, 9), "test": slice(9, 12)}
    arrays = {f"{word}_{part}": (REAL if word == "x" else y)[cut] for word in "xy" for part, cut in parts.items()}
    splits = keys(tmp_path, **arrays)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [6, 3, 3]
    assert splits.val[range(3)].y.tolist() == y[6:9].tolist()
    only_val = keys(tmp_path, **{k: v for k, v in arrays.items() if "test" not in k})
    assert only_val.val is None and np.array_equal(only_val.test[range(3)].x.numpy(), REAL[6:9])


def test_other_names_are_asked_about(tmp_path):
    angle = np.linspace(0, 1, 12)
    with pytest.raises(ValueError, match=r"holds angle beside x, .*cond=\('angle',\).*x='x'"):
        keys(tmp_path, x=REAL, angle=angle)
    path = str(tmp_path / "a.npz")
    told = load_dataset(f"array(path={path!r}, cond=('angle',))")
    assert told.info.conditions["angle"].kind == "vector"
    assert load_dataset(f"array(path={path!r}, x='x')").info.conditions == {}
    with pytest.raises(ValueError, match="holds no 'X'. Did you mean|holds no 'X'"):
        load_dataset(f"array(path={path!r}, x='X')")
    with pytest.raises(ValueError, match="x and images: which one"):
        keys(tmp_path, x=REAL, images=REAL)
    with pytest.raises(ValueError, match="holds weights: name the data x"):
        keys(tmp_path, weights=REAL)
    assert keys(tmp_path, arr_0=REAL, arr_1=np.arange(12) % 2).info.num_classes == 2
