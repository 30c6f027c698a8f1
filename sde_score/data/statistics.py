"""Mean and standard deviation of a split, by which continuous data are standardised."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_score.data.base import Split, chunks_of


def statistics(
    split: Split,
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    columns: Sequence[str] | None = None,
    numbers: int = 2**20,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (float64) of a split: `(D,)` for vectors, `(C, 1, ..)` per channel otherwise.

    One pass in chunks of so many `numbers`, each through `transform` first; sums are taken about the first sample's
    mean, so that a large offset does not cancel the variance away. Raises `ValueError` where something is constant,
    naming it by `columns`.
    """

    def read(indices: Sequence[int]) -> Tensor:
        x = split[indices].x.double()
        return x if transform is None else transform(x)

    first = read([0])
    axes = (0, *range(2, first.ndim))
    pivot = first.mean(axes, keepdim=True)
    total = total_sq = torch.zeros_like(pivot)
    count = 0
    for chunk in chunks_of(len(split), first.numel(), numbers):
        x = read(chunk) - pivot
        total, total_sq = total + x.sum(axes, keepdim=True), total_sq + x.square().sum(axes, keepdim=True)
        count += x.numel() // pivot.numel()
    mean = total / count
    std = (total_sq / count - mean.square()).clamp_min(0).sqrt()
    mean = mean + pivot
    constant = std <= 1e-14 * mean.abs().clamp_min(1e-30)
    if constant.any():
        raise ValueError(_why_constant(split, mean[0], constant.flatten().nonzero().flatten().tolist(), columns))
    return mean[0], std[0]


def _why_constant(split: Split, mean: Tensor, where: Sequence[int], columns: Sequence[str] | None) -> str:
    if len(split) == 1 and mean.ndim == 1:
        return (
            f"{split.name} has one sample, and one sample has no spread to be standardised by: give more samples, or "
            "say a smaller `holdout` if too many were held out."
        )
    vector, n = mean.ndim == 1, mean.shape[0]
    names = [repr(columns[k]) if columns is not None else str(k) for k in where[:8]]
    each = ", ".join(f"{name} (always {float(mean[k].mean()):.8g})" for name, k in zip(names, where))
    said = f"{split.name}: the {'column' if vector else 'channel'}{'s' * (len(where) > 1)} {each}"
    said += f"{' and others' * (len(where) > 8)} {'is' if len(where) == 1 else 'are'} constant"
    said += ", so the data have no density there."
    if len(where) == n:
        return f"{said} Nothing else is left."
    if not vector:
        return f"{said} Leave that out: x[:, [...]]."
    rest = tuple(columns[k] if columns is not None else k for k in range(n) if k not in set(where))
    shown = repr(rest) if len(rest) <= 12 else "(...)"
    return f'{said} Keep the others: --config.data.columns="{shown}", in Python by dropping columns.'
