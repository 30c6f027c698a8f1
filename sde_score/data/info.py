"""What a data set is (`DataInfo`) and how its samples map to the numbers a model sees (`Scaler`)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sde_score.protocols import NoiseFn
from sde_score.tensors import draw_uniform

KINDS = ("vector", "series", "image", "volume")


def kind_of_shape(shape: Sequence[int]) -> str:
    """The kind of sample a shape without the batch axis stands for: `(D,)`, `(C, L)`, `(C, H, W)` or `(C, D, H, W)`."""
    if not 1 <= len(shape) <= 4:
        raise ValueError(f"A sample has 1 to 4 axes: (D,), (C, L), (C, H, W) or (C, D, H, W). Got {tuple(shape)}.")
    return KINDS[len(shape) - 1]


@dataclass(frozen=True)
class DataInfo:
    """The facts about a data set that models, likelihoods and reports need.

    Args:
        name: what to call it in messages and reports.
        shape: of one sample, channels first: `(D,)`, `(C, L)`, `(C, H, W)` or `(C, D, H, W)`.
        num_classes: how many classes the labels name, `None` without labels.
        levels: number of grey levels of data stored as integers `0 .. levels-1` in uint8 (256 for 8-bit images), `None`
            for continuous data.
        kind: `"vector"`, `"series"`, `"image"` or `"volume"`; read from the shape when left out.
        class_names: the names of the classes, in the order of their numbers.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int | None = None
    levels: int | None = None
    kind: str = ""
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "kind", self.kind or kind_of_shape(self.shape))
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.kind not in KINDS:
            raise ValueError(f"`DataInfo(kind=...)` must be one of {', '.join(KINDS)}; got {self.kind!r}.")
        if not self.shape or min(self.shape) < 1:
            raise ValueError(
                f"`DataInfo(shape=...)` must be the positive lengths of one sample's axes; got {self.shape}."
            )
        if self.levels is not None and not 2 <= self.levels <= 256:
            raise ValueError(
                f"`DataInfo(levels=...)` must be between 2 and 256, or None for continuous data; got {self.levels}."
            )
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(
                f"`DataInfo(num_classes=...)` must be positive, or None without labels; got {self.num_classes}."
            )

    @property
    def channels(self) -> int:
        """The length of the first axis: channels, or the dimension of a vector."""
        return self.shape[0]

    @property
    def dim(self) -> int:
        """Numbers per sample."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as JSON keeps them."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataInfo:
        """The inverse of `to_dict`."""
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> DataInfo:
        return cls.from_dict(json.loads(text))


class Scaler:
    """The affine map from data to the numbers a model sees, with its log-determinant.

    Discrete data, stored as levels k in `0 .. K-1` (uint8), first become points of the unit cube, then model numbers:

        u = (k + U) / K,  U ~ Uniform[0, 1)    with `dequantize` (Theis et al. 2016, section 3.1)
        u = k / (K - 1)                        without: the published training convention
        x = 2 u - 1  if `centered`,  else  x = u

    Only dequantised data have a density, so only with `dequantize` do bits/dim have a meaning.

    Continuous data are standardised: x = (v - mean) / std.

    Args:
        shape: of one sample, without the batch axis.
        levels: the number K of levels, `None` for continuous data.
        centered: model range [-1, 1] (or [0, 1]); discrete data only.
        dequantize: see above; discrete data only.
        mean, std: a number, or nested lists or tensors that broadcast against one sample; continuous data only.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        levels: int | None = None,
        centered: bool = True,
        dequantize: bool = True,
        mean: Any = 0.0,
        std: Any = 1.0,
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.levels = levels
        self.centered = bool(centered)
        self.dequantizes = bool(dequantize) and levels is not None
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.std = torch.as_tensor(std, dtype=torch.float64)
        if levels is None:
            for name, value in (("mean", self.mean), ("std", self.std)):
                try:
                    fits = torch.broadcast_shapes(value.shape, self.shape) == self.shape
                except RuntimeError:
                    fits = False
                if not fits:
                    raise ValueError(
                        f"`Scaler({name}=...)` of shape {tuple(value.shape)} does not broadcast to a sample, "
                        f"{self.shape}."
                    )
            if not (torch.isfinite(self.mean).all() and torch.isfinite(self.std).all() and (self.std > 0).all()):
                raise ValueError(
                    f"`Scaler` needs a finite mean and a finite, positive std; got mean={mean}, std={std}."
                )
        elif self.mean.ne(0).any() or self.std.ne(1).any():
            raise ValueError(
                "`Scaler(mean=..., std=...)` are for continuous data; data with levels are scaled by `centered`."
            )

    def _affine(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(shift, scale) of x_model = (x_data - shift) / scale."""
        if self.levels is not None:
            return (0.5, 0.5) if self.centered else (0.0, 1.0)
        # The dtype is changed first: not every device knows float64.
        return self.mean.to(x.dtype).to(x.device), self.std.to(x.dtype).to(x.device)

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"This scaler is for samples of shape {self.shape}, a batch of shape (B, "
                f"{', '.join(map(str, self.shape))}); got {tuple(x.shape)}."
            )

    def forward(self, x: Tensor) -> Tensor:
        """Unit cube (discrete data) or raw values (continuous data) -> model space, `(B, *)`."""
        self._check(x)
        shift, scale = self._affine(x)
        return (x - shift) / scale

    def inverse(self, x: Tensor) -> Tensor:
        """Model space -> unit cube or raw values, `(B, *)`."""
        self._check(x)
        shift, scale = self._affine(x)
        return x * scale + shift

    @property
    def log_det(self) -> float:
        """log |det d forward(x) / dx| per sample, in nats: log p_data(x) = log p_model(forward(x)) + log_det."""
        if self.levels is not None:
            return math.prod(self.shape) * math.log(2.0) if self.centered else 0.0
        return -float(self.std.log().expand(self.shape).sum())

    @property
    def log_det_levels(self) -> float:
        """As `log_det`, for a density over the data's own units: per grey level if the data are discrete.

        With uniform dequantisation, -(log p_model + log_det_levels) / (D log 2) is the upper bound of the bits/dim of
        the discrete data.
        """
        return self.log_det - (math.prod(self.shape) * math.log(self.levels) if self.levels is not None else 0.0)

    def dequantize(self, x: Tensor, noise: NoiseFn) -> Tensor:
        """Levels `(B, *)` -> points of the unit cube: u = (level + U) / levels, U ~ Uniform[0, 1) from `noise`."""
        self._check_levels(x)
        level = x.to(torch.float32)
        return (level + draw_uniform(noise, level)) / self.levels

    def _check_levels(self, x: Tensor) -> None:
        self._check(x)
        if self.levels is None:
            raise ValueError("These data are continuous: there are no grey levels to dequantise. Call `forward`.")
        if x.is_floating_point():
            raise ValueError(
                f"Grey levels are integers 0 .. {self.levels - 1} (uint8); got {x.dtype}. Points of the unit cube go "
                "to `forward`."
            )

    def encode(self, x: Tensor, noise: NoiseFn | None = None) -> Tensor:
        """Stored data -> model space, the one call that training needs.

        Discrete data are dequantised with `noise`; without noise each level becomes the centre of its cell,
        (level + 1/2) / levels. A scaler made with `dequantize=False` maps level to level / (levels - 1), whatever the
        noise. Continuous data go through `forward`.
        """
        if self.levels is None:
            return self.forward(x if x.is_floating_point() else x.to(torch.float32))
        self._check_levels(x)
        if not self.dequantizes:
            return self.forward(x.to(torch.float32) / (self.levels - 1))
        return self.forward(
            self.dequantize(x, noise) if noise is not None else (x.to(torch.float32) + 0.5) / self.levels
        )

    def _nearest_cell(self, x: Tensor) -> Tensor:
        """Model space -> the level, as a real number whose nearest integer is the stored one."""
        if self.levels is None:
            raise ValueError(
                "These data are continuous and have no grey levels. Call `inverse` to get values in the data's units."
            )
        if not torch.isfinite(x).all():
            raise ValueError("Cannot turn NaN or infinite values into grey levels: the samples are broken.")
        u = self.inverse(x)
        return u * self.levels - 0.5 if self.dequantizes else u * (self.levels - 1)

    def to_levels(self, x: Tensor) -> Tensor:
        """Model space -> stored levels `0 .. levels-1` as uint8: the nearest level, clamped."""
        # floor(k + 1/2) and not round: halves belong to the upper cell, as U = 0 does.
        return (self._nearest_cell(x) + 0.5).floor().clamp(0, self.levels - 1).to(torch.uint8)

    def to_uint8(self, x: Tensor) -> Tensor:
        """Model space -> 8-bit pictures `0 .. 255`: rounded and clamped, level 0 black and the highest level white."""
        return (self._nearest_cell(x) * (255 / (self.levels - 1)) + 0.5).floor().clamp(0, 255).to(torch.uint8)

    def state_dict(self) -> dict[str, Any]:
        """Plain values only, as JSON keeps them."""
        return {
            "shape": list(self.shape),
            "levels": self.levels,
            "centered": self.centered,
            "dequantize": self.dequantizes,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Scaler:
        """The inverse of `state_dict`."""
        state = dict(state)
        return cls(state.pop("shape"), **state)

    def __repr__(self) -> str:
        if self.levels is not None:
            return (
                f"Scaler({self.shape}, levels={self.levels}, centered={self.centered}, dequantize={self.dequantizes})"
            )
        return f"Scaler({self.shape}, mean={self.mean.tolist()}, std={self.std.tolist()})"
