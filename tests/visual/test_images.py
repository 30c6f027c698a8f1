"""Pictures: what goes in comes out, every rank has one, files are whole."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from sde_score.visual import (
    calm,
    film_strip,
    png_bytes,
    save_grid,
    save_movie,
    save_picture,
    to_cells,
    to_grid,
    to_uint8,
)
from sde_score.visual.images import readable_scale


def test_grid_holds_every_image_exactly(tmp_path):
    x = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8)
    grid = to_grid(x, columns=3, pad=1)
    assert grid.shape == (3 * 6 + 1, 3 * 5 + 1, 3) and grid.dtype == np.uint8
    for i in range(7):
        top, left = 1 + i // 3 * 6, 1 + i % 3 * 5
        assert np.array_equal(grid[top : top + 5, left : left + 4], x[i].permute(1, 2, 0).numpy())
    assert (grid[13:, 6:] == 255).all()  # cells without a sample stay empty
    back = np.asarray(Image.open(save_picture(tmp_path / "grid.png", grid, scale=4)))
    assert np.array_equal(back[::4, ::4], grid) and np.array_equal(back[3::4, 3::4], grid)


def test_floats_are_rounded_and_clipped():
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0])
    assert to_uint8(x, range=(0, 1)).tolist() == [0, 0, 128, 255, 255]
    levels = torch.arange(256).float() / 255
    assert torch.equal(to_uint8(levels), torch.arange(256).to(torch.uint8))


def test_small_digits_are_enlarged_to_a_readable_size():
    grid = to_grid(torch.rand(100, 1, 8, 8))
    assert grid.shape[:2] == (91, 91) and readable_scale(grid) == 8
    assert readable_scale(np.zeros((2000, 10, 3), np.uint8)) == 1


@pytest.mark.parametrize(
    "shape",
    [(4, 2), (4, 9), (4, 2, 30), (4, 1, 1), (4, 1, 5, 6), (4, 2, 5, 6), (4, 3, 5, 6), (4, 9, 5, 6), (3, 1, 4, 5, 6)],
)
def test_every_rank_has_a_picture(shape, tmp_path):
    x = torch.rand(shape)
    cells = to_cells(x)
    assert cells.shape[0] == shape[0] and cells.shape[3] == 3 and cells.dtype == np.uint8
    assert cells.min() < cells.max() or 1 in shape[1:]
    assert Image.open(save_grid(tmp_path / "a.png", x)).size[0] > 50
    trajectory = torch.stack([x * 3, x * 2, x])
    film = film_strip(trajectory, times=[1.0, 0.5, 0.0])
    assert film.dtype == np.uint8 and film.shape[2] == 3
    with Image.open(save_movie(tmp_path / "a.gif", trajectory)) as animation:
        assert animation.n_frames == 3


def test_two_channels_stand_side_by_side_and_volumes_show_three_slices():
    assert to_cells(torch.rand(1, 2, 5, 6)).shape == (1, 5, 12, 3)
    volume = torch.zeros(1, 1, 4, 5, 6)
    volume[0, 0, 2] = 1.0  # the middle slice along the first axis
    cells = to_cells(volume)
    assert cells.shape == (1, 5, 6 + 6 + 5, 3) and (cells[0, :, :6] == 255).all()


def test_calm_leaves_images_alone_and_tames_noise():
    images, noise = torch.rand(1, 3, 1, 8, 8), 100 * torch.randn(1, 3, 1, 8, 8)
    out = calm(torch.cat([noise, images]))
    assert torch.allclose(out[1], images[0], atol=1e-6)
    assert float((out[0] - 0.5).square().mean()) == pytest.approx(0.25, rel=1e-3)


def test_film_strip_has_first_and_last_frame():
    trajectory = torch.linspace(0, 1, 25).reshape(25, 1, 1, 1, 1).expand(25, 8, 1, 4, 4)
    strip = film_strip(trajectory, columns=5, rows=2, scale=1)
    assert strip.shape == (2 * 5 + 1, 5 * 5 + 1, 3)
    assert strip[1, 1, 0] == 0 and strip[1, 1 + 4 * 5, 0] == 255


def test_bad_pictures_are_refused_with_the_sample_named(tmp_path):
    x = torch.rand(4, 1, 8, 8)
    x[2, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="sample 2"):
        to_grid(x)
    with pytest.raises(ValueError, match="Frame 1.*sample 2"):
        film_strip(torch.stack([torch.zeros_like(x), x]))
    with pytest.raises(ValueError, match="B > 0"):
        to_grid(torch.rand(0, 1, 8, 8))
    with pytest.raises(ValueError, match="0..255"):
        to_grid(torch.full((1, 1, 2, 2), 300))
    with pytest.raises(ValueError, match="to_grid"):
        png_bytes(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="T, B"):
        film_strip(torch.rand(4, 4))


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = save_picture(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="space"):
        save_picture(path, np.full((4, 4), 9, np.uint8))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]
