"""What a data set promises at its edges: every orientation, borrowed memory, both parts of a download, centred laws."""

import types
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sde_score import _torchvision
from sde_score.data import BatchLoader, from_arrays, load_dataset
from sde_score.data.loader import flip_mask, indices_at
from sde_score.data.toy import mixture_grid_law
from sde_score.tensors import mix_seed


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_shown_as_pillow_shows_it(tmp_path, orientation):
    """5 to 8 lie on their side: their height and width change places, and so say the facts of the data set."""
    values = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i in range(2):
        Image.fromarray(values).save(tmp_path / f"{i}.png", exif=exif)
    splits = load_dataset(str(tmp_path), holdout=0.5)
    assert splits.info.shape == ((3, 12, 8) if orientation >= 5 else (3, 8, 12))
    with Image.open(tmp_path / "0.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(splits.train[[0]].x[0].permute(1, 2, 0).numpy(), shown)


def test_arrays_that_may_not_be_written_to_are_taken_without_a_word():
    x, y = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32), np.arange(10)
    x.flags.writeable = y.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that it may not write to
        split = from_arrays(x, y, x_test=x, y_test=y).train
        batch = split[range(10)]
    assert np.array_equal(batch.x, x) and np.array_equal(batch.y, y)


def test_a_download_asks_for_both_parts(tmp_path, monkeypatch):
    asked = []

    def make(root, *, download, train):
        asked.append((download, train))

    monkeypatch.setattr(_torchvision, "load", lambda submodule="": types.SimpleNamespace(MNIST=make))
    with pytest.raises(FileNotFoundError, match="none of"):
        load_dataset("mnist(download=True)", root=tmp_path)
    assert sorted(asked) == [(True, False), (True, True)]


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_the_grid_lies_around_the_origin(side):
    """side² equal Gaussians, `spacing` apart: mean 0, variance spacing² (side² − 1)/12 + std² in each direction."""
    law = mixture_grid_law(side, spacing=2.0, std=0.5)
    grid = torch.linspace(-8, 8, 161, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    p = law.log_prob(x).exp() * 0.01
    assert abs(float(p.sum()) - 1) < 1e-6
    assert float((p @ x).abs().max()) < 1e-6
    exact = torch.eye(2, dtype=torch.float64) * (4 * (side**2 - 1) / 12 + 0.25)
    assert torch.allclose(x.T @ (x * p[:, None]), exact, atol=1e-5)


def test_a_share_of_a_batch_belongs_to_a_process_that_is_there():
    split = from_arrays(np.arange(8.0)[:, None], x_test=np.arange(2.0)[:, None]).train
    parts = [BatchLoader(split, 4, rank=rank, world_size=2) for rank in (0, 1)]
    assert [part.rank for part in parts] == [0, 1]
    for rank, size in ((-1, 2), (2, 2), (0, 0)):
        with pytest.raises(ValueError, match="0 <= rank < world_size"):
            BatchLoader(split, 4, rank=rank, world_size=size)
    for size in (0, -2, 3):
        with pytest.raises(ValueError, match="positive multiple of world_size = 2"):
            BatchLoader(split, size, rank=0, world_size=2)


def test_order_and_flips_of_a_seed_stay_what_they_were():
    """A run that a later version resumes reads on where it was. The order is PyTorch's for a seed of our own."""
    positions = torch.arange(12)
    assert flip_mask(5, positions).int().tolist() == [1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1]
    order = [torch.randperm(8, generator=torch.Generator().manual_seed(mix_seed(5, 0x0DE5 << 40, k))) for k in (0, 1)]
    assert indices_at(positions, 8, seed=5).tolist() == torch.cat(order)[:12].tolist()
