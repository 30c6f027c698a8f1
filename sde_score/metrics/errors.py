"""Standard errors of metrics: of a mean over disjoint blocks, and by the jackknife.

Blocks for what is a mean (unbiased kernel distances) or has the same value on small sets (splits of the inception
score); the jackknife for what is biased by the number of samples (Fréchet and Wasserstein distances).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def block_indices(n: int, blocks: int, seed: int) -> list[Tensor]:
    """A seeded random partition of ``range(n)`` into ``blocks`` disjoint sets whose sizes differ by one at most."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return list(order.tensor_split(blocks))


def require_blocks(name: str, blocks: int | None) -> None:
    """Refuse a number of blocks that is none."""
    if blocks is not None and blocks < 1:
        raise ValueError(f"{name}(blocks={blocks}): write at least 1 (no standard error), or None to choose.")


def number_of_blocks(n: int, m: int, blocks: int | None, *, least: int = 2) -> int:
    """As asked for, or 10 and more so that a block has at most 1,000 rows; never so many that a block has fewer than
    ``least`` rows of each set."""
    wanted = max(10, -(-max(n, m) // 1000)) if blocks is None else blocks
    return max(1, min(wanted, n // least, m // least))


def jackknife(statistic: Callable[..., Any], *sets: Tensor, groups: int, seed: int, least: int = 2) -> Tensor | None:
    """Values of a statistic with one group of rows left out, ``(groups, *)``, for ``jackknife_error``.

    Group j of every set is left out together: the sets are independent, so their variances add. ``None`` when fewer
    than ``least`` rows of a set would stay, or fewer than two groups were asked for.

    Args:
        statistic: maps the sets ``(N, d), (M, d) ...`` to a number or to several.
        groups: number of groups, at most the size of the smallest set.
        seed: of the partition into groups.
    """
    smallest = min(len(x) for x in sets)
    groups = min(groups, smallest)
    if groups < 2 or smallest - -(-smallest // groups) < least:
        return None
    parts = [block_indices(len(x), groups, seed + i) for i, x in enumerate(sets)]
    values = []
    for j in range(groups):
        kept = (x[torch.cat(part[:j] + part[j + 1 :])] for x, part in zip(sets, parts))
        values.append(torch.as_tensor(statistic(*kept), dtype=torch.float64))
    return torch.stack(values)


def require_groups(name: str, groups: int | None) -> None:
    """Refuse a number of jackknife groups that gives no error."""
    if groups is not None and (groups == 1 or groups < 0):
        raise ValueError(f"{name}(groups={groups}): write 0 for no standard error, or at least 2.")


def jackknife_error(values: Tensor) -> Tensor:
    """Standard error by the delete-a-group jackknife (Efron & Tibshirani 1993, "An introduction to the bootstrap", eq.
    11.5), ``(groups, *) -> (*)``:

        se^2 = (G - 1) / G sum over j of (v_j - mean v)^2
    """
    groups = len(values)
    return ((groups - 1) / groups * (values - values.mean(0)).square().sum(0)).sqrt()


def standard_error(values: Tensor | Sequence[float]) -> float | None:
    """Standard error of the mean of n independent values, s / sqrt(n) with s^2 = sum of (v - mean)^2 / (n - 1);
    ``None`` for fewer than two."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
