"""Data frames and parquet files as the libraries themselves make them."""

import numpy as np
import pytest
import torch

from sde_score.data import from_arrays, load_dataset

G = np.random.default_rng(0)
COLUMNS = {"price": G.gamma(3, 2, 60), "day": 2.46e6 + np.arange(60) / 7, "label": ["cat", "dog", "cow"] * 20}


def check(splits) -> None:
    assert splits.info.columns == ("price", "day") and splits.info.class_names == ("cat", "cow", "dog")
    x = torch.cat([splits.train[:].x, splits.test[:].x])
    order = x[:, 1].argsort()
    assert x.dtype == torch.float64  # the days keep their fractions
    assert torch.equal(x[order], torch.from_numpy(np.stack([COLUMNS["price"], COLUMNS["day"]], 1)))
    y = torch.cat([splits.train[:].y, splits.test[:].y])[order]
    assert y.tolist() == [0, 2, 1] * 20


def test_pandas():
    check(from_arrays(pytest.importorskip("pandas").DataFrame(COLUMNS)))


def test_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame(COLUMNS).to_parquet(tmp_path / "prices.parquet")
    check(load_dataset(str(tmp_path / "prices.parquet")))


def test_polars():
    check(from_arrays(pytest.importorskip("polars").DataFrame(COLUMNS)))
