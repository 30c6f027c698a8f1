"""Brownian paths that belong to the samples and not to the steps: each a function of its seed, drawn for the whole
batch at once.

A path on [0, 1] is a tree: an interval of length h with increment W and space-time area H (`H ~ N(0, h/12)`,
independent of W; the integral over the interval is `U = h (W/2 + H)`) is halved by

    W' = W/2 + 3/2 H + ¼ √h Z_1,      H' = H/4 − ⅛ √h Z_1 + √(h/48) Z_2      of the first half,

and the second half follows, since W and U add up: the law of a Brownian motion given what is known of it (Foster, Lyons
& Oberhauser, SIAM J. Numer. Anal. 2020, for W, H and the halves). The normals of a node are hashed from (seed, node),
so that nothing is stored, any time can be asked for in any order, and smaller steps refine the same path.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

DEPTH = 20  # times are resolved to 2^-20 of their interval
GOLDEN = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(number: int) -> int:
    """A 64-bit word as torch's int64 has it."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _mix(state: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014), elementwise on int64 words, which wrap around."""
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * _signed(MIX_1)
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * _signed(MIX_2)
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def hashed_normals(seeds: Tensor, nodes: list[int], dim: int, dtype: torch.dtype) -> Tensor:
    """Two standard normals for each node, sample and place, `(len(nodes), 2, B, dim)`: functions of (seed, node,
    place), by Box and Muller's rule.
    """
    numbers = torch.tensor(nodes, dtype=torch.int64, device=seeds.device)
    keys = _mix(seeds[None, :] + (numbers[:, None] + 1) * _signed(GOLDEN))
    places = torch.arange(1, dim + 1, dtype=torch.int64, device=seeds.device)
    words = _mix(keys[:, :, None] + places * _signed(MIX_1))
    # two uniform numbers, of 31 and 32 bits, the first in (0, 1]
    size = torch.sqrt(-2 * torch.log((((words >> 33) & ((1 << 31) - 1)) + 1).to(dtype) * 2.0**-31))
    angle = (words & ((1 << 32) - 1)).to(dtype) * (2 * math.pi * 2.0**-32)
    return torch.stack([size * torch.cos(angle), size * torch.sin(angle)], 1)


class _Place:
    """A time in the tree: the nodes on the way down, and W(t) and ∫₀ᵗ W as sums over their normals.

    Arrays have one column for each normal: two for the whole interval, W and √12 H, and two for each halving.
    """

    def __init__(self, ticks: int) -> None:
        self.nodes = [0]
        w, h, before, area = np.zeros((4, 2 + 2 * DEPTH))
        w[0], h[1] = 1.0, 12**-0.5
        length, width, index, left = 1.0, 1 << DEPTH, 1, 0
        while left < ticks:
            if ticks == left + width:  # all of the present interval lies before t
                area, before = area + length * (before + 0.5 * w + h), before + w
                break
            self.nodes.append(index)
            z, root = 2 * len(self.nodes) - 2, math.sqrt(length)
            first_w, first_h = 0.5 * w + 1.5 * h, 0.25 * h
            first_w[z] += 0.25 * root
            first_h[z] -= 0.125 * root
            first_h[z + 1] += root * 48**-0.5
            length, width, index = 0.5 * length, width // 2, 2 * index
            if ticks >= left + width:  # on to the second half; H = ½ (H' + H'') + ¼ (W' − W'')
                second_w = w - first_w
                w, h = second_w, 2 * h - first_h - 0.5 * (first_w - second_w)
                area, before = area + length * (before + 0.5 * first_w + first_h), before + first_w
                left, index = left + width, index + 1
            else:
                w, h = first_w, first_h
        used = 2 * len(self.nodes)
        self.value, self.area = before[:used], area[:used]


class BrownianPaths:
    """A Brownian path on `[0, end]` for each row of `like` `(B, D)`, a function of the row's seed.

    Args:
        seeds: one 63-bit number per row.
        like: gives shape, device and dtype.
        end: length of the interval.
    """

    def __init__(self, seeds: list[int], like: Tensor, end: float) -> None:
        self.seeds = torch.tensor(seeds, dtype=torch.int64, device=like.device)
        self.like, self.end = like, end
        self._places: dict[int, _Place] = {}
        self._normals: dict[int, Tensor] = {}

    def _place(self, ticks: int) -> _Place:
        if ticks not in self._places:
            self._places[ticks] = _Place(ticks)
        return self._places[ticks]

    def increment(self, start: float, stop: float) -> tuple[Tensor, Tensor]:
        """`W(stop) − W(start)` and `∫ (W(s) − W(start)) ds` between them, `(B, D)` each."""
        a, b = (round(min(max(t / self.end, 0.0), 1.0) * (1 << DEPTH)) for t in (start, stop))
        ends = self._place(a), self._place(b)
        nodes = list(dict.fromkeys([*ends[0].nodes, *ends[1].nodes]))
        # differences of the sums' coefficients, not of the sums, which would cancel
        values, areas = np.zeros((2, 2, len(nodes), 2))
        for k, end in enumerate(ends):
            columns = [nodes.index(node) for node in end.nodes]
            values[k, columns] = end.value.reshape(-1, 2)
            areas[k, columns] = end.area.reshape(-1, 2)
        weights = np.stack([values[1] - values[0], areas[1] - areas[0] - values[0] * ((b - a) / (1 << DEPTH))])
        missing = [node for node in nodes if node not in self._normals]
        if missing:
            fresh = hashed_normals(self.seeds, missing, self.like.shape[1], self.like.dtype)
            self._normals |= dict(zip(missing, fresh))
        self._normals = {node: self._normals[node] for node in nodes}  # those of the next step's start are among them
        self._places = {a: ends[0], b: ends[1]}
        normals = torch.cat([self._normals[node] for node in nodes])
        weights = torch.from_numpy(weights.reshape(2, -1)).to(normals)
        width, area = torch.tensordot(weights, normals, dims=1)
        return width * self.end**0.5, area * self.end**1.5
