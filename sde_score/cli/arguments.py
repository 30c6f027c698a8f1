"""The sub-commands by name, and how the line of one is read: absl flags and a configuration with overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

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
        except FileNotFoundError as error:
            raise UsageError(str(error)) from error
    elif workdirs and (Path(workdirs[-1]) / "config.json").is_file():
        config = read_run(workdirs[-1])
    overrides = [m[1] for m in (re.match(r"--?(?:no)?config\.([^=]+)", word) for word in rest) if m]
    if overrides and config is None:
        where = f"there is no run in {workdirs[-1]!r}" if workdirs else "there is no --workdir of a run"
        raise UsageError(f"{where} to take a configuration from; write --config=NAME with --config.{overrides[0]}=...")
    for path in overrides:
        _check_key(config, path)
    return config, rest


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
    for path in [m[1] for m in (re.match(r"--?(?:no)?config\.([^=]+)", word) for word in argv) if m]:
        *sections, key = path.split(".")
        place, section = found, config
        for name in sections:
            place, section = place.setdefault(name, {}), section[name]
        place[key] = section[key]
    return found


def _check_key(config: ConfigDict, path: str) -> None:
    from sde_score.registry import suggest

    section = config
    for depth, key in enumerate(path.split(".")):
        if not isinstance(section, ConfigDict) or key not in section:
            parent = ".".join(["config", *path.split(".")[:depth]])
            keys = section.keys() if isinstance(section, ConfigDict) else ()
            raise UsageError(f"there is no key {parent}.{key}.{suggest(key, keys)}")
        section = section[key]


def parse(
    name: str, argv: list[str], define: Callable[[flags.FlagValues], None], *, config: bool = True
) -> flags.FlagValues:
    """The flags of a line: those that `define` adds to the common ones, and with `config` a configuration.

    Prints the help and exits if the line asks for it. Raises `UsageError` for a line that cannot be read.
    """
    values = flags.FlagValues()
    flags.DEFINE_bool("json", False, "print one JSON object on stdout, and nothing else there", flag_values=values)
    flags.DEFINE_bool("traceback", False, "show the whole traceback of an error", flag_values=values)
    flags.DEFINE_multi_string(
        "plugin", [], "a .py file or module that registers components of your own", flag_values=values
    )
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    define(values)
    if "--help" in argv or "-h" in argv:
        print(f"usage: sde-score {name} [flags]\n\n{COMMANDS[name].__doc__}\n")
        for flag in sorted({values[n].name for n in values}):
            print(
                f"  --{flag:<12} {values[flag].help}"
                + (f" (default: {values[flag].default})" if values[flag].default not in (None, [], False) else "")
            )
        if config:
            print(
                "\n"
                "  --config=NAME_OR_FILE[:ARGUMENT]   the configuration, e.g. digits:ve; read from --workdir once the "
                "run exists"
            )
            print(
                "  --config.SECTION.KEY=VALUE         any key of it, e.g. "
                "--config.sampling.predictor=ancestral_sampling"
            )
        raise SystemExit(0)
    chosen, given = None, argv
    if config:
        chosen, argv = _config_of(argv)
    try:
        if chosen is not None:  # told of its arguments: by itself it would look for overrides in those of the process
            config_flags.DEFINE_config_dict(
                "config", chosen, "configuration", flag_values=values, sys_argv=["sde-score", *argv]
            )
        rest = values(["sde-score", *argv])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(" ".join(str(error.args[0] if error.args else error).split())) from error
    if chosen is not None and (_take(given, "config")[0] or _take(given, "config.plugins")[0]):
        # a configuration of the line's own names its plug-ins, one read from a run directory does not
        values.plugin = [*values.config.plugins, *values.plugin]
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    return values


def chosen_config(values: flags.FlagValues) -> ConfigDict | None:
    """The configuration after all flags, or None if the line names none and no run is there."""
    if "config" not in values or values.config is None:
        return None
    from sde_score.config import with_plugins

    config = values.config
    config.plugins = with_plugins(config.plugins, values.plugin)
    return config


def need_run(values: flags.FlagValues) -> Run:
    """The run that the line names, with its overrides."""
    from sde_score.run import load

    if values.workdir is None:
        raise UsageError("--workdir=DIR is missing: the directory of a trained run")
    config = chosen_config(values)
    return load(values.workdir, config, checkpoint=values.checkpoint, ema=values.ema, plugins=values.plugin)


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
