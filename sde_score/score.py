"""A score as an object: its SDE, its conditions, and one rule for what a single evaluation gives.

Samplers, likelihoods, guidance and constraints take anything callable as `(x, t) -> score`. `as_score` makes a `Score`
of it, which they use inside: a score that knows its SDE, binds conditions and reaches the branch without them, can be
cut to some members of a batch, and gives score, noise and posterior mean from one call of the network.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_score.protocols import ScoreFn
from sde_score.sdes.base import SDE


class Prediction:
    """What one evaluation says about `x` at `t`: `score`, `eps` and `x0`, each derived from the other when asked for.

        s = −ε̂/std,   x̂_0 = (x − std ε̂)/m = (x + std² s)/m,

    for `x_t = m x_0 + std ε` (Tweedie's formula; Efron 2011). `eps` needs the SDE's `marginal_prob`, `x0` its
    `posterior_mean`; an SDE without them explains itself.
    """

    def __init__(
        self, sde: SDE, x: Tensor, t: Tensor, *, score: Tensor | None = None, eps: Tensor | None = None
    ) -> None:
        self.sde, self.x, self.t = sde, x, t
        self._score, self._eps = score, eps

    @property
    def score(self) -> Tensor:
        """∇ log p_t(x), of the shape of `x`."""
        if self._score is None:
            self._score = -self._eps / self.sde.marginal_prob(self.x, self.t)[1]
        return self._score

    @property
    def eps(self) -> Tensor:
        """ε̂, the noise in `x`."""
        if self._eps is None:
            self._eps = -self._score * self.sde.marginal_prob(self.x, self.t)[1]
        return self._eps

    @property
    def x0(self) -> Tensor:
        """E[x_0 | x_t = x]."""
        return self.sde.posterior_mean(self.x, self.t, self.score)


class Score(ABC):
    """`score(x, t) ≈ ∇ log p_t(x)` for `x` of shape `(B, *)` and `t` of shape `(B,)`, of the shape of `x`."""

    sde: SDE

    @abstractmethod
    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The score."""

    def predict(self, x: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        """Score, noise and posterior mean from one evaluation."""
        return Prediction(self.sde, x, t, score=self(x, t, **cond))

    def eps(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The predicted noise ε̂."""
        return self.predict(x, t, **cond).eps

    def denoise(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The posterior mean of the data."""
        return self.predict(x, t, **cond).x0

    def bind(self, **cond: Tensor) -> Score:
        """This score with conditions: tensors whose first axis is the batch, such as class labels `y`."""
        return BoundScore(self, cond) if cond else self

    def unconditional(self) -> Score:
        """The branch without condition, which classifier-free guidance compares with.

        Raises:
            ValueError: when no condition is bound.
        """
        raise ValueError(
            f"{type(self).__name__} has no condition bound, so it has no branch without one: bind it first, as in "
            "score.bind(y=labels)."
        )

    def select(self, members: Sequence[int] | Tensor) -> Score:
        """The same score for some members of the batch."""
        return self

    def no_condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What stands for "none" in the place of these conditions.

        Raises:
            ValueError: when the score was not made to go without.
        """
        raise ValueError(
            f"{type(self).__name__} knows no value that means 'no condition' for {', '.join(cond)}, so it cannot be "
            "evaluated without. Networks say so by a method no_condition(cond)."
        )


class FunctionScore(Score):
    """Any function `(x, t) -> score` as a `Score`. A method `eps` of its own is taken for the noise."""

    def __init__(self, function: ScoreFn, sde: SDE) -> None:
        self.function, self.sde = function, sde
        own = getattr(function, "eps", None)
        self._own_eps = own if callable(own) else None

    def eps(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return super().eps(x, t, **cond) if self._own_eps is None else self._own_eps(x, t, **cond)

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return self.function(x, t, **cond)


class BoundScore(Score):
    """A score with its conditions bound."""

    def __init__(self, score: Score, cond: Mapping[str, Tensor]) -> None:
        self.score, self.cond, self.sde = score, dict(cond), score.sde
        for name, value in self.cond.items():
            if not isinstance(value, Tensor) or value.ndim < 1:
                raise TypeError(
                    f"The condition {name!r} must be a tensor with one value per sample, its first axis the batch; got "
                    f"{value!r}."
                )

    def _check(self, x: Tensor) -> None:
        for name, value in self.cond.items():
            if len(value) != len(x):
                raise ValueError(
                    f"The condition {name!r} holds {len(value)} values for a batch of {len(x)} samples; bind one per "
                    "sample."
                )

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self._check(x)
        return self.score(x, t, **{**self.cond, **cond})

    def predict(self, x: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        self._check(x)
        return self.score.predict(x, t, **{**self.cond, **cond})

    def bind(self, **cond: Tensor) -> Score:
        return BoundScore(self.score, {**self.cond, **cond})

    def unconditional(self) -> Score:
        return BoundScore(self.score, self.score.no_condition(self.cond))

    def no_condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.score.no_condition(cond)

    def select(self, members: Sequence[int] | Tensor) -> Score:
        index = torch.as_tensor(members)
        return BoundScore(self.score.select(members), {k: v[index.to(v.device)] for k, v in self.cond.items()})


class TransformedScore(Score):
    """A score made from another, `inner`: what guidance derives from.

    A subclass gives `__call__` and may ask `inner` and `inner.unconditional()`. Binding and selecting pass through to
    the inner score; without its condition a transformed score is the inner one without.
    """

    def __init__(self, inner: Score) -> None:
        self.inner, self.sde = inner, inner.sde

    def _around(self, inner: Score) -> Score:
        """The same transform of another score."""
        clone = copy.copy(self)
        clone.inner = inner
        return clone

    def bind(self, **cond: Tensor) -> Score:
        return self._around(self.inner.bind(**cond))

    def select(self, members: Sequence[int] | Tensor) -> Score:
        return self._around(self.inner.select(members))

    def unconditional(self) -> Score:
        return self.inner.unconditional()

    def no_condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.inner.no_condition(cond)


class Counter:
    """How often a score was asked: `calls`, and in how many samples, `samples`."""

    def __init__(self) -> None:
        self.calls = self.samples = 0

    def add(self, x: Tensor) -> None:
        self.calls += 1
        self.samples += len(x)


class CountedScore(TransformedScore):
    """A score that counts its evaluations, and whose first answer is checked at the door."""

    def __init__(self, inner: Score) -> None:
        super().__init__(inner)
        self.counter = Counter()

    @property
    def calls(self) -> int:
        """Evaluations so far, each with any number of samples."""
        return self.counter.calls

    def nfe(self, batch: int) -> int:
        """Evaluations per sample of a batch, in the mean where the samples differ."""
        return round(self.counter.samples / max(batch, 1))

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        score = self.inner(x, t, **cond)
        if self.counter.calls == 0:
            check_answer(score, x)
        self.counter.add(x)
        return score

    def predict(self, x: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        prediction = self.inner.predict(x, t, **cond)
        if self.counter.calls == 0:
            check_answer(prediction.score, x)
        self.counter.add(x)
        return prediction

    def unconditional(self) -> Score:
        return self._around(self.inner.unconditional())


def check_answer(score: Any, x: Tensor) -> None:
    """Refuse a score of another shape or type than `x`. Raises `ValueError` and `TypeError`."""
    if not isinstance(score, Tensor):
        raise TypeError(f"The score function returned {type(score).__name__}; it must return a tensor like x.")
    if score.shape != x.shape:
        raise ValueError(
            f"The score function returned shape {tuple(score.shape)} for x of shape {tuple(x.shape)}; they must be "
            "equal."
        )
    if score.dtype != x.dtype:
        raise TypeError(f"The score function returned {score.dtype} for x of {x.dtype}; convert its answer, or x.")


def as_score(score_fn: Any, sde: SDE) -> Score:
    """`score_fn` as a `Score` for `sde`: itself if it is one, otherwise any callable `(x, t) -> score`.

    Raises:
        TypeError: for what is neither.
    """
    if isinstance(score_fn, Score):
        return score_fn
    if isinstance(score_fn, type) or not callable(score_fn):
        what = f"the class {score_fn.__name__}; make an instance" if isinstance(score_fn, type) else repr(score_fn)
        raise TypeError(f"A score is a function (x, t) -> tensor like x, or a sde_score.score.Score; got {what}.")
    return FunctionScore(score_fn, sde)
