"""What a data set is: the shape and the kind of its samples, and what is known of each besides (`Condition`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from sde_score.registry import suggest

KINDS = ("vector", "series", "image", "volume")
CONDITIONS = {
    "class": "integers (N,), one of `num` classes",
    "labels": "zeros and ones (N, num), any of `num` labels",
    "vector": "real numbers (N, K)",
    "sequence": "tokens (N, L), integers below `num`, or vectors (N, L, K)",
    "image": "images (N, C, H, W)",
}


def _is_integer(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return False


def kind_of_shape(shape: Sequence[int]) -> str:
    """The kind of sample a shape without the batch axis stands for: `(D,)`, `(C, L)`, `(C, H, W)` or `(C, D, H, W)`."""
    if not 1 <= len(shape) <= 4:
        raise ValueError(f"A sample has 1 to 4 axes: (D,), (C, L), (C, H, W) or (C, D, H, W). Got {tuple(shape)}.")
    return KINDS[len(shape) - 1]


@dataclass(frozen=True)
class Condition:
    """What one condition is, that a network can be told besides the sample.

        kind        shape       num     values (N, *shape)
        class       ()          yes     int64, 0 .. num - 1
        labels      (num,)      yes     float32, 0 or 1: several labels at once
        vector      (K,)        no      float32
        sequence    (L,)        yes     int64, 0 .. num - 1: tokens
        sequence    (L, K)      no      float32
        image       (C, H, W)   no      float32, or uint8 grey levels, which the network scales itself

    Args:
        kind: one of the above.
        shape: of one sample's values, without the batch axis; filled in for a class and for labels.
        num: how many classes, labels or tokens there are.
        names: theirs, in the order of their numbers. The classes of a data set are those that occur: where its own
            labels are not 0 .. num - 1, they are the names, written as text: `("1", "64")`, `("cat", "dog")`.
    """

    kind: str = "class"
    shape: tuple[int, ...] = ()
    num: int | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in CONDITIONS:
            raise ValueError(f"Unknown kind of condition {self.kind!r}.{suggest(str(self.kind), CONDITIONS)}")
        shape = (self.num,) if self.kind == "labels" and self.num and not self.shape else self.shape
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))
        if self.names is not None:
            object.__setattr__(self, "names", tuple(self.names))
        axes = {"class": (0,), "labels": (1,), "vector": (1,), "sequence": (1, 2), "image": (3,)}[self.kind]
        counted = self.kind in ("class", "labels") or (self.kind == "sequence" and len(self.shape) == 1)
        if len(self.shape) not in axes or any(n < 1 for n in self.shape):
            raise ValueError(
                f"A condition of kind {self.kind!r} holds {CONDITIONS[self.kind]}; got shape {self.shape}."
            )
        if counted != (self.num is not None) or (counted and self.num < 1):
            raise ValueError(
                f"`Condition({self.kind!r}, num=...)` must be {'positive' if counted else 'None'}, shape {self.shape}: "
                f"it holds {CONDITIONS[self.kind]}; got {self.num}."
            )
        if self.kind == "labels" and self.shape != (self.num,):
            raise ValueError(f"{self.num} labels have the shape ({self.num},); got {self.shape}.")
        if self.names is not None and len(self.names) != self.num:
            raise ValueError(f"`Condition(names=...)` must name all of {self.num}; got {len(self.names)} names.")

    @classmethod
    def of(cls, values: Tensor | Sequence[str], name: str = "a condition") -> Condition:
        """What `values` of shape `(N, *)` describe, where their type and their axes tell.

        Integers and booleans `(N,)` or `(N, 1)` and text are classes, those that occur; integers `(N, L)` are tokens;
        booleans `(N, K)` are labels; real numbers `(N,)` and `(N, K)` are vectors, `(N, L, K)` sequences; four axes are
        images. Raises `ValueError` otherwise.
        """
        if not isinstance(values, Tensor):
            return cls._of_labels(values)
        real, shape = values.is_floating_point(), tuple(values.shape[1:])
        if len(values) and len(shape) <= 3 and not values.is_complex():
            if len(shape) == 3 and (real or values.dtype == torch.uint8):
                return cls("image", shape)
            if real:
                return cls("sequence", shape) if len(shape) == 2 else cls("vector", shape or (1,))
            if shape in ((), (1,)):
                return cls._of_labels(values.unique().tolist())
            if values.dtype == torch.bool and len(shape) == 1:
                return cls("labels", num=shape[0])
            if len(shape) == 1 and values.dtype != torch.bool:
                return cls("sequence", shape, int(values.max()) + 1)
        raise ValueError(
            f"{name} holds {values.dtype} of shape {tuple(values.shape)}, which is no kind of condition. There are: "
            f"{'; '.join(f'{kind}: {what}' for kind, what in CONDITIONS.items())}."
        )

    @classmethod
    def _of_labels(cls, labels: Sequence[int | str]) -> Condition:
        """The classes that occur among `labels`: integers in their order, text in that of its letters."""
        found = sorted(set(labels))
        counted = found == [*range(len(found))] and not isinstance(found[0], bool)
        return cls("class", num=len(found), names=None if counted else tuple(map(str, found)))

    def numbers(self, labels: Sequence[int | str] | Tensor) -> Tensor:
        """The numbers `(N,)` of classes, int64, by the user's own labels: `"64"` or 64, `"cat"`; where names are words,
        also by number.

        Raises `ValueError` for a label that is no class, with the nearest and all there are.
        """
        if self.kind != "class":
            raise ValueError(f"A condition of kind {self.kind!r} holds {CONDITIONS[self.kind]}: it has no classes.")
        own = self.names or tuple(map(str, range(self.num)))
        known = {name: number for number, name in enumerate(own)}
        if not any(_is_integer(name) for name in own):
            known = {str(number): number for number in range(self.num)} | known
        found = []
        for label in labels.tolist() if isinstance(labels, Tensor) else labels:
            text = str(label)
            if text not in known and _is_integer(text):  # 7.0 and "07" are 7
                text = str(int(float(text)))
            if text not in known:
                raise ValueError(f"There is no class {label!r}.{suggest(text, own)}")
            found.append(known[text])
        return torch.tensor(found, dtype=torch.int64)

    def own_labels(self, numbers: Tensor) -> list[int | str]:
        """The user's own labels of classes by their numbers `(N,)`: the inverse of `numbers`."""
        if self.names is None or self.kind != "class":
            return numbers.tolist()
        whole = all(_is_integer(name) for name in self.names)
        return [int(self.names[k]) if whole else self.names[k] for k in numbers.tolist()]

    def convert(self, values: Tensor | Sequence[str], n: int, name: str = "a condition") -> Tensor:
        """`values` for `n` samples, as the user has them, in the type that the table gives: labels become the numbers
        of their classes. Raises `ValueError` where they do not fit."""
        if not isinstance(values, Tensor):
            if self.kind != "class" or len(values) != n:
                raise ValueError(
                    f"{name} must hold {CONDITIONS[self.kind]}, here of shape {(n, *self.shape)}; got {len(values)} "
                    "texts."
                )
            return self._look_up(values, name)
        if values.ndim == len(self.shape) + 2 and values.shape[-1] == 1:  # (N, 1) classes
            values = values[..., 0]
        elif self.shape == (1,) and values.ndim == 1:
            values = values[:, None]
        integers = self.num is not None and self.kind != "labels"
        if tuple(values.shape) != (n, *self.shape) or (integers and values.is_floating_point()) or values.is_complex():
            raise ValueError(
                f"{name} must hold {CONDITIONS[self.kind]}, here of shape {(n, *self.shape)}; got {values.dtype} "
                f"{tuple(values.shape)}."
            )
        if self.kind == "class" and self.names is not None:
            return self._look_up(values, name)
        if integers or self.kind == "labels":
            low, high = (float(values.min()), float(values.max())) if len(values) else (0, 0)
            top = self.num - 1 if integers else 1
            if low < 0 or high > top:
                raise ValueError(f"{name} holds values from {low:g} to {high:g}; they run from 0 to {top}.")
            return values.to(torch.int64 if integers else torch.float32)
        if values.dtype == torch.uint8:
            return values
        values = values.to(torch.float32)
        if not torch.isfinite(values).all():
            first = tuple((~torch.isfinite(values)).nonzero()[0].tolist())
            raise ValueError(f"{name} is not finite, first at index {first}: {values[first].item()}.")
        return values

    def _look_up(self, labels: Tensor | Sequence[str], name: str) -> Tensor:
        """`numbers`, for many labels of few values."""
        if isinstance(labels, Tensor):
            own, places = labels.unique(return_inverse=True)
            own = own.tolist()
        else:
            own = sorted(set(labels))
            number = {label: k for k, label in enumerate(own)}
            places = torch.tensor([number[label] for label in labels], dtype=torch.int64)
        try:
            return self.numbers(own)[places]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Condition:
        """The inverse of `dataclasses.asdict`, also after a way through JSON."""
        return cls(**values)


@dataclass(frozen=True)
class DataInfo:
    """The facts about a data set that models, likelihoods and reports need.

    Args:
        name: what to call it in messages and reports.
        shape: of one sample, channels first: `(D,)`, `(C, L)`, `(C, H, W)` or `(C, D, H, W)`.
        levels: number of grey levels of data stored as integers `0 .. levels-1` in uint8 (256 for 8-bit images), `None`
            for continuous data.
        kind: `"vector"`, `"series"`, `"image"` or `"volume"`; read from the shape when left out.
        conditions: what is known of each sample besides, by name; `y` is the class.
        columns: what the numbers of a vector, or the channels, are called.
        range: what pictures of continuous data show as black and as white, in the data's units: the 0.5 % and 99.5 %
            quantiles of (a fixed part of) the training data.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None = None
    kind: str = ""
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "kind", self.kind or kind_of_shape(self.shape))
        object.__setattr__(self, "conditions", dict(self.conditions))
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
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(self.columns))
            if len(self.columns) != self.channels:
                raise ValueError(
                    f"`DataInfo(columns=...)` must name the {self.channels} numbers or channels of a sample; got "
                    f"{len(self.columns)} names."
                )
        if self.range is not None:
            low, high = self.range
            object.__setattr__(self, "range", (float(low), float(high)))
            if self.levels is not None or not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    "`DataInfo(range=(low, high))` is for continuous data, with finite low < high; got "
                    f"{self.range} and levels={self.levels}."
                )
        for name in self.conditions:
            if not name.isidentifier() or name in ("x", "t"):
                raise ValueError(
                    f"A condition reaches the network as an argument of its name, so it cannot be called {name!r}."
                )

    @property
    def channels(self) -> int:
        """The length of the first axis: channels, or the dimension of a vector."""
        return self.shape[0]

    @property
    def dim(self) -> int:
        """Numbers per sample."""
        return math.prod(self.shape)

    @property
    def num_classes(self) -> int | None:
        """How many classes `y` names; `None` where it is no class, or not there."""
        y = self.conditions.get("y")
        return y.num if y is not None and y.kind == "class" else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, in the order of their numbers."""
        return self.conditions["y"].names if self.num_classes else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as JSON keeps them."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataInfo:
        """The inverse of `to_dict`. Raises `ValueError` for facts of another version."""
        unknown = sorted(values.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"These facts hold {', '.join(unknown)}: another version of sde_score wrote them.")
        described = values.get("conditions", {})
        return cls(**{**values, "conditions": {name: Condition.from_dict(v) for name, v in described.items()}})

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> DataInfo:
        return cls.from_dict(json.loads(text))
