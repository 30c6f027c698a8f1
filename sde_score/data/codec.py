"""Codecs: the maps between stored data and the numbers a model sees. The affine one is `Scaler`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sde_score.data.base import select_columns
from sde_score.data.info import DataInfo
from sde_score.data.statistics import statistics
from sde_score.protocols import NoiseFn
from sde_score.registry import Registry, parse_spec
from sde_score.tensors import draw_uniform, sum_except_batch

if TYPE_CHECKING:
    from sde_score.data.base import DataSplits

CODECS: Registry[Codec] = Registry("codec", group="sde_score.codecs", make="fit")
"""Subclasses of `Codec`; a spec's settings go to their class method `fit(data, **settings)`."""


class Codec(ABC):
    """The map from data to model space and back. Both work on the device of their argument.

    Attributes:
        shape: of one sample in model space; it may differ from that of the data.
        levels: number of grey levels of the stored data, `None` for continuous ones.
    """

    shape: tuple[int, ...]
    levels: int | None = None

    @classmethod
    @abstractmethod
    def fit(cls, data: DataSplits, **settings: Any) -> Codec:
        """The codec for these data, from their facts and their training part. The settings `centered` and
        `dequantize` are offered by section `data` of a configuration."""

    @abstractmethod
    def encode(self, x: Tensor, noise: NoiseFn | None = None) -> Tensor:
        """Stored data `(B, *)`, uint8 levels or real values, to model space `(B, *shape)`, float32; `noise`
        dequantises."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Model space `(B, *shape)` to data units `(B, *)`: discrete data to the unit cube, [0, 1]; differentiable."""

    def log_det(self, z: Tensor) -> Tensor | None:
        """log |det dz/du| of each sample at z `(B, *shape)`, in nats, `(B,)`; u are the data units of `decode`.

        The density of the data is log p(u) = log p_model(z) + log_det(z). `None`: there is no such density, because the
        map is no bijection; then likelihoods exist in model space only.
        """
        return None

    def for_density(self) -> Codec:
        """This codec as densities need it: with dequantisation, where the data are discrete."""
        return self

    def to_levels(self, z: Tensor) -> Tensor:
        """Model space to stored levels `0 .. levels-1` as uint8: the cell k/levels <= u < (k + 1)/levels that `decode`
        gives, clamped. Raises `ValueError` for NaN and for continuous data."""
        return (self._nearest_cell(z) + 0.5).floor().clamp(0, self.levels - 1).to(torch.uint8)

    def _nearest_cell(self, z: Tensor) -> Tensor:
        """Model space to the level, as a real number whose nearest integer is the stored one (halves go up)."""
        if self.levels is None:
            raise ValueError(
                "These data are continuous and have no grey levels. Call `decode` to get values in the data's units."
            )
        if not torch.isfinite(z).all():
            raise ValueError("Cannot turn NaN or infinite values into grey levels: the samples are broken.")
        return self.decode(z) * self.levels - 0.5

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: what a checkpoint keeps of it."""

    @classmethod
    @abstractmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Codec:
        """The inverse of `state_dict`."""


def load_codec(spec: str, state: dict[str, Any]) -> Codec:
    """The codec that `spec` names, from what a checkpoint keeps of it."""
    return CODECS.get(parse_spec(spec)[0]).from_state_dict(state)


@CODECS.register("scaler")
class Scaler(Codec):
    """The affine map from data to the numbers a model sees, with its log-determinant.

    Discrete data, stored as levels k in `0 .. K-1` (uint8), first become points of the unit cube, then model numbers:

        u = (k + U) / K,  U ~ Uniform[0, 1)    with `dequantize` (Theis et al. 2016, section 3.1)
        u = k / (K - 1)                        without: the published training convention
        x = 2 u - 1  if `centered`,  else  x = u

    Only dequantised data have a density, so only with `dequantize` do bits/dim have a meaning.

    Continuous data are standardised: x = (w - mean) / std, in float64, since an offset may be large. Here w = v, or
    where it is asked for

        w = log v                 `log`:   positive numbers, such as prices or fluxes
        w = log v - log(1 - v)    `logit`: numbers between 0 and 1, such as shares

    Args:
        shape: of one sample, without the batch axis.
        levels: the number K of levels, `None` for continuous data.
        centered: model range [-1, 1] (or [0, 1]); discrete data only.
        dequantize: see above; discrete data only.
        mean, std: a number, or nested lists or tensors that broadcast against one sample; continuous data only. They
            are those of w.
        log, logit: where to take them: True or False, or nested lists or tensors of these that broadcast against one
            sample; continuous data only.
        double: whether the data are float64, and `decode` gives them back as such; continuous data only.
        columns: what the first axis of a sample holds, for messages.
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
        log: Any = False,
        logit: Any = False,
        double: bool = False,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.levels = levels
        self.centered = bool(centered)
        self.dequantizes = bool(dequantize) and levels is not None
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.std = torch.as_tensor(std, dtype=torch.float64)
        self.log = torch.as_tensor(log, dtype=torch.bool)
        self.logit = torch.as_tensor(logit, dtype=torch.bool)
        self.double = bool(double) and levels is None
        self.columns = None if columns is None else tuple(columns)
        self.bends = bool(self.log.any() or self.logit.any())
        if levels is None:
            for name in ("mean", "std", "log", "logit"):
                value = getattr(self, name)
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
            if (self.log & self.logit).any():
                raise ValueError("`Scaler(log=..., logit=...)` take either of the two of a number, not both.")
        elif self.mean.ne(0).any() or self.std.ne(1).any() or self.bends:
            raise ValueError(
                "`Scaler(mean=..., std=..., log=..., logit=...)` are for continuous data; data with levels are scaled "
                "by `centered`."
            )

    @classmethod
    def fit(
        cls,
        data: DataSplits,
        centered: bool = True,
        dequantize: bool = True,
        standardize: bool | None = None,
        log: bool | Sequence[str | int] = (),
        logit: bool | Sequence[str | int] = (),
    ) -> Scaler:
        """The affine map of the data: grey levels to [-1, 1] or [0, 1], continuous data to mean 0 and deviation 1.

        `standardize=None` does so for every continuous data set but those with a known law, which keep their units.
        Statistics come from the training split: per number for vectors, per channel otherwise. `log` and `logit` name
        the columns or channels, by name or by number, of which they are taken first; True: all. Raises `ValueError`
        where a number or a channel is constant, or has values that have no logarithm, naming it.
        """
        info = data.info
        if info.levels is not None:
            if log or logit:
                raise ValueError(f"`log` and `logit` are for continuous data; these have {info.levels} grey levels.")
            return cls(info.shape, levels=info.levels, centered=centered, dequantize=dequantize)
        if standardize is None:
            standardize = data.law is None
        mean, std = torch.zeros(()), torch.ones(())
        masks = {"log": _mask("log", log, info), "logit": _mask("logit", logit, info)}
        double = data.train[[0]].x.dtype == torch.float64
        settings: dict[str, Any] = dict(masks, double=double, columns=info.columns)
        if standardize:
            bend = cls(info.shape, **settings)._bend
            mean, std = statistics(data.train, transform=bend, columns=info.columns)
        return cls(info.shape, mean=mean, std=std, **settings)

    def _affine(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(shift, scale) of x_model = (x_data - shift) / scale."""
        if self.levels is not None:
            return (0.5, 0.5) if self.centered else (0.0, 1.0)
        # The dtype is changed first: not every device knows float64.
        return self.mean.to(x.dtype).to(x.device), self.std.to(x.dtype).to(x.device)

    def _bend(self, v: Tensor) -> Tensor:
        """v -> w. Raises `ValueError` for a number that has no logarithm."""
        if not self.bends:
            return v
        log, logit = self.log.to(v.device), self.logit.to(v.device)
        wrong = (log & ~(v > 0)) | (logit & ~((v > 0) & (v < 1)))
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            name = str(place[1]) if self.columns is None else repr(self.columns[place[1]])
            kind, words = ("log", "positive numbers") if self.log.expand(self.shape)[place[1:]] else (
                "logit", "numbers between 0 and 1")  # fmt: skip
            raise ValueError(
                f"{kind} takes {words}; the {'column' if v.ndim == 2 else 'channel'} {name} holds {v[place].item():g}. "
                f"Take it out of --config.data.codec=\"scaler({kind}=...)\", or mend the data."
            )
        one = torch.ones((), dtype=v.dtype, device=v.device)  # of what stays as it is, no logarithm is taken
        bent = torch.where(logit, torch.where(logit, v, one / 2).logit(), v)
        return torch.where(log, torch.where(log, v, one).log(), bent)

    def _unbend(self, w: Tensor) -> Tensor:
        """w -> v."""
        if not self.bends:
            return w
        log, logit = self.log.to(w.device), self.logit.to(w.device)
        zero = torch.zeros((), dtype=w.dtype, device=w.device)
        straight = torch.where(logit, torch.where(logit, w, zero).sigmoid(), w)
        return torch.where(log, torch.where(log, w, zero).exp(), straight)

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"This scaler is for samples of shape {self.shape}, a batch of shape (B, "
                f"{', '.join(map(str, self.shape))}); got {tuple(x.shape)}."
            )

    def forward(self, x: Tensor) -> Tensor:
        """Unit cube (discrete data) or raw values (continuous data) -> model space, `(B, *)`, in the type of `x`."""
        self._check(x)
        v = x if self.levels is not None else _precise(x)
        shift, scale = self._affine(v)
        return ((self._bend(v) - shift) / scale).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Model space -> unit cube or raw values, `(B, *)`: the inverse of `forward`. Values of data in float64 come
        back in float64."""
        self._check(z)
        w = z if self.levels is not None else _precise(z)
        shift, scale = self._affine(w)
        v = self._unbend(w * scale + shift)
        return v if self.double else v.to(z.dtype)

    def log_det(self, z: Tensor) -> Tensor:
        """log |det d forward(x) / dx| of each sample, `(B,)`: D log 2 of grey levels if `centered`; of continuous data
        -sum log std, and -log v for each `log`, -log v - log(1 - v) for each `logit`."""
        self._check(z)
        if self.levels is not None:
            value = math.prod(self.shape) * math.log(2.0) if self.centered else 0.0
        else:
            value = -float(self.std.log().expand(self.shape).sum())
        whole = torch.full((len(z),), value, dtype=z.dtype, device=z.device)
        if not self.bends:
            return whole
        precise = _precise(z)
        shift, scale = self._affine(precise)
        w = precise * scale + shift
        log, logit = self.log.to(w), self.logit.to(w)
        bend = -(log * w) - logit * (nn.functional.logsigmoid(w) + nn.functional.logsigmoid(-w))
        return whole + sum_except_batch(bend).to(z.dtype)

    def for_density(self) -> Scaler:
        """With uniform dequantisation also where training had none (as published): densities of grey levels need it."""
        if self.levels is None or self.dequantizes:
            return self
        return Scaler(self.shape, levels=self.levels, centered=self.centered)

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
        noise. Continuous data go through `forward`. The result is float32.
        """
        if self.levels is None:
            return self.forward(x if x.is_floating_point() else x.to(torch.float64)).to(torch.float32)
        self._check_levels(x)
        if not self.dequantizes:
            return self.forward(x.to(torch.float32) / (self.levels - 1))
        return self.forward(
            self.dequantize(x, noise) if noise is not None else (x.to(torch.float32) + 0.5) / self.levels
        )

    def _nearest_cell(self, z: Tensor) -> Tensor:
        cell = super()._nearest_cell(z)
        return cell if self.dequantizes else (cell + 0.5) * ((self.levels - 1) / self.levels)

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
            "log": self.log.tolist(),
            "logit": self.logit.tolist(),
            "double": self.double,
            "columns": None if self.columns is None else list(self.columns),
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
        bends = f", log={self.log.tolist()}, logit={self.logit.tolist()}" if self.bends else ""
        return f"Scaler({self.shape}, mean={self.mean.tolist()}, std={self.std.tolist()}{bends})"


def _precise(x: Tensor) -> Tensor:
    """In float64, on devices that know it."""
    return x if x.device.type == "mps" else x.double()


def _mask(kind: str, wanted: bool | Sequence[str | int], info: DataInfo) -> Tensor:
    """Where a sample's first axis is one of the columns or channels `wanted`, broadcasting against a sample."""
    if isinstance(wanted, bool):
        return torch.tensor(wanted)
    if isinstance(wanted, (str, int)):
        raise ValueError(f"`{kind}` is True, or a tuple of columns: write {kind}=({wanted!r},).")
    chosen = torch.zeros(info.channels, dtype=torch.bool)
    chosen[select_columns(wanted, info.columns, info.channels, f"`{kind}`: {info.name}")] = True
    return chosen.reshape(-1, *(1 for _ in info.shape[1:]))
