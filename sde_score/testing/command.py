"""What `sde-score check` does: find the named components, make them, run their checks."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_score.registry import Registry, parse_spec, suggest
from sde_score.testing.checks import CheckResult, name_of, run_checks
from sde_score.testing.kinds import checks_of, kind_of, settings_of

CHECKED = ("sdes", "predictors", "correctors", "solvers", "objectives", "parameterizations")
"""Registries whose components can be checked."""


class CannotCheck(ValueError):
    """There is nothing to check under this name."""


@dataclass(frozen=True)
class Report:
    """What became of the checks of one component."""

    name: str
    kind: str
    results: list[CheckResult]

    @property
    def failures(self) -> int:
        """How many failed."""
        return sum(r.outcome == "failed" for r in self.results)

    def lines(self) -> list[str]:
        """A line for each check, the messages whole."""
        title = f"{self.name} ({self.kind}): {len(self.results)} checks, {self.failures} failed"
        return [title, *(f"  {r.outcome:<8}{r.name}{f': {r.message}' if r.message else ''}" for r in self.results)]


def check_components(
    names: Sequence[str], registries: Mapping[str, Registry], *, sde: str = "vp", skip: dict[str, str] | None = None
) -> list[Report]:
    """Run the checks of components named as `module_or_file.py:Class(argument=value)` or by their registered name.

    Args:
        names: the components. A registered name of several kinds (`edm`) is checked as each of them.
        registries: by kind, as `sde_score.run.components.REGISTRIES` has them.
        sde: spec of the SDE for components that are made for one.
        skip: names of checks to leave out, with the reason.

    Raises:
        CannotCheck: for a file, a name in it or a registered name that is not there; for an object of no known kind;
            for a component that cannot be made; for a check in `skip` that none of them has.
    """
    subjects = [subject for name in names for subject in _find(name, registries)]
    skip = dict(skip or {})
    planned = []
    for name, component, arguments in subjects:
        made, settings = _make(name, component, arguments, registries["sdes"], sde)
        planned.append((name, kind_of(made), checks_of(made, **settings)))
    known = {name_of(check) for _, _, checks in planned for check in checks}
    for name in skip:
        if name not in known:
            raise CannotCheck(f"there is no check {name!r}.{suggest(name, known)}")
    return [
        Report(name, kind, run_checks(checks, {k: v for k, v in skip.items() if k in map(name_of, checks)}))
        for name, kind, checks in planned
    ]


def _find(name: str, registries: Mapping[str, Registry]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Name, class (or object) and arguments of what `name` names."""
    place, colon, spec = name.partition(":")
    if colon and "(" not in place:
        module = _import(place)
        wanted, arguments = _parse(spec, name)
        if not hasattr(module, wanted):
            public = [n for n, v in vars(module).items() if not n.startswith("_") and _checkable(v)]
            raise CannotCheck(f"{place} has no {wanted!r}.{suggest(wanted, public)}")
        return [(spec, getattr(module, wanted), arguments)]
    wanted, arguments = _parse(name, name)
    found = [(name, registries[k].get(wanted), arguments) for k in CHECKED if wanted in registries[k].names()]
    if not found:
        names = sorted({n for k in CHECKED for n in registries[k].names()})
        raise CannotCheck(
            f"nothing is registered as {wanted!r}.{suggest(wanted, names)} A class of your own is named "
            "my_module.py:MyClass."
        )
    return found


def _parse(spec: str, name: str) -> tuple[str, dict[str, Any]]:
    try:
        return parse_spec(spec)
    except ValueError as error:
        raise CannotCheck(f"cannot read {name!r}: {error} Write my_module.py:MyClass(argument=value).") from error


def _checkable(value: Any) -> bool:
    try:
        return bool(kind_of(value)) and not inspect.isabstract(value)
    except TypeError:
        return False


def _import(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            sys.path.insert(0, str(Path.cwd()))
            try:
                return importlib.import_module(place)
            finally:
                sys.path.remove(str(Path.cwd()))
        path = Path(place)
        if not path.is_file():
            near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
            raise CannotCheck(f"there is no file {place!r}.{suggest(place, near) if near else ''}")
        spec = importlib.util.spec_from_file_location(f"sde_score_checked_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
        return module
    except CannotCheck:
        raise
    except Exception as error:
        raise CannotCheck(f"{place!r} cannot be imported: {type(error).__name__}: {error}") from error


def _make(
    name: str, component: Any, arguments: dict[str, Any], sdes: Registry, sde: str
) -> tuple[Any, dict[str, Any]]:
    """The object to check, and the settings of its checks."""
    if not callable(component) or (not isinstance(component, type) and _checkable(component)):  # an object already
        if arguments:
            raise CannotCheck(f"{name} is an object already; it takes no arguments.")
        return _known(name, component), {}
    settings: dict[str, Any] = {}
    if isinstance(component, type):
        settings = settings_of(_known(name, component), name.partition("(")[0])
        if "order" in settings:  # of a fixed-step solver the order is measured, so its checks choose the steps
            return (component, settings) if not arguments else (component(**arguments), {})
    parameters = inspect.signature(component).parameters
    given = (sdes.build(sde),) if "sde" in parameters and "sde" not in arguments else ()
    try:
        return _known(name, component(*given, **arguments)), settings
    except (TypeError, ValueError) as error:
        if isinstance(error, CannotCheck):
            raise
        raise CannotCheck(
            f"{name} cannot be made: {error}. Its arguments are {inspect.signature(component)}; write "
            f"{name.partition('(')[0]}(argument=value)."
        ) from error


def _known(name: str, component: Any) -> Any:
    """`component`, if it is of a known kind."""
    try:
        kind_of(component)
    except TypeError as error:
        raise CannotCheck(f"{name}: {error}") from error
    return component
