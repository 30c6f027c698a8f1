"""How many small faults do the tests notice? Mutation testing with cosmic-ray's operators on a random sample.

    make mutants                                        # 25 mutants in each room: hours
    make mutants MUTANTS="--room=sdes --num=50"
    make mutants MUTANTS="--again=runs/mutants.json"        # the survivors of an earlier run once more, after new tests

A mutant is the library with one operator, number, comparison, condition, loop, decorator or caught exception changed.
It runs against the tests of its own room only, in a copy of the tree, until the first test fails; one that no test
notices survives. The sample is uniform over the places that can be changed, with one change drawn at each: a plain
draw over changes would mostly replace arithmetic operators. Changes that say nothing about the tests are not drawn:
in annotations, texts (f-strings, errors, warnings, `__repr__`), `__all__` and `if TYPE_CHECKING`; decorators that only
cache or forbid; arithmetic in place of set operations and the reverse, identity in place of order; what is not Python.

The unchanged room runs first: it must pass, it says how long each test takes (quick ones first, those of the file named
after the module before others) and which modules to have imported before a mutant's process is forked.

Exit status 1 when fewer than `--at-least` percent are killed in a room.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a forked process must not inherit a pool of threads

import pytest  # noqa: E402
from cosmic_ray.ast import ast_nodes, get_ast  # noqa: E402
from cosmic_ray.mutating import mutate_code  # noqa: E402
from cosmic_ray.plugins import get_operator, operator_names  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {  # what is changed, and the tests that should notice
    "sdes": ("sde_score/sdes", "tests/sdes"),
    "solvers": ("sde_score/solvers", "tests/solvers"),
    "sampling": ("sde_score/sampling", "tests/sampling"),
    "likelihood": ("sde_score/likelihood.py", "tests/test_likelihood.py"),
    "objectives": ("sde_score/objectives", "tests/objectives"),
    "metrics": ("sde_score/metrics", "tests/metrics"),
    "data": ("sde_score/data", "tests/data"),
    "training": ("sde_score/training", "tests/training"),
}
LEFT_OUT = ("test_kill", "test_distributed")  # files of tests that start and end processes
SPEAKING = {"__repr__", "__str__"}
KINDS = [{"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}, {"BitOr", "BitAnd", "BitXor"}, {"LShift", "RShift"},
         {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"}, {"Is", "IsNot"}]  # fmt: skip
QUICK = 0.5  # seconds: tests that take no longer keep the order of their files
NO_TESTS = f"pytest exit {int(pytest.ExitCode.USAGE_ERROR)}"
TIMEOUT = 5  # times what the unchanged room takes, and a minute


@dataclass
class Mutant:
    """One change, and what became of it."""

    room: str
    module: str
    line: int
    operator: str
    occurrence: int
    before: str
    after: str
    killed_by: str = ""
    seconds: float = 0.0


# --- what can be changed ----------------------------------------------------------------------------------------------


def says_nothing(node) -> bool:
    """Whether a node of the syntax tree lies where a change tells nothing about the tests."""
    while (parent := node.parent) is not None:
        kind, children = parent.type, parent.children
        if kind in ("fstring", "raise_stmt"):
            return True
        if kind == "tfpdef" or kind == "annassign" and node is children[1]:
            return True
        if kind == "funcdef" and (node is parent.annotation or parent.name.value in SPEAKING):
            return True
        if kind == "if_stmt" and children[1].get_code().strip() == "TYPE_CHECKING":
            return True
        if kind == "expr_stmt" and children[0].get_code().strip() == "__all__":
            return True
        if kind in ("power", "atom_expr") and parent.get_code().lstrip().startswith("warnings.warn("):
            return True
        node = parent
    return False


def in_kind(operator: str) -> bool:
    """Whether an operator is replaced by one of its own kind."""
    name = operator.rpartition("/")[2]
    if not name.startswith(("ReplaceBinaryOperator", "ReplaceComparisonOperator")):
        return True
    _, old, new = name.split("_")
    return any({old, new} <= kind for kind in KINDS)


def changes(source: str) -> Iterator[tuple[tuple, str, int]]:
    """Every `(place, operator, occurrence)` in a module."""
    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(operator_names()):
        operator = get_operator(name)
        if operator.arguments() or not in_kind(name):
            continue
        occurrence = -1
        for node in nodes:
            for place in operator().mutation_positions(node):
                occurrence += 1
                only = name.endswith("RemoveDecorator") and any(w in node.get_code() for w in ("cache", "abstract"))
                if not only and not says_nothing(node):
                    yield place, name, occurrence


def draw(room: str, num: int, seed: int) -> list[Mutant]:
    """`num` mutants of a room, each at a place of its own."""
    rng = random.Random(f"{seed} {room}")
    path = ROOT / ROOMS[room][0]
    sources = {p: p.read_text() for p in (sorted(path.rglob("*.py")) if path.is_dir() else [path])}
    places = defaultdict(list)
    for file, source in sources.items():
        for place, operator, occurrence in changes(source):
            places[file, place].append((operator, occurrence))
    drawn = []
    for file, place in rng.sample(sorted(places), len(places)):
        operator, occurrence = rng.choice(places[file, place])
        mutant = Mutant(room, str(file.relative_to(ROOT)), place[0][0], operator, occurrence, "", "")
        changed = mutated(mutant)
        try:
            compile(changed, file.name, "exec")
        except SyntaxError:
            continue
        lines = zip(sources[file].splitlines(), changed.splitlines())
        mutant.before, mutant.after = next(((a.strip(), b.strip()) for a, b in lines if a != b), ("", ""))
        drawn.append(mutant)
        if len(drawn) == num:
            break
    return drawn


def mutated(mutant: Mutant) -> str:
    return mutate_code((ROOT / mutant.module).read_text(), get_operator(mutant.operator)(), mutant.occurrence)


# --- running the tests ------------------------------------------------------------------------------------------------


class Recorder:
    """A pytest plugin: runs the slow tests last, and keeps what happens."""

    def __init__(self, known: dict[str, float], longest: float) -> None:
        self.known, self.longest, self.durations, self.failed = known, longest, defaultdict(float), ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        took = {item: max(QUICK, self.known.get(item.nodeid, 0.0)) for item in items}
        items[:] = sorted((item for item in items if took[item] <= self.longest), key=took.get)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} (import)"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.durations[report.nodeid] += report.duration
        if report.failed:
            self.failed = self.failed or report.nodeid


class Copy:
    """A copy of the tree in a temporary folder, with `shared` beside it as beside the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tree = folder, folder / "tree"
        files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, text=True,
                               capture_output=True).stdout.splitlines()  # fmt: skip
        for name in filter(lambda name: (ROOT / name).is_file(), files):
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.tree / name)
        if (ROOT.parent / "shared").is_dir():
            (folder / "shared").symlink_to(ROOT.parent / "shared")

    def write(self, module: str, source: str) -> None:
        (self.tree / module).write_text(source)
        Path(importlib.util.cache_from_source(str(self.tree / module))).unlink(missing_ok=True)

    def test(self, files: list[str], recorder: Recorder, timeout: float | None) -> dict:
        """Run test files in a forked process, until the first fails: `failed` (empty: none), `durations`, `modules`."""
        answer = self.folder / "answer.json"
        answer.unlink(missing_ok=True)
        pid = os.fork()
        if not pid:
            self._child(files, recorder, answer)
        end = None if timeout is None else time.monotonic() + timeout
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if end is not None and time.monotonic() > end:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return {"failed": "timeout"}
            time.sleep(0.05)
        try:
            os.killpg(pid, signal.SIGKILL)  # what its tests left running
        except ProcessLookupError:
            pass
        return json.loads(answer.read_text()) if answer.is_file() else {"failed": "crash"}

    def _child(self, files: list[str], recorder: Recorder, answer: Path) -> None:
        try:
            os.setsid()
            os.chdir(self.tree)
            sys.path.insert(0, str(self.tree))
            os.environ["PYTHONPATH"] = str(self.tree)
            with open(self.folder / "output.txt", "w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files], [recorder])
                modules = [m for m in sys.modules if m.split(".")[0] not in ("sde_score", "tests", "__main__")]
                failed = recorder.failed or ("" if status == 0 else f"pytest exit {int(status)}")
                answer.write_text(json.dumps({"failed": failed, "durations": recorder.durations, "modules": modules}))
        finally:
            os._exit(0)


def preload(modules: list[str]) -> None:
    """Import what the unchanged room imported, so that a forked process has it."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:  # a name that only looks like a module
            pass


def in_order(room: str, module: str, tree: Path, durations: dict[str, float]) -> list[str]:
    """The test files of a room: first those named after the module, then the quick ones."""
    path = tree / ROOMS[room][1]
    files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
    totals = defaultdict(float)
    for test, seconds in durations.items():
        totals[test.partition("::")[0]] += seconds
    names = [str(f.relative_to(tree)) for f in files if not f.name.startswith(LEFT_OUT)]
    stem = Path(module).stem
    return sorted(names, key=lambda name: (stem not in Path(name).stem, totals[name]))


def run_room(room: str, mutants: list[Mutant], copy: Copy, longest: float) -> Iterator[Mutant]:
    """The mutants of a room, one by one, with what became of them."""
    began = time.monotonic()
    first = copy.test(in_order(room, "", copy.tree, {}), Recorder({}, math.inf), None)
    if first["failed"]:
        output = (copy.folder / "output.txt").read_text()
        sys.exit(f"The tests of {room} fail without any change, at {first['failed']}:\n{output}")
    whole = time.monotonic() - began
    print(f"{room}: {len(first['durations'])} tests, {whole:.0f} s; {len(mutants)} mutants", flush=True)
    preload(first["modules"])
    for mutant in mutants:
        original = (ROOT / mutant.module).read_text()
        began = time.monotonic()
        copy.write(mutant.module, mutated(mutant))
        files = in_order(room, mutant.module, copy.tree, first["durations"])
        mutant.killed_by = copy.test(files, Recorder(first["durations"], longest), TIMEOUT * whole + 60)["failed"]
        if mutant.killed_by == NO_TESTS:
            sys.exit(f"The tests of {room} have gone:\n{(copy.folder / 'output.txt').read_text()}")
        mutant.seconds = round(time.monotonic() - began, 1)
        copy.write(mutant.module, original)
        yield mutant


# --- the command ------------------------------------------------------------------------------------------------------


def table(mutants: list[Mutant]) -> dict[str, float]:
    """Print the counts of each room; the percentages killed."""
    percent = {}
    print(f"\n{'room':12} {'mutants':>7} {'killed':>7} {'survived':>8} {'percent':>7}")
    for room in dict.fromkeys(m.room for m in mutants):
        here = [m for m in mutants if m.room == room]
        killed = sum(bool(m.killed_by) for m in here)
        percent[room] = 100 * killed / len(here)
        print(f"{room:12} {len(here):7} {killed:7} {len(here) - killed:8} {percent[room]:7.1f}")
    return percent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", action="append", choices=ROOMS, help="one or more; all unless named")
    parser.add_argument("--num", type=int, default=25, help="mutants in each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, metavar="FILE", help="run the survivors in FILE again")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants.json", help="where results are written")
    parser.add_argument("--longest", type=float, default=math.inf, metavar="SECONDS",
                        help="leave out tests that take longer: what is killed is then a lower bound")  # fmt: skip
    parser.add_argument("--at-least", type=float, default=90.0, metavar="PERCENT")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rooms, done = args.room or list(ROOMS), []
    if args.again:
        known = [Mutant(**m) for m in json.loads(args.again.read_text())["mutants"]]
        done = [m for m in known if m.killed_by or m.room not in rooms]
        drawn = {room: [m for m in known if m.room == room and not m.killed_by] for room in rooms}
    else:
        drawn = {room: draw(room, args.num, args.seed) for room in rooms}
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        for room, mutants in drawn.items():
            for mutant in run_room(room, mutants, copy, args.longest) if mutants else ():
                what = f"killed by {mutant.killed_by}" if mutant.killed_by else "SURVIVED"
                print(f"{mutant.module}:{mutant.line}  {mutant.before}  ->  {mutant.after}\n"
                      f"    {what}, {mutant.seconds} s", flush=True)  # fmt: skip
                done.append(mutant)
                args.out.write_text(json.dumps({"seed": args.seed, "mutants": [asdict(m) for m in done]}, indent=1))
    return int(min(table(done).values()) < args.at_least)


if __name__ == "__main__":
    sys.exit(main())
