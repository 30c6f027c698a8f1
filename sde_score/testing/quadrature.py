"""Integrals of the coefficients of a linear SDE by panels that halve where a coefficient is not smooth: independent of
the derivation in `sde_score.sdes.linear`, and right for jumps, kinks and poles beyond the ends.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sde_score.sdes.linear import LinearSDE

NODES = 8
LEVELS = 40
MOST = 2000
"""Panels in the making beyond which a coefficient is taken as it is: noise, which no halving smooths."""


def _rule() -> tuple[Tensor, Tensor, Tensor]:
    """Gauss nodes and weights on [0, 1], and the matrix of the integrals from each node to 1."""
    points, weights = np.polynomial.legendre.leggauss(NODES)
    powers = np.arange(NODES)
    unit = (points + 1) / 2
    monomials = unit[:, None] ** powers
    to_end = (1 - unit[:, None] ** (powers + 1)) / (powers + 1) @ np.linalg.inv(monomials)
    return torch.from_numpy(unit), torch.from_numpy(weights / 2), torch.from_numpy(to_end)


class Panels:
    """The panels of one SDE over [0, T], and what gathers over each: `∫ f` and `∫ (g exp ∫ f)²`.

    Args:
        sde: the linear SDE.
        times: times that must be edges of panels.
    """

    def __init__(self, sde: LinearSDE, times: Tensor) -> None:
        self.sde = sde
        self.unit, self.weights, self.to_end = _rule()
        halves = 0.5 ** torch.arange(30, 0, -1, dtype=torch.float64)
        ends = torch.cat([torch.zeros(1, dtype=torch.float64), halves, 1 - halves.flip(0)[1:], torch.ones(1).double()])
        edges = torch.unique(torch.cat([ends * float(sde.T), times.double()]))
        low, high = edges[:-1], edges[1:]
        done: list[tuple[Tensor, ...]] = []
        for level in range(LEVELS):
            middle = 0.5 * (low + high)
            whole = self._gather(low, high)
            left, right = self._gather(low, middle), self._gather(middle, high)
            log_a = left[0] + right[0]
            variance = left[1] * torch.exp(2 * right[0]) + right[1]
            rough = ((whole[0] - log_a).abs() > 1e-11).any(1)
            rough |= ((whole[1] - variance).abs() > 1e-11 * variance.abs() + 1e-13 * variance.amax(0)).any(1)
            rough &= level < LEVELS - 1 and len(low) < MOST
            done.append((low[~rough], high[~rough], log_a[~rough], variance[~rough]))
            low, high = torch.cat([low[rough], middle[rough]]), torch.cat([middle[rough], high[rough]])
            if len(low) == 0:
                break
        low, high, log_a, variance = (torch.cat(column) for column in zip(*done))
        order = torch.argsort(low)
        self.low, self.high, self.log_a, self.variance = low[order], high[order], log_a[order], variance[order]

    def _gather(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        nodes = low[:, None] + (high - low)[:, None] * self.unit
        flat = nodes.reshape(-1)
        f, g = (
            self.sde._coeff(name, flat).reshape(*nodes.shape, -1) for name in ("drift_coeff", "diffusion_coeff")
        )
        f, g = torch.broadcast_tensors(f, g)
        length = (high - low)[:, None]
        log_a = torch.einsum("j,pjc->pc", self.weights, f) * length
        tail = torch.einsum("ij,pjc->pic", self.to_end, f) * length[:, None]
        return log_a, torch.einsum("j,pjc->pc", self.weights, (g * torch.exp(tail)) ** 2) * length

    def between(self, s: float, t: float) -> tuple[Tensor, Tensor]:
        """Mean coefficient and variance gathered from `s` to `t`, `(P,)`; both must be edges."""
        rows = ((self.low >= s) & (self.high <= t)).nonzero()[:, 0]
        log_a = self.log_a[rows]
        later = log_a.flip(0).cumsum(0).flip(0) - log_a  # ∫ f from the end of each panel to t
        variance = (self.variance[rows] * torch.exp(2 * later)).sum(0)
        return torch.exp(log_a.sum(0)), variance


def integrated(panels: Panels, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """`between` for several pairs of times, `(B, P)`."""
    pairs = [panels.between(float(a), float(b)) for a, b in zip(s, t)]
    return tuple(torch.stack(column) for column in zip(*pairs))
