"""Who may import whom: each row of the table imports only rows below it, as in CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    {"__main__"},
    {"cli"},
    {"run"},
    {"training", "data", "metrics", "visual"},
    {"sampling", "likelihood", "guidance", "objectives", "models"},
    {"score"},
    {"sdes", "solvers"},
    {"tensors"},
    {"registry", "protocols", "files"},
]
LEVEL = {room: len(ROWS) - i for i, row in enumerate(ROWS) for room in row}
# no torch at import, no algorithms: anyone above the bottom row may read them
FACTS = {"config", "keys", "words", "_torchvision", "published", "__init__"}
HEAVY = {"scipy", "torchsde", "matplotlib", "torchvision", "tensorboard", "PIL", "torchmetrics", "safetensors", "tqdm"}
HEAVY |= {"torch_fidelity", "prdc", "sklearn"}
FILES = sorted((ROOT / "sde_score").rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "sde_score").parts
    return parts[0].removesuffix(".py")


def imports(path: Path, *, top_level: bool = False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rows(path):
    here = room(path)
    assert not [n for n in imports(path) if n.startswith(".")], f"{path.name}: a relative import hides its row"
    if here in FACTS:
        return
    for name in imports(path):
        if not name.startswith("sde_score."):
            continue
        there = name.split(".")[1]
        if here == "cli" and name == "sde_score.testing.command":  # the command `check`
            continue
        assert there != "testing" or here == "testing", f"{path.name} imports sde_score.testing"
        if there in FACTS or there == here or there == "configs" and here in ("cli", "run"):
            continue
        if here == "testing":
            assert LEVEL[there] <= LEVEL["sdes"], f"testing imports {there}"
            continue
        assert LEVEL[there] < LEVEL[here], f"{path.relative_to(ROOT)} imports {name}"
    if here in ("sampling", "likelihood", "guidance"):
        assert not any(n.startswith("sde_score.models") for n in imports(path))
    if here == "training":
        assert not any(n.startswith("sde_score.sampling") for n in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_are_imported_where_they_are_needed(path):
    assert not {n.split(".")[0] for n in imports(path, top_level=True)} & HEAVY


def test_only_run_and_the_command_line_know_configurations():
    for path in FILES:
        if room(path) not in ("run", "cli", "config", "published"):
            assert not any("ml_collections" in n for n in imports(path)), path


@pytest.mark.parametrize("name", ["sde_score.cli", "sde_score.config", "sde_score"])
def test_help_needs_no_torch(name):
    import subprocess
    import sys

    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
