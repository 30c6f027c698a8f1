"""Results as files: a name that says what a result is, reading that never fails, tables of single samples."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from sde_score.files import first_line, write_bytes
from sde_score.run.facts import plain

_PASSING = ("seconds", "provenance", "files", "file")  # facts of a result that another run of the same may change


def settings_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What of the facts says which result it is: equal settings give equal numbers."""
    return {key: value for key, value in facts.items() if key not in _PASSING}


def result_name(words: Sequence[str | None], settings: Mapping[str, Any]) -> str:
    """`words` joined by `_`, and six digits of a hash of all settings, so that other settings never have its name."""
    text = json.dumps(plain(dict(settings)), sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return "_".join([re.sub(r"[^\w.+-]+", "-", word) for word in words if word] + [digest])


def spec_word(spec: str) -> str:
    """The name in a component's spec: `rk4` of `rk4(steps=4)`."""
    return str(spec).partition("(")[0]


def weights_digest(model: nn.Module) -> str:
    """Tells weights apart that have the same step: averaged or raw, of this training or another."""
    from sde_score.metrics.base import module_hash

    return module_hash(model)


def check_tag(tag: str) -> str:
    """The tag, if it can be the name of files in the run directory. Raises `ValueError` otherwise."""
    if not re.fullmatch(r"[^\W_][\w.+=-]*", tag) or len(tag) > 100 or tag.endswith("_trajectory"):
        raise ValueError(
            "A tag is a plain name of letters, digits and any of _ . + = -, which begins with a letter or a digit and "
            f"does not end in _trajectory, such as ode_100; got {tag!r}."
        )
    return tag


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ValueError` with the reason where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no object of facts but {first_line(ValueError(repr(found)[:60]))}")
    return found


@contextmanager
def costs_nothing(what: str) -> Iterator[None]:
    """What fails in here, a picture say, is one line on stderr: the numbers beside it are safe."""
    try:
        yield
    except Exception as error:
        print(f"{what} could not be made: {first_line(error)}", file=sys.stderr)


def keep_earlier(folder: Path, tag: str, settings: Mapping[str, Any]) -> str | None:
    """Give the files called `tag` another name, where they are another result; the first free of `tag_1`, `tag_2` ...

    Returns that name, `None` where nothing had to move.
    """
    mine = [p for p in folder.iterdir() if p.name.startswith((f"{tag}.", f"{tag}_trajectory."))]
    # not those of a tag that goes on after a point
    mine = [p for p in mine if p.name[: -len(p.suffix)] in (tag, f"{tag}_trajectory")]
    if not mine:
        return None
    try:
        if settings_of(read_json(folder / f"{tag}.json")) == json.loads(json.dumps(plain(dict(settings)))):
            return None
    except ValueError:
        pass
    number = 1
    while any(folder.glob(f"{tag}_{number}.*")):
        number += 1
    for path in mine:
        path.rename(path.with_name(f"{tag}_{number}{path.name[len(tag) :]}"))
    return f"{tag}_{number}"


TABLES = (".csv", ".npz")


def check_table(path: str | Path) -> Path:
    """The path, if a table can be written there. Raises `ValueError` otherwise, before anything is computed."""
    path = Path(path)
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"Values of single samples are written as {' or '.join(TABLES)}; got {str(path)!r}.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} to write {path.name} in.")
    return path


def write_table(path: Path, columns: Mapping[str, Tensor | Sequence[Any]]) -> Path:
    """Columns of equal length as .csv with a heading, or as arrays in a .npz, by the suffix."""
    check_table(path)
    arrays = {name: values.numpy() if isinstance(values, Tensor) else np.asarray(values)
              for name, values in columns.items()}  # fmt: skip
    if path.suffix.lower() == ".csv":
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(arrays)
        rows.writerows(zip(*arrays.values(), strict=True))  # numpy writes as many digits as bring a number back
        return write_bytes(path, text.getvalue().encode())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return write_bytes(path, buffer.getvalue())
