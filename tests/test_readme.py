"""What the README shows, works: its Python runs, its flags exist, its specs build, its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)
COMMANDS = [
    line
    for block in re.findall(r"```\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if "sde-score" in line
]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number, tmp_path, monkeypatch):
    code = PYTHON[number]
    if "checkpoint_24.pth" in code:
        pytest.skip("needs a file that users bring; loading is tested in tests/models")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"README block {number}", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("line", COMMANDS, ids=range(len(COMMANDS)))
def test_commands(line):
    import shlex

    from sde_score.cli import COMMANDS as known
    from sde_score.config import default_config, load_config
    from sde_score.run.components import REGISTRIES

    words = shlex.split(line, comments=True)
    assert words[words.index("sde-score") + 1] in known
    for word in words:
        if not word.startswith("--config"):
            continue
        key, _, value = word.partition("=")
        if key == "--config":
            load_config(value)
            continue
        section = default_config()
        for part in key.removeprefix("--config.").split("."):
            assert part in section, word
            section = section[part]
        registry = REGISTRIES.get({"corrector": "correctors", "predictor": "predictors", "trace": "traces"}.get(part))
        if registry is not None:
            registry.get(value.partition("(")[0])


def test_tables_name_what_there_is():
    from sde_score.run.components import REGISTRIES

    for kind, word in (
        ("predictors", "predictors"),
        ("correctors", "correctors"),
        ("SDEs", "sdes"),
        ("networks", "models"),
    ):
        row = next(line for line in README.splitlines() if line.startswith(f"| {kind} |"))
        assert set(REGISTRIES[word].names()) <= set(re.findall(r"`([a-z0-9_]+)`", row)) | {"damped"}, kind


def test_links():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_two_commands():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "test"):
        assert f"make {target}" in README and re.search(rf"^{target}:", makefile, flags=re.M)
