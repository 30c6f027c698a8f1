"""What a type checker sees of the public interface: `mypy --strict` on a script that uses every verb."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "outside/every_verb.py"
ROOT = Path(__file__).parent.parent
TYPES = """
import sde_score
from sde_score.sampling import CORRECTORS, PREDICTORS, SAMPLERS
from sde_score.sdes import SDES
from sde_score.solvers import SOLVERS

reveal_type(SDES.build("vp"))
reveal_type(PREDICTORS.build("none"))
reveal_type(CORRECTORS.build("none"))
reveal_type(SAMPLERS.build("pc"))
reveal_type(SOLVERS.build("rk4"))
reveal_type(sde_score.load("runs/digits"))
reveal_type(sde_score.train("digits"))
reveal_type(sde_score.load("runs/digits").sample(3).x)
sde_score.load("runs/digits").sample(3, steps="many")
"""


def mypy(*files: Path) -> subprocess.CompletedProcess:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir=/dev/null", *files]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=600)


@pytest.mark.slow
def test_a_type_checker_sees_the_types(tmp_path):
    asked = tmp_path / "asked.py"
    asked.write_text(TYPES)
    found = mypy(SCRIPT, asked)
    revealed = [line.split('"')[1].rpartition(".")[2] for line in found.stdout.splitlines() if "Revealed type" in line]
    assert revealed == ["SDE", "Predictor", "Corrector", "Sampler", "Solver", "Run", "Run", "Tensor"], found.stdout
    errors = [line for line in found.stdout.splitlines() if " error: " in line]
    assert len(errors) == 1 and "asked.py:15" in errors[0] and "steps" in errors[0], found.stdout


def test_every_verb_works(tmp_path):
    spec = importlib.util.spec_from_file_location("every_verb", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(tmp_path)
    assert found["steps"] == 5 and found["num"] == 16 and found[".png"] > 500
    assert all(math.isfinite(value) for value in found.values())
