"""Pictures for vectors, series and volumes: what is drawn is what was given, in its own units."""

import numpy as np
import pytest
import torch
from PIL import Image

from sde_score.visual import (
    film_strip,
    own_range,
    plot_corner,
    plot_loss_by_noise,
    plot_scatter,
    plot_series,
    plot_volumes,
    save_grid,
    save_movie,
    to_cells,
    to_grid,
    to_uint8,
)
from sde_score.visual.kinds import figure_of
from sde_score.visual.plots import bin_in_words


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def axes_of(monkeypatch, tmp_path):
    """Draw, and give the axes that were drawn on."""
    drawn = []

    def keep(figure, path):
        drawn.append(figure)
        return path

    monkeypatch.setattr("sde_score.visual.kinds.save_figure", keep)
    monkeypatch.setattr("sde_score.visual.plots.save_figure", keep)

    def draw(plot, *args, **kwargs):
        plot(tmp_path / "a.png", *args, **kwargs)
        return drawn[-1].axes, drawn[-1]

    return draw


# Ranges


def test_fluxes_and_signed_values_are_neither_white_nor_black():
    fluxes = torch.tensor([0.0, 750.0, 3000.0])
    assert to_uint8(fluxes, range=(0, 3000)).tolist() == [0, 64, 255]
    assert to_uint8(torch.tensor([-1.0, 0.0, 1.0]), range=(-1, 1)).tolist() == [0, 128, 255]
    # unasked nothing is clipped: 0 to 1, widened to all values
    assert to_uint8(fluxes).tolist() == [0, 64, 255] and to_uint8(torch.tensor([0.0, 0.5])).tolist() == [0, 128]
    for bad in ((1, 0), (0, 0), (0, float("inf"))):
        with pytest.raises(ValueError, match="smaller one first"):
            to_uint8(fluxes, range=bad)


def test_a_grid_in_units_of_the_data_is_that_of_the_unit_interval():
    x = torch.rand(5, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(to_grid(x, range=(0, 1)), to_grid(4000 * x - 1000, range=(-1000, 3000)))
    volume = torch.rand(2, 1, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(to_cells(volume, range=(0, 1)), to_cells(2 * volume - 1, range=(-1, 1)))
    way = torch.stack([x * 30, x * 2, x])
    moved = film_strip(4000 * way - 1000, range=(-1000, 3000))
    unit = film_strip(way, range=(0, 1))
    assert np.array_equal(moved[: len(unit)], unit) and len(moved) > len(unit)  # a bar below


def test_own_range_is_that_of_the_middle_99_percent():
    assert own_range(torch.arange(1001.0)) == pytest.approx((5.0, 995.0))
    low, high = own_range(torch.full((9,), 7.0))
    assert low < 7 < high
    low, high = own_range(torch.tensor([0.0, float("nan"), 1.0, float("inf")]))
    assert 0 <= low < high <= 1
    with pytest.raises(ValueError, match="NaN"):
        own_range(torch.tensor([float("nan")]))


def test_a_bar_says_the_range(tmp_path):
    x = torch.rand(4, 1, 8, 8)
    plain = np.asarray(Image.open(save_grid(tmp_path / "a.png", x, range=(0, 1))))
    barred = np.asarray(Image.open(save_grid(tmp_path / "b.png", x * 3000, range=(0, 3000))))
    assert barred.shape[0] == plain.shape[0] + 24 and np.array_equal(barred[: len(plain)], plain)
    strip = barred[len(plain) + 12]
    greys = strip[(strip == strip[:, :1]).all(1)][:, 0]
    assert len(set(greys.tolist())) > 100  # from black to white


def test_the_time_stands_above_each_frame(tmp_path):
    way = torch.zeros(3, 1, 1, 8, 8)
    labelled = save_movie(tmp_path / "a.gif", way, times=[1.0, 0.5, 0.0])
    with Image.open(labelled) as one, Image.open(save_movie(tmp_path / "b.gif", way)) as other:
        assert one.n_frames == 3 and one.height > other.height  # the same pictures, but for the times
        frames = []
        for k in range(3):
            one.seek(k)
            frames.append(one.convert("L").tobytes())
        assert len(set(frames)) == 3
    with pytest.raises(ValueError, match=r"\.gif or \.mp4"):
        save_movie(tmp_path / "a.avi", way)


# Vectors


def test_a_corner_plot_has_marginals_and_pairs_in_their_units(axes_of):
    data, samples = normal(500, 3) * torch.tensor([1, 100, 0.1]), normal(80, 3, seed=1) * torch.tensor([1, 100, 0.1])
    axes, figure = axes_of(plot_corner, {"data": data, "samples": samples}, names=("mass", "flux", "z"))
    grid = np.array(axes, dtype=object).reshape(3, 3)
    assert [ax.get_visible() for ax in grid[0]] == [True, False, False]
    assert [ax.get_xlabel() for ax in grid[2]] == ["mass", "flux", "z"] and grid[1, 0].get_ylabel() == "flux"
    points = [np.asarray(c.get_offsets()) for c in grid[2, 1].collections]
    assert np.allclose(points[0], data[:, [1, 2]]) and np.allclose(points[1], samples[:, [1, 2]])
    for i in range(3):
        for patch, x in zip(grid[i, i].patches, (data, samples), strict=True):
            values, edges, _ = patch.get_data()
            inside = ((x[:, i] >= edges[0]) & (x[:, i] <= edges[-1])).double().mean()
            assert (values * np.diff(edges)).sum() == pytest.approx(float(inside), abs=1e-6)  # a density
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[0].startswith("data (500") and words[1].startswith("samples (80")


def test_stray_samples_do_not_shrink_the_data(axes_of):
    data, samples = normal(500, 3), normal(80, 3, seed=1)
    samples[7] = 1e6
    axes, figure = axes_of(plot_corner, {"data": data, "samples": samples})
    assert axes[0].get_xlim()[1] < 10 and "reach outside" in figure.legends[0].get_texts()[1].get_text()


@pytest.mark.parametrize("width, panels", [(1, 1), (12, 144), (13, 12), (50, 12)])
def test_wide_vectors_show_some_marginals_and_say_so(axes_of, width, panels):
    axes, figure = axes_of(plot_corner, {"data": normal(30, width)})
    assert len(axes) == panels
    title = figure.legends[0].get_title().get_text()
    assert title == (f"Marginals of 12 of {width} numbers, evenly spread" if width > 12 else "")
    if width > 12:
        assert axes[0].get_xlabel() == "number 0" and axes[-1].get_xlabel() == f"number {width - 1}"


@pytest.mark.parametrize("scale, aspect", [((1, 1), 1.0), ((1, 100), "auto"), ((1, 3), 1.0)])
def test_axes_of_very_different_widths_have_scales_of_their_own(axes_of, scale, aspect):
    axes, _ = axes_of(plot_scatter, {"data": normal(500, 2) * torch.tensor(scale)}, names=("mass", "flux"))
    assert axes[0].get_aspect() == aspect and axes[0].get_xlabel() == "mass" and "(500" in axes[0].get_title(loc="left")


# Series and volumes


def test_spectra_are_mean_powers(axes_of):
    """Parseval: for a series of mean zero the powers, each frequency counted twice, sum to the sum of squares."""
    x = normal(40, 2, 33)
    x = x - x.mean(-1, keepdim=True)
    axes, _ = axes_of(plot_series, {"data": x}, names=("a", "b"))
    for channel in range(2):
        left, right = axes[2 * channel], axes[2 * channel + 1]
        assert left.get_ylabel() == "ab"[channel] and np.allclose(left.lines[3].get_ydata(), x[3, channel])
        power = right.lines[0].get_ydata()
        assert 2 * power.sum() == pytest.approx(float(x[:, channel].double().square().sum(-1).mean()), rel=1e-6)


def test_volumes_show_labelled_middle_slices(axes_of):
    x = normal(4, 1, 4, 5, 6) * 100
    axes, _ = axes_of(plot_volumes, {"data": x, "samples": x[:1]}, range=(-250, 250))
    assert [ax.get_title(loc="left") for ax in axes[:3]] == [
        "axis 1, slice 3 of 4", "axis 2, slice 3 of 5", "axis 3, slice 4 of 6",
    ]  # fmt: skip
    assert [ax.get_ylabel() for ax in axes[:-1:3]] == ["data 0", "data 1", "data 2", "samples 0"]
    for axis, ax in enumerate(axes[3:6]):
        image = ax.images[0]
        assert np.allclose(image.get_array(), x[1, 0].select(axis, x.shape[2 + axis] // 2))
        assert image.get_clim() == (-250, 250)


@pytest.mark.parametrize(
    "plot, shape", [(plot_corner, (4, 3)), (plot_series, (4, 1, 9)), (plot_volumes, (4, 1, 3, 3, 3))]
)
def test_what_cannot_be_drawn_is_said(plot, shape, tmp_path):
    x = normal(*shape)
    x.view(-1)[-1] = float("nan")
    with pytest.raises(ValueError, match="1 of 4 samples hold NaN.*number 3"):
        plot(tmp_path / "a.png", {"data": normal(*shape), "samples": x})
    with pytest.raises(ValueError, match="at least one sample"):
        plot(tmp_path / "a.png", {"data": normal(*shape)[:0]})
    with pytest.raises(ValueError, match="same shape"):
        plot(tmp_path / "a.png", {"data": normal(*shape), "samples": normal(4, 7)})
    with pytest.raises(ValueError, match=r"\.png.*\.svg"):
        plot(tmp_path / "a.txt", {"data": normal(*shape)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (3, 1, 1), (1, 6, 5), (1, 2, 1, 1, 1)])
def test_the_smallest_sets(shape, tmp_path):
    plot = {2: plot_corner, 3: plot_series, 5: plot_volumes}[len(shape)]
    for x in (normal(*shape), torch.zeros(shape)):
        assert plot(tmp_path / "a.png", {"data": x}).stat().st_size > 500


# Losses


def test_bins_are_words(axes_of):
    assert [bin_in_words(b) for b in ("<-6", "-6..-3", "-3..0", "0..3", ">6")] == [
        "below −6", "−6 to −3", "−3 to 0", "0 to 3", "above 6",
    ]  # fmt: skip
    rows = [{"step": s, "val/loss/logsnr-6..-3": 1.0, "val/loss/logsnr<-6": 2.0} for s in (10, 20)]
    axes, _ = axes_of(plot_loss_by_noise, rows)
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["below −6", "−6 to −3"]
    assert [t.get_text() for t in axes[1].get_legend().get_texts()] == ["step 10", "step 20"]


def test_the_users_matplotlib_stays_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with figure_of():
        pass
    assert dict(matplotlib.rcParams) == before
