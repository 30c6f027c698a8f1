"""Plots come out as small PNGs, from the rows that training writes."""

import json

import pytest
import torch
from PIL import Image

from sde_score.visual import (
    extent_of,
    plot_density,
    plot_loss,
    plot_loss_by_noise,
    plot_scatter,
    plot_score_field,
    read_metrics,
)
from sde_score.visual.plots import loss_by_noise, plane, series, smooth

BINS = ["-3..0", ">6", "<-6", "0..3", "-6..-3", "3..6"]


def rows():
    out = [{"step": s, "loss": 1 / (1 + s), "lr": 1e-3} for s in range(100)]
    for s in (0, 50, 99):
        out[s] |= {"val/loss": 0.5, "val_raw/loss": 0.6} | {
            f"val/loss/logsnr{b}": 0.1 * (i + 1) for i, b in enumerate(BINS)
        }
    return out


def check(path, most=120_000):
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 200
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 3  # something is drawn
    assert path.stat().st_size < most


def test_losses_from_the_file_of_a_run_that_was_killed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows()) + '\n{"step": 100, "lo')
    assert len(read_metrics(path)) == 100
    check(plot_loss(tmp_path / "loss.png", path))
    check(plot_loss_by_noise(tmp_path / "noise.png", path))


def test_damage_inside_the_file_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1}\nrubbish\n{"step": 2, "loss": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


def test_series_skip_what_is_no_number_and_keep_the_last_of_a_step():
    data = [
        {"step": 2, "loss": 5},
        {"step": 1, "loss": None},
        {"step": 0, "loss": float("nan")},
        {"step": 2, "loss": 3},
    ]
    assert series(data, "loss") == ([2.0], [3.0])


def test_noise_bins_are_in_order():
    assert list(loss_by_noise(rows())) == ["<-6", "-6..-3", "-3..0", "0..3", "3..6", ">6"]
    assert loss_by_noise(rows(), prefix="val_raw") == {}


def test_smoothing_keeps_constants_and_lines():
    assert smooth([2.0] * 9, 5) == pytest.approx([2.0] * 9)
    assert smooth(list(range(9)), 3)[1:-1] == pytest.approx(list(range(1, 8)))


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="no loss"):
        plot_loss(tmp_path / "a.png", [{"step": 1}])
    with pytest.raises(ValueError, match="log_snr"):
        plot_loss_by_noise(tmp_path / "a.png", [{"step": 1, "val/loss": 1.0}])


def test_planes(tmp_path):
    data = torch.randn(800, 2)
    log_p = lambda x: -x.square().sum(1) / 2  # noqa: E731
    extent = extent_of(data)
    check(plot_density(tmp_path / "d.png", {"truth": log_p, "model": lambda x: log_p(1.1 * x)}, extent=extent))
    check(plot_density(tmp_path / "e.png", {"array": log_p(plane(extent, 30)).view(30, 30)}, extent=extent))
    check(plot_score_field(tmp_path / "s.png", {"truth": lambda x: -x}, extent=extent, log_density=log_p))
    check(plot_scatter(tmp_path / "c.png", {"data": data, "samples": 1.1 * data}))
    with pytest.raises(ValueError, match="NaN"):
        plot_density(tmp_path / "n.png", {"bad": lambda x: x[:, 0] * float("nan")}, extent=extent)
    with pytest.raises(ValueError, match="not finite"):
        plot_score_field(tmp_path / "n.png", {"bad": lambda x: x / 0}, extent=extent)
    with pytest.raises(ValueError, match="same shape"):
        plot_score_field(tmp_path / "n.png", {"bad": lambda x: x[:, 0]}, extent=extent)
    assert not (tmp_path / "n.png").exists()


def test_extent_is_square_and_ignores_one_stray_point():
    cloud = torch.cat([torch.randn(5000, 2), torch.tensor([[1e6, 0.0]])])
    left, right, bottom, top = extent_of(cloud)
    assert right - left == pytest.approx(top - bottom) and right < 10


def test_users_matplotlib_settings_stay_as_they_are(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_scatter(tmp_path / "c.png", {"data": torch.randn(50, 2)})
    assert dict(matplotlib.rcParams) == before
