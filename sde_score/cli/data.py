"""The command `data`: what would be read from a path, and how it would be trained on."""

from __future__ import annotations

import re
from pathlib import Path

from absl import flags

from sde_score.cli.arguments import UsageError, command, finish, parse


@command("data")
def data(argv: list[str]) -> None:
    """Show what would be read from a path, without training: sde-score data PATH. Counts, shapes, ranges, classes,
    equal samples, broken files, a picture of some samples, and what train --data=PATH would choose.
    """

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("data", None, "the path, or the name of a data set", flag_values=values)
        flags.DEFINE_string("picture", None, "where the picture goes; default: NAME_data.png here", flag_values=values)
        flags.DEFINE_float("minutes", None, "how long one wants to train", lower_bound=1e-3, flag_values=values)

    named = [word for word in argv if not word.startswith("-")]
    if len(named) > 1:
        raise UsageError(f"write one path; got {', '.join(named)}")
    argv = [word for word in argv if word not in named]
    values = parse("data", argv + [f"--data={path}" for path in named], define)
    if values.data is None:
        raise UsageError("write what to look at, e.g. sde-score data ./photos or sde-score data table.csv")
    from sde_score.run.look import look_at

    stem = re.sub(r"[^\w.-]+", "_", Path(values.data).stem or "data")
    picture = Path(values.picture) if values.picture else Path(f"{stem}_data.png")
    found = look_at(values.config, picture, minutes=values.minutes, plugins=values.plugin)
    lines = [*found.overview.lines(), "", "train --data would choose:", *(f"  {line}" for line in found.reasons)]
    if found.picture is not None:
        lines += ["", f"picture: {found.picture}"]
    shown = {"picture": None if found.picture is None else str(found.picture), "choice": found.config.to_dict()}
    finish(values, {"overview": found.overview.to_dict(), "reasons": list(found.reasons)} | shown, lines)
