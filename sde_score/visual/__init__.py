"""Pictures of samples, curves and densities, and the report that holds them."""

from sde_score.visual.images import (
    own_range,
    png_bytes,
    save_grid,
    save_picture,
    to_cells,
    to_grid,
    to_uint8,
)
from sde_score.visual.kinds import plot_corner, plot_series, plot_volumes
from sde_score.visual.movies import calm, film_strip, save_movie
from sde_score.visual.plots import (
    extent_of,
    plot_density,
    plot_loss,
    plot_loss_by_noise,
    plot_scatter,
    plot_score_field,
    read_metrics,
)
from sde_score.visual.report import Section, Table, render_report, write_report
from sde_score.visual.svg import bar_chart, line_chart

__all__ = [
    "Section",
    "Table",
    "bar_chart",
    "calm",
    "extent_of",
    "film_strip",
    "line_chart",
    "own_range",
    "plot_corner",
    "plot_density",
    "plot_loss",
    "plot_loss_by_noise",
    "plot_scatter",
    "plot_score_field",
    "plot_series",
    "plot_volumes",
    "png_bytes",
    "read_metrics",
    "render_report",
    "save_grid",
    "save_movie",
    "save_picture",
    "to_cells",
    "to_grid",
    "to_uint8",
    "write_report",
]
