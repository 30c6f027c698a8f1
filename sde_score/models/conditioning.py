"""What a network is told besides the data: the noise level and, on request, a class.

One rule for "no condition". A network that can be told a class can also be told "no class": the last row of its table,
y = num_classes. `no_condition(cond)` gives the values that mean none for the batch of `cond`: training puts them in the
place of some conditions, so that the row is learned, and guidance asks for the score under them. In a network built
without classes it raises `ValueError`. A network with conditions of another kind brings its own `no_condition`; one
that cannot be told "none" has no such method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sde_score.models.input_checks import check_classes, check_sizes


class ClassConditional(nn.Module):
    """A network `network(x, c_noise, y)` with an optional class `y`, 0 to `num_classes`, the last meaning "no class".

    `num_classes` is None for a network without classes. Ho & Salimans 2022, arXiv:2207.12598, section 3.2.
    """

    num_classes: int | None

    def no_condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The conditions that mean none, for the batch of `cond`: `{"y": num_classes}`, shape and type of `cond["y"]`.

        Raises `ValueError` for a network without classes, and for conditions that are not `y` alone.
        """
        owner = type(self).__name__
        if self.num_classes is None:
            raise ValueError(
                f'This {owner} was built without classes, so that it cannot be told "none". Build it with '
                "num_classes=..."
            )
        if cond.keys() != {"y"}:
            given = ", ".join(map(repr, cond)) or "nothing"
            raise ValueError(f"This {owner} is told a class, `y`, and nothing else; the conditions given are {given}.")
        return {"y": torch.full_like(cond["y"], self.num_classes)}


class Conditioning(nn.Module):
    """Embedding of a noise level l and an optional class y: `silu(MLP([cos ω_i l, sin ω_i l]) + table[y])`.

    The 32 frequencies ω are geometric from 1e-3 to 4, which suits every `c_noise` of the parameterisations: `log_sigma`
    (about -7 to 6), `t`, `999t`, and `sigma` where it is not tiny (Vaswani et al. 2017, section 3.5, another range).

    Args:
        features: length of the vector.
        num_classes: number of classes, `None` for none. The table has one row more: class `num_classes` means
            "no class", for guidance.
    """

    def __init__(self, features: int, num_classes: int | None = None) -> None:
        super().__init__()
        check_sizes("Conditioning", features=features, num_classes=num_classes)
        self.num_classes = num_classes
        self.register_buffer("frequencies", torch.logspace(-3, math.log10(4), 32))
        self.mlp = nn.Sequential(nn.Linear(64, features), nn.SiLU(), nn.Linear(features, features))
        self.table = None if num_classes is None else nn.Embedding(num_classes + 1, features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Casts of the module leave the frequencies in float32: in bfloat16 the angle of 999 t would be noise."""
        frequencies = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype != frequencies.dtype:
            self.frequencies = frequencies.to(self.frequencies.device)
        return self

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """The vectors `(B, features)` for data `(B, *)`, noise levels `(B,)` and classes `(B,)`.

        Raises `ValueError` for wrong shapes, and for a class that is missing, unexpected or unknown.
        """
        if c_noise.shape != x.shape[:1]:
            raise ValueError(f"c_noise must hold one number per sample, shape ({len(x)},); got {tuple(c_noise.shape)}.")
        check_classes("This network", y, len(x), self.num_classes)
        angle = c_noise[:, None] * self.frequencies  # at least float32, as the frequencies are
        h = self.mlp(torch.cat([angle.cos(), angle.sin()], 1).to(self.mlp[0].weight.dtype))
        return nn.functional.silu(h if y is None else h + self.table(y))
