"""The command `config`: configurations shown, compared, and their keys explained. Imports no torch."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from sde_score.cli.arguments import UsageError, command, parse
from sde_score.config import default_config, differences, flat, load_config, no_key, read_run
from sde_score.keys import KEYS, Key


@command("config")
def config(argv: list[str]) -> None:
    """config show [SECTION ...]: the values of --config=NAME, of the run in --workdir=DIR, or the defaults.
    config diff A B: where two configurations differ; names, files or run directories.
    config keys [PATTERN ...]: what there is to set.
    """

    def define(values):
        flags.DEFINE_string("workdir", None, "the run directory", flag_values=values)

    values = parse("config", argv, define, plugins=False, loose=True)
    verb, *rest = values.loose or ["show"]
    if verb == "show":
        chosen = default_config() if "config" not in values or values.config is None else values.config
        found, lines = show(chosen, rest)
    elif verb == "diff" and len(rest) == 2:
        found, lines = diff(rest[0], rest[1])
    elif verb == "keys":
        found, lines = keys(rest)
    else:
        raise UsageError("write config show [SECTION], config diff A B, or config keys [PATTERN]")
    print(json.dumps(found, default=list) if values.json else "\n".join(lines))


def show(chosen: ConfigDict, sections: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Keys and values, of some sections or all; what is not the default, with the default."""
    for section in sections:
        if section not in {*chosen, *flat(chosen)}:
            raise no_key(f"config.{section}", chosen.keys())
    values, order = flat(chosen), list(KEYS)
    wanted = {
        key: values[key]
        for key in sorted(values, key=lambda key: order.index(key) if key in KEYS else len(order))
        if not sections or any(key == s or key.startswith(f"{s}.") for s in sections)
    }
    rows = []
    for key, value in wanted.items():
        default = default_of(KEYS[key]) if key in KEYS else value
        rows.append((key, repr(value), "" if value == default else f"(default {default!r})"))
    return wanted, table(rows)


def default_of(key: Key) -> Any:
    """The value a key has in the defaults."""
    return None if isinstance(key.default, type) else key.default


def diff(one: str, two: str) -> tuple[dict[str, Any], list[str]]:
    """The keys on which two configurations differ, with both values."""
    found = differences(configuration_of(one), configuration_of(two))
    rows = [("key", one, two), *((key, repr(a), repr(b)) for key, (a, b) in found.items())]
    return {key: {"a": a, "b": b} for key, (a, b) in found.items()}, table(rows) if found else ["no difference"]


def configuration_of(word: str) -> ConfigDict:
    """The configuration of a run directory, of a file or of a name."""
    if Path(word).is_dir():
        return read_run(word)
    try:
        return load_config(word)
    except FileNotFoundError as error:
        raise UsageError(f"{word!r} is no run directory. {error}") from error


def keys(patterns: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Key, type, default, allowed values and meaning of the keys that match one of the patterns."""
    plain = [pattern.lstrip("-").removeprefix("config.") for pattern in patterns]
    chosen = [key for key in KEYS if not plain or any(p in key or fnmatch.fnmatch(key, p) for p in plain)]
    if not chosen:
        raise no_key(f"config.{patterns[0]}", KEYS)
    found = {
        key: {
            "type": KEYS[key].type.__name__,
            "default": default_of(KEYS[key]),
            "allowed": KEYS[key].allowed,
            "meaning": KEYS[key].meaning,
        }
        for key in chosen
    }
    return found, key_lines(chosen)


def key_lines(chosen: Iterable[str] = KEYS) -> list[str]:
    """A line for each key: type, default, and what it is, with the values that it may have."""
    rows = []
    for name in chosen:
        key = KEYS[name]
        allowed = f" ({key.allowed})" if key.allowed and key.type is not bool else ""
        rows.append((name, key.type.__name__, repr(default_of(key)), f"{key.meaning}{allowed}"))
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, their columns one below the other."""
    widths = [min(34, max(len(row[column]) for row in rows)) for column in range(len(rows[0]) - 1)]
    return ["  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths)), row[-1]]).rstrip() for row in rows]
