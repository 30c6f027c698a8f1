"""Messages are written whole: no f-string without a placeholder, nor a piece of one."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(p for folder in ("sde_score", "tools", "configs", "tests") for p in (ROOT / folder).rglob("*.py"))


def pieces(path):
    """The string pieces of a file, as (line, text); an f-string's from Python 3.12 on come in several tokens."""
    start, text = None, ""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "STRING" and start is None:
            yield token.start[0], token.string
        elif kind == "FSTRING_START" and start is None:
            start, text = token.start[0], token.string
        elif start is not None:
            text += token.string
            if kind == "FSTRING_END":
                yield start, text
                start = None


@pytest.mark.parametrize("folder", ["sde_score", "tools", "configs", "tests"])
def test_no_piece_of_an_f_string_is_without_a_placeholder(folder):
    wrong = []
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == folder:
            for line, text in pieces(path):
                prefix = re.match(r"[a-zA-Z]*", text).group().lower()
                if "f" in prefix and "{" not in text.replace("{{", ""):
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: {text}")
    assert not wrong, "\n".join(wrong)
