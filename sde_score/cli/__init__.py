"""The command line: `sde-score COMMAND [flags]`, absl flags and sub-commands. `--help` imports no torch."""

from __future__ import annotations

import errno
import os
import sys
import traceback

from absl import flags

from sde_score import words
from sde_score.cli import commands as _commands  # noqa: F401  (registers them)
from sde_score.cli import configuration as _configuration  # noqa: F401
from sde_score.cli import data as _data  # noqa: F401
from sde_score.cli.arguments import COMMANDS, UsageError
from sde_score.registry import SettingError, suggest

TOP = """usage: sde-score COMMAND [flags]

  train       train a score model, or go on where it stopped
  data        show what would be read from a path, and how it would be trained on
  sample      draw samples from a run
  likelihood  log-likelihoods and bits/dim by the probability-flow ODE
  evaluate    compare samples with the test data
  report      write report.html anew
  list        registered components: SDEs, predictors, correctors, solvers, models, data sets ...
  config      configurations shown, compared, and their keys explained
  check       prove components of your own right: SDEs, predictors, correctors, solvers, objectives
  import      an official .pth checkpoint becomes a run
  export      the weights of a run for others: .safetensors, or an official .pth checkpoint
  quickstart  all of it on the 8x8 digits, in a few minutes

sde-score COMMAND --help shows the flags of a command.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status.

    0: done. 1: the work failed. 2: what stands on the line cannot be: a command, a flag, a key, a value, a component's
    name, or two that contradict; nothing was done. 130: interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--"]:  # torchrun reads `--num` as its own, unless our words stand behind `--`
        argv = argv[1:]
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(TOP)
        return 0 if argv else 2
    if argv[0] == "--version":
        import sde_score

        print(sde_score.__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"sde-score: {_no_command(argv)}", file=sys.stderr)
        return 2
    wants_traceback = "--traceback" in argv or os.environ.get("SDE_SCORE_TRACEBACK")
    try:
        COMMANDS[argv[0]](_with_flag_files(argv[1:]))
    except UsageError as error:
        print(f"sde-score {argv[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sde-score {argv[0]}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if wants_traceback:
            traceback.print_exc()
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f" for {error.filename}" if error.filename else ""
            print(
                f"sde-score {argv[0]}: no room on the disk{what}. What was written before is intact; free some space "
                "and repeat the command.",
                file=sys.stderr,
            )
        else:
            text = " ".join(str(error).split()) or type(error).__name__
            expected = isinstance(error, (ValueError, OSError, RuntimeError, FloatingPointError, ImportError))
            print(
                f"sde-score {argv[0]}: "
                f"{text if expected else f'{type(error).__name__}: {text}  (--traceback shows where)'}",
                file=sys.stderr,
            )
        return 2 if isinstance(error, SettingError) else 1
    return 0


def _no_command(argv: list[str]) -> str:
    """What to write for a line that begins with no command."""
    if argv[0].startswith("-"):
        return f"the command comes first: sde-score train {argv[0]}. Commands: {', '.join(sorted(COMMANDS))}."
    instead = words.COMMANDS.get(words.plainly(argv[0]))
    hint = f" Write sde-score {instead}." if instead else ""
    return f"there is no command {argv[0]!r}.{hint}{suggest(argv[0], COMMANDS)}"


def _with_flag_files(argv: list[str]) -> list[str]:
    """The line with the flags of the files that `--flagfile=FILE` names, one on a line, in its place."""
    try:
        return flags.FlagValues().read_flags_from_files(argv, force_gnu=True)
    except flags.Error as error:
        raise UsageError(str(error)) from error


def entry(command: str | None = None) -> None:
    """Entry point of the scripts; `command` is that of a script for one command."""
    sys.exit(main(None if command is None else [command, *sys.argv[1:]]))
