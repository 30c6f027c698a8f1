"""What a network is told besides the data: the noise level and, on request, a class, as one vector per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sde_score.models.input_checks import check_range


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
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be positive, or None for a network without classes; got {num_classes}.")
        self.num_classes = num_classes
        self.register_buffer("frequencies", torch.logspace(-3, math.log10(4), 32))
        self.mlp = nn.Sequential(nn.Linear(64, features), nn.SiLU(), nn.Linear(features, features))
        self.table = None if num_classes is None else nn.Embedding(num_classes + 1, features)

    def _check_class(self, c_noise: Tensor, y: Tensor | None) -> None:
        n = self.num_classes
        if n is None and y is not None:
            raise ValueError(
                "This network was built without classes but was given `y`. Build it with num_classes=..., or drop `y`."
            )
        if n is None:
            return
        if y is None:
            raise ValueError(
                f"This network was built for {n} classes and needs `y`, one class per sample; {n} means no class."
            )
        if y.shape != c_noise.shape or y.is_floating_point():
            raise ValueError(
                f"`y` must hold one integer per sample, shape {tuple(c_noise.shape)}; got {y.dtype} {tuple(y.shape)}."
            )
        check_range("y", y, n + 1, 'The class table, whose last entry means "no class",')

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """The vectors `(B, features)` for data `(B, *)`, noise levels `(B,)` and classes `(B,)`.

        Raises `ValueError` for wrong shapes, and for a class that is missing, unexpected or unknown.
        """
        if c_noise.shape != x.shape[:1]:
            raise ValueError(f"c_noise must hold one number per sample, shape ({len(x)},); got {tuple(c_noise.shape)}.")
        self._check_class(c_noise, y)
        wide = torch.promote_types(c_noise.dtype, torch.float32)  # 999 t has no room in bfloat16
        angle = c_noise.to(wide)[:, None] * self.frequencies
        h = self.mlp(torch.cat([angle.cos(), angle.sin()], 1).to(self.mlp[0].weight.dtype))
        return nn.functional.silu(h if y is None else h + self.table(y))
