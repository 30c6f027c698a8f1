"""Named components, chosen by a component spec such as `"langevin(snr=0.16)"`.

A registry maps names to classes (or factory functions). A third party adds its own in two ways: an installed package's
entry points (loaded only when their name is asked for), or a module named in `config.plugins` that registers on import.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from sde_score import words

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


class SettingError(ValueError):
    """What a user wrote (a name, a key, an argument, a value, two that contradict) cannot be: the message says what to
    write instead. Whoever gets it need not look for a fault elsewhere; the command line ends with status 2.
    """


def suggest(word: str, known: Iterable[str]) -> str:
    """The tail of an error message about an unknown `word`: the nearest known word, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(known) or 'none'}."


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split a component spec into its name and its keyword arguments.

    `"ode"` gives `("ode", {})`; `"langevin(snr=0.16)"` gives `("langevin", {"snr": 0.16})`. Values are Python literals;
    nothing is ever evaluated. Raises `SettingError`, a `ValueError`, for anything else.
    """
    if not isinstance(spec, str):
        raise TypeError(
            f'A component spec is a string such as "langevin(snr=0.16)", not {type(spec).__name__}: {spec!r}.'
        )
    text = spec.strip()
    name, bracket, rest = text.partition("(")
    name = name.strip()
    if not re.fullmatch(r"[^\W\d][\w.+-]*", name):
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        hint = f" Leave out its own quotes: {text[1:-1]}" if quoted else ""
        raise SettingError(
            f"{spec!r} is not a component spec. Write a name, or a name with keyword arguments: "
            f'"langevin(snr=0.16)".{hint}'
        )
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"_({rest}", mode="eval").body
    except SyntaxError as error:
        raise SettingError(
            f'Cannot read the component spec {spec!r}: {error.msg}. Example: "langevin(snr=0.16)".'
        ) from None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise SettingError(f'Cannot read the component spec {spec!r}. Write "{name}(argument=value)".')
    if call.args or any(k.arg is None for k in call.keywords):
        raise SettingError(
            f'The component spec {spec!r} has an argument without a name. Write "{name}(argument=value)".'
        )
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            value = ast.unparse(keyword.value)
            hint = f" Did you mean {value!r} in quotes?" if isinstance(keyword.value, ast.Name) else ""
            raise SettingError(
                f"In {spec!r}, the value of {keyword.arg!r} is not a literal: {value}.{hint} Specs are read, never run."
            ) from None
    return name, arguments


def first_line(component: Any) -> str:
    """The first paragraph of a component's own docstring, on one line."""
    return " ".join((component.__doc__ or "").strip().split("\n\n")[0].split())


_OPEN: WeakSet[Registry[Any]] = WeakSet()  # to say of what kind a name is that was asked for as another


class Registry(Generic[T]):
    """The components of one `kind` (a word for messages), objects of type T, optionally open to the entry points of one
    `group`.

    Components are classes or functions, and are made by calling them, or their class method called `make`.
    """

    def __init__(self, kind: str, *, group: str | None = None, make: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self.make = make
        self._components: dict[str, Callable[..., T]] = {}
        if group is not None:
            _OPEN.add(self)

    def register(self, name: str | None = None) -> Callable[[C], C]:
        """Decorator that registers a class or a factory function, under `name` or its own name.

        Raises `ValueError` when the name is taken by another component: nothing is ever replaced in silence.
        """

        def add(component: C) -> C:
            key = name or component.__name__
            known = self._components.get(key)
            if known is not None and (known.__module__, known.__qualname__) != (
                component.__module__,
                component.__qualname__,
            ):
                raise ValueError(
                    f"The {self.kind} name {key!r} is taken by {known.__module__}.{known.__qualname__}; choose another "
                    "name."
                )
            self._components[key] = component
            return component

        return add

    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        return {e.name: e for e in metadata.entry_points(group=self.group)} if self.group else {}

    def names(self) -> list[str]:
        """All known names, those of entry points included (which are not imported for it)."""
        return sorted(set(self._components) | set(self._entry_points()))

    def get(self, name: str) -> Callable[..., T]:
        """The component called `name`. Raises `SettingError`, a `ValueError`, that says what to write instead."""
        if name in self._components:
            return self._components[name]
        entry = self._entry_points().get(name)
        if entry is None:
            raise SettingError(f"Unknown {self.kind} {name!r}.{self._instead(name)}")
        self._components[name] = entry.load()
        return self._components[name]

    @property
    def word(self) -> str:
        """What `sde-score list` calls it: `predictors`."""
        return (self.group or "").rpartition(".")[2]

    def _instead(self, name: str) -> str:
        """The tail of an error message about a name that is none of these."""
        known = f" Known: {', '.join(self.names())}."
        same = [n for n in self.names() if words.plainly(n) == words.plainly(name)]
        if same:
            return f" Did you mean {same[0]!r}?{known}"
        instead = words.for_component(self.word, name)
        if instead:
            return f" Write {repr(instead) if re.fullmatch(r'[a-z0-9_]+([(].*[)])?', instead) else instead}.{known}"
        for other in sorted(_OPEN - {self}, key=lambda registry: registry.kind):
            flag = words.as_flag(other.word, name)
            if flag and name != "none" and name in other._components:
                return f" There is a {other.kind} {name!r}: write {flag}.{known}"
        return suggest(name, self.names())

    def _maker(self, name: str) -> Callable[..., T]:
        component = self.get(name)
        return component if self.make is None else getattr(component, self.make)

    def build(self, spec: str | T, *args: Any, **context: Any) -> T:
        """Make the component that `spec` describes: `component(*args, **arguments)`.

        `context` offers values for constructor parameters that the spec leaves open; what the constructor does not name
        is not passed. An object that is not a string is taken as built already and returned. Raises `SettingError` for
        unknown names and arguments, with the known ones.
        """
        if not isinstance(spec, str):
            return spec
        name, arguments = self._parsed(spec)
        component = self._maker(name)
        parameters = inspect.signature(component).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        settable = [
            n for n, p in list(parameters.items())[len(args) :] if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        for argument in arguments:
            if argument not in settable and not open_ended:
                raise SettingError(
                    f"The {self.kind} {name!r} has no argument {argument!r}.{suggest(argument, settable)}"
                )
        filled = {k: v for k, v in context.items() if k in settable and k not in arguments}
        missing = [
            n
            for n in settable
            if parameters[n].default is inspect.Parameter.empty and n not in arguments and n not in filled
        ]
        if missing:
            example = ", ".join(f"{n}=..." for n in missing)
            raise SettingError(
                f'The {self.kind} {name!r} needs {", ".join(map(repr, missing))}: write "{name}({example})".'
            )
        try:
            return component(*args, **arguments, **filled)
        except TypeError as error:
            raise TypeError(f"{self.kind} {spec!r}: {error}. Signature: {name}{self.signature(name)}") from error

    def _parsed(self, spec: str) -> tuple[str, dict[str, Any]]:
        """`parse_spec`; what is written with a colon, `hutchinson:4`, is told how its first argument is called."""
        name, colon, value = spec.strip().partition(":")
        if colon and name in self.names():
            settable = [n for n in inspect.signature(self._maker(name)).parameters if n not in ("self", "sde", "data")]
            if settable:
                raise SettingError(f'{spec!r} is not a component spec. Write "{name}({settable[0]}={value or "..."})".')
        return parse_spec(spec)

    def signature(self, name: str) -> str:
        """The settings of a component as a user may write them: parameters without `sde`, `data` and the like."""
        parameters = inspect.signature(self._maker(name)).parameters.values()
        hidden = ("self", "sde") if self.make is None else ("data",)
        shown = [p.replace(annotation=inspect.Parameter.empty) for p in parameters if p.name not in hidden]
        return str(inspect.Signature([p for p in shown if p.kind is not p.VAR_POSITIONAL]))

    def describe(self) -> list[dict[str, str]]:
        """One row per component: name, signature, first line of its documentation, and the module it comes from."""
        rows = []
        for name in self.names():
            try:
                component = self.get(name)
            except Exception as error:  # a broken third-party plug-in must not hide the others
                rows.append(
                    {"name": name, "signature": "", "doc": f"cannot be loaded: {error}", "origin": str(self.group)}
                )
                continue
            rows.append(
                {
                    "name": name,
                    "signature": self.signature(name),
                    "doc": first_line(component),
                    "origin": component.__module__,
                }
            )
        return rows
