"""Which checks an object gets, by what it can do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from sde_score.testing.checks import Check
from sde_score.testing.corrector_checks import corrector_checks
from sde_score.testing.objective_checks import objective_checks
from sde_score.testing.parameterization_checks import TARGETS, parameterization_checks
from sde_score.testing.predictor_checks import predictor_checks
from sde_score.testing.sde_checks import sde_checks
from sde_score.testing.solver_checks import solver_checks


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda obj: all(hasattr(obj, name) for name in names)


def _arguments(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _steps_on(obj: Any) -> bool:
    return hasattr(obj, "start") or "t_next" in _arguments(getattr(obj, "step", None))


KINDS: dict[str, tuple[Callable[[Any], bool], Callable[..., Any]]] = {
    "SDE": (_has("drift", "prior_logp"), sde_checks),
    "solver": (_has("integrate"), solver_checks),
    "parameterization": (_has("c_noise", "eps"), parameterization_checks),
    "predictor": (_steps_on, predictor_checks),
    "corrector": (_has("step"), corrector_checks),
    "objective": (lambda obj: callable(obj) and {"model", "x0"} <= set(_arguments(obj.__call__)), objective_checks),
}
"""For each kind: how to tell it, asked of instances and of classes in this order; and its checks."""


def kind_of(obj: Any) -> str:
    """The kind of an object or class.

    Raises `TypeError` for what is none of them.
    """
    for kind, (is_one, _) in KINDS.items():
        if is_one(obj):
            return kind
    what = obj.__name__ if isinstance(obj, type) else f"an object of class {type(obj).__name__}"
    raise TypeError(
        f"{what} is nothing that can be checked. An SDE has drift and prior_logp, a predictor step(score_fn, x, t, "
        "t_next, noise), a corrector step(score_fn, x, t, noise), a solver integrate, an objective __call__(model, x0, "
        "*, noise), a parameterisation eps and c_noise."
    )


def checks_of(obj: Any, **settings: Any) -> list[Check]:
    """The checks of an object, each callable without arguments: those of `check_sde`, `check_predictor` and so on, with
    the `settings` that these take."""
    kind = kind_of(obj)
    return list(KINDS[kind][1](obj, **settings))


def settings_of(cls: Any, name: str = "") -> dict[str, Any]:
    """What a class says of itself that its checks want to know: the order of a fixed-step solver, the target of a
    parameterisation (by its own attribute or its registered name)."""
    kind = kind_of(cls)
    if kind == "solver" and "steps" in _arguments(cls):
        order = getattr(getattr(cls, "tableau", None), "order", None)
        return {"order": order}
    if kind == "parameterization" and name in TARGETS:
        return {"target": name}
    return {}
