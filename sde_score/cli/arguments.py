"""The sub-commands by name, and how the line of one is read: absl flags and a configuration with overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from sde_score import words
from sde_score.registry import suggest

if TYPE_CHECKING:
    from sde_score.run.run import Run

COMMANDS: dict[str, Callable[[list[str]], object]] = {}


def command(name: str) -> Callable:
    """Register a function of the words after `sde-score NAME`."""

    def register(function: Callable[[list[str]], object]) -> Callable[[list[str]], object]:
        COMMANDS[name] = function
        return function

    return register


class UsageError(Exception):
    """A command line that cannot be read: exit status 2."""


def _take(argv: list[str], name: str) -> tuple[list[str], list[str]]:
    """The values that a line gives to `--name`, and the line without them."""
    values, rest, words = [], [], iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in (f"--{name}", f"-{name}"):
            rest.append(word)
        elif equals:
            values.append(value)
        else:
            values.append(next(words, ""))
    return values, rest


def _config_of(argv: list[str]) -> tuple[ConfigDict | None, list[str]]:
    """The configuration named on the line, or else that of the run directory, before overrides; and the line without
    its name.
    """
    from sde_score.config import load_config, read_run

    named, rest = _take(argv, "config")
    if len(named) > 1:
        raise UsageError(f"--config is given {len(named)} times: {', '.join(named)}")
    workdirs = _take(argv, "workdir")[0]
    config, paths = None, _take(argv, "data")[0]
    if paths:
        begun = "--overwrite" not in argv and bool(workdirs) and (Path(workdirs[-1]) / "config.json").is_file()
        config = _config_for_data(paths[-1], named, workdirs[-1] if begun else None)
    elif named:
        try:
            config = load_config(named[0])
        except FileNotFoundError as error:  # also one that a file of the user's own opens
            raise UsageError(str(error)) from error
    elif workdirs and (Path(workdirs[-1]) / "config.json").is_file():
        config = read_run(workdirs[-1])
    overrides = _overrides(rest)
    if overrides and config is None:
        where = f"there is no run in {workdirs[-1]!r}" if workdirs else "there is no --workdir of a run"
        raise UsageError(
            f"{where} to take a configuration from; write --config=NAME with --config.{overrides[0][0]}=..."
        )
    for path, text in overrides:
        _check_override(config, path, text)
    return config, rest


def _overrides(argv: list[str]) -> list[tuple[str, str | None]]:
    """The keys that a line sets, `--config.SECTION.KEY=VALUE`, and their values where these stand behind `=`."""
    found = [re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", word, flags=re.S) for word in argv]
    return [(m[1], m[2]) for m in found if m]


def _config_for_data(path: str, named: list[str], workdir: str | None) -> ConfigDict:
    """For `--data=PATH`: the configuration of the run in `workdir`, or else the defaults with that path, from which one
    will be chosen."""
    from sde_score.config import default_config, read_run

    if named:
        raise UsageError(
            f"--data={path} chooses a configuration from the data, --config={named[0]} names one. Leave one of them "
            f"out, or write --config={named[0]} --config.data.name={path}"
        )
    if workdir is not None:
        config = read_run(workdir)
        if Path(config.data.name).resolve() != Path(path).expanduser().resolve():
            raise UsageError(
                f"the run in {workdir} is trained on {config.data.name}, not on {path}; choose another --workdir"
            )
        return config
    config = default_config()
    config.data.name = str(Path(path).expanduser())
    return config


def given_keys(argv: list[str], config: ConfigDict) -> dict[str, Any]:
    """The keys that a line sets, `--config.SECTION.KEY=...`, as nested mappings with their values."""
    found: dict[str, Any] = {}
    for path, _ in _overrides(argv):
        *sections, key = path.split(".")
        place, section = found, config
        for name in sections:
            place, section = place.setdefault(name, {}), section[name]
        place[key] = section[key]
    return found


def _check_override(config: ConfigDict, path: str, text: str | None) -> None:
    """Raise `SettingError` for a key that there is none of, and for a value that cannot be read."""
    from sde_score.config import no_key, read_value

    section: Any = config
    *sections, key = path.split(".")
    for depth, name in enumerate((*sections, key)):
        if not isinstance(section, ConfigDict) or name not in section:
            parent = ".".join(["config", *sections[:depth]])
            raise no_key(f"{parent}.{name}", section.keys() if isinstance(section, ConfigDict) else ())
        place, section = section, section[name]
    if isinstance(section, ConfigDict):
        raise UsageError(f"config.{path} is a section; its keys: {', '.join(section.keys())}")
    kind = place.get_type(key)
    if text is not None and text != "None" and kind in (bool, int, float, str):
        read_value(path, text, kind)


def parse(
    name: str,
    argv: list[str],
    define: Callable[[flags.FlagValues], None],
    *,
    config: bool = True,
    plugins: bool = True,
    loose: bool = False,
) -> flags.FlagValues:
    """The flags of a line: those that `define` adds to the common ones, and with `config` a configuration.

    The values returned have attributes more: `named`, what stands after `--config=`; `given`, of each key that the line
    sets whether that changes the configuration; and `loose`, the words that are no flags, where there may be some.
    Prints the help and exits if the line asks for it. Raises `UsageError` and `SettingError` for a line that cannot be
    read.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    flags.DEFINE_bool("json", False, "print one JSON object on stdout, and nothing else there", flag_values=values)
    flags.DEFINE_bool("traceback", False, "show the whole traceback of an error", flag_values=values)
    if plugins:
        flags.DEFINE_multi_string(
            "plugin", [], "a .py file or module that registers components of your own", flag_values=values
        )
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    define(values)
    if "--help" in argv or "-h" in argv:
        print(_help(name, values, config))
        raise SystemExit(0)
    chosen, given = None, argv
    if config:
        chosen, argv = _config_of(argv)
    before = {path: _value(chosen, path) for path, _ in _overrides(argv)} if chosen is not None else {}
    try:
        if chosen is not None:  # told of its arguments: by itself it would look for overrides in those of the process
            config_flags.DEFINE_config_dict(
                "config", chosen, "configuration", flag_values=values, sys_argv=["sde-score", *argv]
            )
        rest = values(["sde-score", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        known = {values[n].name for n in values}
        raise UsageError(_no_flag(name, error.flagname, (error.flagvalue or "").partition("=")[2], known)) from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(" ".join(str(error.args[0] if error.args else error).split())) from error
    if chosen is not None and plugins and (_take(given, "config")[0] or _take(given, "config.plugins")[0]):
        # a configuration of the line's own names its plug-ins, one read from a run directory does not
        values.plugin = [*values.config.plugins, *values.plugin]
    if rest and not loose:
        raise UsageError(f"unexpected argument {rest[0]!r}; {_written(name, rest[0], given, values)}")
    vars(values).update(
        named=next(iter(_take(given, "config")[0]), None),
        given={path: _value(values.config, path) != value for path, value in before.items()},
        loose=rest,
    )
    return values


def _value(config: ConfigDict, path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


def _help(name: str, values: flags.FlagValues, config: bool) -> str:
    lines = [f"usage: sde-score {name} [flags]", "", str(COMMANDS[name].__doc__), ""]
    for flag in sorted({values[n].name for n in values}):
        shown = values[flag].default not in (None, [], False)
        lines.append(f"  --{flag:<12} {values[flag].help}{f' (default: {values[flag].default})' if shown else ''}")
    if config:
        from sde_score.cli.configuration import key_lines

        lines += [
            "",
            "  --config=NAME_OR_FILE[:ARGUMENT]   the configuration, e.g. digits:ve; read from --workdir once the run "
            "exists",
            "  --config.SECTION.KEY=VALUE         any key of it, e.g. --config.sampling.predictor=ancestral_sampling",
            "  --flagfile=FILE                    more flags, one on a line",
            "",
            *(["keys:", *key_lines()] if name == "train" else ["sde-score config keys  lists the keys."]),
        ]
    return "\n".join(lines)


def _no_flag(command: str, flag: str, value: str, known: set[str]) -> str:
    """What to write for a flag that a command does not have."""
    section, _, key = flag.partition(".")
    if section.startswith("no") and section.removeprefix("no") in known | {"config"}:
        return f"--{flag} is for switches only; flags are written --name=value"
    head = f"there is no flag --{flag}."
    instead = words.for_flag(flag, command, value)
    if instead:
        return f"{head} Write {instead}"
    others = [c for c in words.OF_COMMANDS.get(flag, ()) if c != command]
    if others:
        return f"{head} It belongs to sde-score {', '.join(others)}.{suggest(flag, known)}"
    return head + suggest(flag, known)


def _written(command: str, word: str, argv: list[str], values: flags.FlagValues) -> str:
    """How a word that stands on a line by itself has to be written."""
    name, equals, value = word.partition("=")
    name = name.lstrip("-")
    if equals:
        own = name in values or name == "config" or name.startswith("config.")
        instead = f"--{word.lstrip('-')}" if own else words.for_flag(name, command, value)
        return f"write {instead}" if instead else "flags are written --name=value"
    before = argv[argv.index(word) - 1] if word in argv[1:] else ""
    if before.startswith("-") and "=" not in before and (before.lstrip("-") in values or _overrides([before])):
        return f"a switch and its value are one word: {before}={word}"
    if "workdir" in values and values.workdir is None and (Path(word) / "config.json").is_file():
        return f"write --workdir={word}"
    if command == "train":
        from sde_score.config import config_names

        if word.partition(":")[0] in config_names():
            return f"write --config={word}"
        if Path(word).exists():
            return f"write --data={word}"
    return "flags are written --name=value"


def chosen_config(values: flags.FlagValues) -> ConfigDict | None:
    """The configuration after all flags, or None if the line names none and no run is there."""
    if "config" not in values or values.config is None:
        return None
    from sde_score.config import with_plugins

    config = values.config
    config.plugins = with_plugins(config.plugins, values.plugin)
    return config


def need_run(values: flags.FlagValues, command: str) -> Run:
    """The run that the line names, with its overrides. Raises `SettingError` for those that `command` does not read or
    that have no effect.
    """
    from sde_score.run import load
    from sde_score.run.unused import check_given, check_read

    if values.workdir is None:
        raise UsageError("--workdir=DIR is missing: the directory of a trained run")
    config = chosen_config(values)
    read = check_read(command, values.given)
    with culprits(values):
        run = load(values.workdir, config, checkpoint=values.checkpoint, ema=values.ema, plugins=values.plugin)
    check_given(run.config, read, run.info)
    return run


@contextmanager
def culprits(values: flags.FlagValues) -> Iterator[None]:
    """Say of a contradiction with a run which words of the line brought it."""
    from sde_score.run.facts import Contradiction

    try:
        yield
    except Contradiction as error:
        mine = [key for key in error.pairs if key in values.given]
        advice = [f"Leave out {', '.join(f'--config.{key}' for key in mine)}"] if mine else []
        if len(mine) < len(error.pairs) and values.named:
            what = "the others" if mine else "them" if len(error.pairs) > 1 else "it"
            advice.append(
                f"--config={values.named} brings {what}: leave it out too, a run has its own configuration"
                if mine
                else f"--config={values.named} brings {what}: leave it out, the run has its own configuration"
            )
        if "seed" in mine and "seed" in values:
            advice.append("The seed of this command: --seed=N")
        advice.append("Or choose another --workdir" + (" (or --overwrite)" if "overwrite" in values else ""))
        raise UsageError(str(error.advised(". ".join(advice) + "."))) from error


def run_flags(values: flags.FlagValues) -> None:
    """The flags of the commands that work on a trained run."""
    flags.DEFINE_string("workdir", None, "the run directory", flag_values=values)
    flags.DEFINE_string("checkpoint", None, "a checkpoint file; default: the newest of the run", flag_values=values)
    flags.DEFINE_bool("ema", True, "use the averaged weights", flag_values=values)


def finish(values: flags.FlagValues, result: dict, lines: list[str]) -> None:
    """Print the result: one JSON object with --json, otherwise the lines."""
    if values.json:
        from sde_score.run.facts import plain

        print(json.dumps(plain(result)))
    else:
        print("\n".join(lines))
