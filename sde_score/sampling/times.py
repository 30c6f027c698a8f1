"""Time grids for samplers: `(N, 2)` tensors of steps `t -> t_next`, float64, from `T` down to `t_min`."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_score.registry import Registry
from sde_score.sdes.base import SDE

TIMES = Registry("time grid", group="sde_score.times")


def _pairs(points: Tensor) -> Tensor:
    return torch.stack([points[:-1], points[1:]], dim=1)


@TIMES.register("uniform")
def uniform(sde: SDE, *, steps: int, t_min: float) -> Tensor:
    """Equal steps in t."""
    return _pairs(torch.linspace(sde.T, t_min, steps + 1, dtype=torch.float64))


@TIMES.register("power")
def power(sde: SDE, *, steps: int, t_min: float, rho: float = 2.0) -> Tensor:
    """Equal steps in t^(1/rho): finer near the data for rho > 1."""
    _check_rho(rho)
    ends = torch.tensor([sde.T, t_min], dtype=torch.float64) ** (1 / rho)
    return _pairs(
        _exact_ends(torch.linspace(ends[0].item(), ends[1].item(), steps + 1, dtype=torch.float64) ** rho, sde.T, t_min)
    )


@TIMES.register("karras")
def karras(sde: SDE, *, steps: int, t_min: float, rho: float = 7.0) -> Tensor:
    """Equal steps in (std/m)^(1/rho), the noise level of Karras et al. 2022, eq. 5, for any linear SDE."""
    _check_rho(rho)
    ends = torch.exp(-0.5 * sde.log_snr(torch.tensor([sde.T, t_min], dtype=torch.float64))) ** (1 / rho)
    sigmas = torch.linspace(ends[0].item(), ends[1].item(), steps + 1, dtype=torch.float64) ** rho
    return _pairs(_exact_ends(sde.time_of_log_snr(-2 * torch.log(sigmas)), sde.T, t_min))


@TIMES.register("log_snr")
def log_snr(sde: SDE, *, steps: int, t_min: float) -> Tensor:
    """Equal steps in log-SNR."""
    ends = sde.log_snr(torch.tensor([sde.T, t_min], dtype=torch.float64))
    levels = torch.linspace(ends[0].item(), ends[1].item(), steps + 1, dtype=torch.float64)
    return _pairs(_exact_ends(sde.time_of_log_snr(levels), sde.T, t_min))


def _check_rho(rho: float) -> None:
    if not rho > 0:
        raise ValueError(f"rho must be positive; got {rho}.")


def _exact_ends(points: Tensor, first: float, last: float) -> Tensor:
    points = points.clone()
    points[0], points[-1] = first, last
    return points


def make_times(spec: str, sde: SDE, *, steps: int, t_min: float) -> Tensor:
    """Build a grid and check it. Raises `ValueError` for fewer than one step and for a grid that does not fall."""
    if steps < 1:
        raise ValueError(f"A sampler needs at least one step; got steps={steps}.")
    if steps != int(steps):
        raise ValueError(f"steps is a whole number; got {steps}.")
    grid = TIMES.build(spec, sde, steps=int(steps), t_min=float(t_min))
    if not (torch.isfinite(grid).all() and (grid[:, 0] > grid[:, 1]).all() and (grid[:-1, 0] > grid[1:, 0]).all()):
        raise ValueError(
            f"The time grid {spec!r} does not fall from T = {sde.T:g} to t_min = {t_min:g} in finite steps. Grids by "
            "noise level need t_min > 0 (e.g. t_min=1e-5), and rho must be positive."
        )
    return grid
