"""The conformance checks as tests of one's own suite, one pytest test for each check (in the manner of scikit-learn's
`parametrize_with_checks`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sde_score.registry import suggest
from sde_score.testing.checks import name_of
from sde_score.testing.kinds import checks_of


def parametrize_with_checks(
    objects: Iterable[Any], *, skip: dict[str, str] | None = None, **settings: Any
) -> Callable[[Callable], Callable]:
    """Decorator that runs a test function of one argument, `check`, once for each check of each object.

        @parametrize_with_checks([MySDE(), MySDE(sigma=3.0)], skip={"check_prior": "approximate by design"})
        def test_my_sde(check):
            check()

    Args:
        objects: SDEs, predictors, correctors, solvers, objectives, parameterisations: instances, or for a fixed-step
            solver its class.
        skip: names of checks to skip, with the reason that pytest shows.
        settings: for the checks, such as `shape=(4,)` of `check_sde` or `order=2` of `check_solver`.

    Raises:
        ValueError: when `skip` names a check that no object has.
        TypeError: for an object of no known kind.
    """
    import pytest

    skip = dict(skip or {})
    cases, known = [], set()
    for obj in objects:
        label = obj.__name__ if isinstance(obj, type) else type(obj).__name__
        for check in checks_of(obj, **settings):
            name = name_of(check)
            known.add(name)
            marks = [pytest.mark.skip(reason=skip[name])] if name in skip else []
            cases.append(pytest.param(check, id=f"{label}-{name}", marks=marks))
    unknown = [name for name in skip if name not in known]
    if unknown:
        raise ValueError(f"skip names unknown checks: {', '.join(unknown)}.{suggest(unknown[0], known)}")
    return pytest.mark.parametrize("check", cases)
