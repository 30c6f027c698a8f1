"""Tables: `.csv`, `.tsv`, `.parquet` and data frames, as vectors of their columns of numbers."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from sde_score.data.arrays import from_arrays
from sde_score.data.base import DATASETS, DataSplits, select_columns
from sde_score.registry import suggest

LABEL_WORDS = ("label", "labels", "class", "classes", "target", "targets", "y")
MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-", "<na>")
DELIMITERS = ("\t", ";", ",", "|")
ROWS_AT_ONCE = 10_000


@dataclass
class Table:
    """Columns of equal length by name: float64 with NaN where a number is missing, or text.

    `place(row)` says where a row stands; `unread` is the first cell of a column that is no number, and its row.
    """

    columns: dict[str, np.ndarray]
    place: Callable[[int], str] = "row {}".format
    unread: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def is_text(self, name: str) -> bool:
        return self.columns[name].dtype.kind not in "f"

    def find_label(self) -> str | None:
        """The column of labels: one that is called so, and holds text or whole numbers of which most occur more than
        once. Beside an `x` a column `y` is a coordinate."""
        for name in self.names:
            word = name.strip().lower()
            values = self.columns[name]
            if word not in LABEL_WORDS or (word == "y" and any(n.strip().lower() == "x" for n in self.names)):
                continue
            if not self.is_text(name):
                values = values[~np.isnan(values)]
                if not (values == np.round(values)).all():
                    continue
            if self.is_text(name) or len(np.unique(values)) <= max(2, len(values) // 2):
                return name
        return None

    def numbers(self, chosen: Sequence[str]) -> np.ndarray:
        """The columns `chosen` as one array `(N, D)`. Raises `ValueError` where one is text."""
        text = [name for name in chosen if self.is_text(name)]
        if text:
            rest = tuple(name for name in chosen if name not in text)
            example = next((str(value) for value in self.columns[text[0]] if value is not None), "")
            raise ValueError(
                f"The column{'s' * (len(text) > 1)} {', '.join(map(repr, text))} hold text, such as {example!r}. "
                f'Keep the others, --config.data.columns="{rest!r}", or let one be the label of each row: call it '
                f"'label', or say label={text[0]!r} (in a data frame drop it, and give it as y)."
            )
        if not chosen:
            raise ValueError(f"No column of numbers is left among {', '.join(self.names) or 'none'}.")
        return np.stack([self.columns[name] for name in chosen], 1)

    def whole_rows(self, chosen: Sequence[str], *, skip: bool, what: str) -> np.ndarray:
        """Which rows have all values of the columns `chosen`. Raises `ValueError` for the first that does not, unless
        they are to be skipped: then how many are is said."""
        lacking = {name: _lacks(self.columns[name]) for name in chosen}
        bad = np.logical_or.reduce(list(lacking.values()))
        if not bad.any():
            return ~bad
        row = int(bad.argmax())
        name = next(name for name in chosen if lacking[name][row])
        cell = self.unread.get(name, (row, ""))
        found = f"{cell[1]!r} is no number" if cell[0] == row and cell[1].strip().lower() not in MISSING else "missing"
        said = f"{what}: {int(bad.sum())} of {len(bad)} rows lack a value, first {self.place(row)}, column {name!r}:"
        said = f"{said} {found}."
        if not skip:
            raise ValueError(
                f"{said} Fill it in, leave such rows out with --config.data.on_error=skip, or leave the column out "
                "with --config.data.columns."
            )
        if bad.all():
            raise ValueError(f"{said} No row is left.")
        warnings.warn(f"{said} These rows are left out.", stacklevel=4)
        return ~bad


def _lacks(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return np.isnan(values)
    return np.array([value is None or str(value).strip().lower() in MISSING for value in values])


def as_table(values: Any, what: str) -> Table | None:
    """A data frame of pandas, polars or pyarrow, or records with named fields, as a table; `None` for others."""
    if isinstance(values, np.ndarray) and values.dtype.names and values.ndim == 1:
        names, column = list(values.dtype.names), values.__getitem__
    elif hasattr(values, "column_names") and hasattr(values, "column"):  # pyarrow
        names, column = list(values.column_names), values.column
    elif hasattr(values, "columns") and hasattr(values, "to_numpy"):
        names, column = list(values.columns), values.__getitem__
    else:
        return None
    texts = [str(name) for name in names]
    _check_names(texts, what)
    return Table({text: _plain_column(column(name), f"{what}, column {text!r}") for text, name in zip(texts, names)})


def _check_names(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"{what} has several columns called {', '.join(map(repr, twice))}: give each its own name.")


def _plain_column(column: Any, what: str) -> np.ndarray:
    """A column of a frame as float64 or as text; what is missing becomes NaN, or None."""
    values = np.ma.asarray(column.to_numpy() if hasattr(column, "to_numpy") else column)
    values = values.astype(float).filled(np.nan) if values.mask.any() else values.data
    if values.ndim != 1 or values.dtype.kind in "cMmV":
        kind = {"c": "complex numbers", "M": "dates", "m": "times"}.get(values.dtype.kind, "more than one number a row")
        raise ValueError(f"{what}, holds {kind}: turn it into columns of real numbers, or leave it out.")
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    if values.dtype.kind == "O":
        cells = [None if _is_missing(value) else value for value in values]
        if not any(isinstance(value, (str, bytes)) for value in cells):
            try:
                return np.array([np.nan if value is None else float(value) for value in cells])
            except (TypeError, ValueError):
                raise ValueError(f"{what}, holds Python objects: turn it into numbers, or leave it out.") from None
        return np.array([None if value is None else str(value) for value in cells], dtype=object)
    return values.astype(str).astype(object)


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or bool(value != value)


# --- files of text


def _encoding(path: Path) -> str:
    """The name of the encoding: UTF-8, or UTF-16 where the file says so."""
    with open(path, "rb") as file:
        start = file.read(4)
    return "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _sniff(lines: Sequence[str]) -> str:
    """The delimiter: the first that divides all lines into the same number of parts, more than one."""
    for delimiter in DELIMITERS:
        widths = {len(row) for row in csv.reader(lines, delimiter=delimiter) if row}
        if len(widths) == 1 and widths != {1}:
            return delimiter
    counts = {d: max((len(row) for row in csv.reader(lines[:1], delimiter=d)), default=1) for d in DELIMITERS}
    best = max(DELIMITERS, key=lambda d: counts[d])
    return best if counts[best] > 1 else ","


def _number(cell: str, comma: bool) -> float | None:
    """A cell as a number, NaN where it is missing, `None` where it is something else."""
    if cell.strip().lower() in MISSING:
        return float("nan")
    try:
        return float(cell.replace(",", ".") if comma else cell) if "_" not in cell else None
    except ValueError:
        return None


def read_text(path: Path, delimiter: str | None = None, *, skip: bool = False) -> Table:
    """A table of text: a line for each row, its cells between delimiters (comma, semicolon, tab or bar, found by
    itself), in quotes where need be. The first line names the columns, unless it holds numbers only.

    UTF-8 or UTF-16, with or without a mark; decimal points, or decimal commas where semicolons divide. A first column
    without a name that counts the rows is left out. Raises `ValueError` for lines with too many or too few cells.
    """
    with open(path, encoding=_encoding(path), newline="") as file:
        try:
            first = list(islice(file, 200))
            divide = delimiter or _sniff(first if len(first) < 200 else first[:-1])
            reader = csv.reader(chain(first, file), delimiter=divide, skipinitialspace=True, strict=False)
            rows = ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
            return _table(rows, divide, path, skip)
        except UnicodeDecodeError as error:
            raise ValueError(f"{str(path)!r} is not text in UTF-8 ({error.reason}): save it as UTF-8.") from None
        except csv.Error as error:
            raise ValueError(f"Cannot read {str(path)!r} as a table: {error}.") from None


def _table(rows: Iterator[tuple[int, list[str]]], divide: str, path: Path, skip: bool) -> Table:
    opening = list(islice(rows, ROWS_AT_ONCE))
    if not opening:
        raise ValueError(f"{str(path)!r} is empty.")
    head = [cell.strip() for cell in opening[0][1]]
    head[0] = head[0].removeprefix("#").strip()
    comma = divide == ";" and _has_decimal_commas(opening[1:])
    named = any(_number(cell, comma) is None for cell in head) or (len(opening) > 1 and head[0] == "" and len(head) > 1)
    names = head if named else [str(k) for k in range(len(head))]
    counts_rows = named and names[0] in ("", "Unnamed: 0")
    names = [name or f"column {k}" for k, name in enumerate(names)]
    _check_names(names, str(path))
    parts: list[list[np.ndarray]] = [[] for _ in names]
    lines: list[int] = []
    unread: dict[str, tuple[int, str]] = {}
    text: set[int] | None = None
    rest = chain(opening[1:] if named else opening, rows)
    while chunk := list(islice(rest, ROWS_AT_ONCE)):
        kept = _of_width(chunk, len(names), path, skip)
        if text is None:
            text = {k for k in range(len(names)) if _is_text_column([row[k] for _, row in kept], comma)}
        for k, name in enumerate(names):
            cells = [row[k] for _, row in kept]
            parts[k].append(np.array([c.strip() for c in cells], dtype=object) if k in text else _floats(cells, comma))
            if k not in text and name not in unread:
                bad = next((i for i in np.flatnonzero(np.isnan(parts[k][-1])).tolist()), None)
                if bad is not None:
                    unread[name] = (len(lines) + bad, cells[bad])
        lines += [line for line, _ in kept]
    if not lines:
        raise ValueError(f"{str(path)!r} has names of columns and no rows.")
    columns = {name: np.concatenate(part) for name, part in zip(names, parts)}
    index = columns[names[0]]
    if counts_rows and len(columns) > 1 and index.dtype.kind == "f" and np.ptp(index - np.arange(len(index))) == 0:
        del columns[names[0]]
    return Table(columns, lambda row: f"line {lines[row]}", unread)


def _of_width(chunk: list[tuple[int, list[str]]], width: int, path: Path, skip: bool) -> list[tuple[int, list[str]]]:
    wrong = [(line, row) for line, row in chunk if len(row) != width]
    if not wrong:
        return chunk
    line, row = wrong[0]
    said = f"{str(path)!r}, line {line}: {len(row)} cells, where the first line has {width}."
    if not skip:
        raise ValueError(f"{said} Mend it, or leave such lines out with --config.data.on_error=skip.")
    warnings.warn(f"{said} {len(wrong)} such lines are left out.", stacklevel=6)
    return [(line, row) for line, row in chunk if len(row) == width]


def _is_text_column(cells: Sequence[str], comma: bool) -> bool:
    """Whether no cell that is not missing is a number."""
    found = [_number(cell, comma) for cell in cells]
    real = [value for value in found if value is None or value == value]
    return bool(real) and all(value is None for value in real)


def _has_decimal_commas(rows: Sequence[tuple[int, list[str]]]) -> bool:
    cells = [cell for _, row in rows for cell in row]
    return any("," in c and _number(c, True) is not None for c in cells) and not any(
        "." in c and _number(c, False) is not None for c in cells
    )


def _floats(cells: Sequence[str], comma: bool) -> np.ndarray:
    try:
        return np.array([c.replace(",", ".") for c in cells] if comma else cells).astype(np.float64)
    except ValueError:  # some are missing, or are no numbers
        found = [_number(cell, comma) for cell in cells]
        return np.array([np.nan if value is None else value for value in found])


def read_parquet(path: Path) -> Table:
    """A table of Apache Parquet, by pyarrow."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"Reading {str(path)!r} needs pyarrow: pip install 'sde_score[parquet]', or save the table as .csv."
        ) from error
    table = as_table(pyarrow.parquet.read_table(path), str(path))
    assert table is not None  # what pyarrow reads is a table
    return table


READERS: Mapping[str, str | None] = {".csv": None, ".tsv": "\t", ".parquet": None, ".pq": None}


@DATASETS.register("table")
def table(
    path: str | os.PathLike,
    columns: Sequence[str | int] = (),
    label: str | bool = True,
    holdout: float = 0.1,
    on_error: str = "raise",
    memory_gb: float = 8.0,
) -> DataSplits:
    """Your own table: a .csv, .tsv or .parquet file, a row for each sample; its numbers are kept in float64.

    Args:
        path: the file; see `read_text`.
        columns: those that are kept, by name or by number from 0; default: all.
        label: the column of labels, text or whole numbers; True looks for one called label, class, target or y; False:
            there is none.
        holdout: fraction of the rows kept for testing; see `hold_out`.
        on_error: `"skip"` leaves out rows that lack a value, and says how many.
        memory_gb: larger files are refused.

    Raises `ValueError` for text among the numbers and for missing values, with line and column.
    """
    where = Path(path).expanduser()
    if not where.is_file():
        raise FileNotFoundError(f"There is no table at {str(path)!r} (looked for {where.absolute()}). Check the path.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` is 'raise' or 'skip'; got {on_error!r}.")
    gib = where.stat().st_size / 2**30
    if gib > memory_gb:
        raise ValueError(
            f"{str(path)!r} has {gib:.3g} GiB; at most memory_gb={memory_gb:g} are read. Save its numbers as .npy, "
            f"which is read batch by batch, or raise it with --config.data.memory_gb={gib + 0.1:.1f}."
        )
    skip, suffix = on_error == "skip", where.suffix.lower()
    found = read_parquet(where) if suffix in (".parquet", ".pq") else read_text(where, READERS.get(suffix), skip=skip)
    if isinstance(label, str) and label not in found.names:
        raise ValueError(f"{str(path)!r} has no column {label!r}.{suggest(label, found.names)}")
    names = found.names
    if columns:
        names = tuple(names[k] for k in select_columns(_as_numbers(columns, names), names, len(names), str(path)))
    labels = label if isinstance(label, str) else found.find_label() if label and not columns else None
    if label is True and labels is None and columns:  # a column that was asked for is data
        rest = Table({name: v for name, v in found.columns.items() if name not in names})
        labels = rest.find_label()
    names = tuple(name for name in names if name != labels)
    found.numbers(names)  # text is said before what is missing
    whole = found.whole_rows([*names, *([labels] if labels else [])], skip=skip, what=str(path))
    return from_arrays(
        found.numbers(names)[whole],
        found.columns[labels][whole] if labels else None,
        columns=names,
        holdout=holdout,
        name=where.stem,
    )


def _as_numbers(columns: Sequence[str | int], names: Sequence[str]) -> list[str | int]:
    """Numbers written as text stay names where there are such names."""
    return [int(c) if isinstance(c, str) and c not in names and c.isdigit() else c for c in columns]
