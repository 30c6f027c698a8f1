"""The command line: `sde-score COMMAND [flags]`, absl flags and sub-commands. `--help` imports no torch."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

TOP = """usage: sde-score COMMAND [flags]

  train       train a score model, or go on where it stopped
  sample      draw samples from a run
  likelihood  log-likelihoods and bits/dim by the probability-flow ODE
  evaluate    compare samples with the test data
  report      write report.html anew
  list        registered components: SDEs, predictors, correctors, solvers, models, data sets ...
  import      an official .pth checkpoint becomes a run
  export      a run becomes an official .pth checkpoint
  quickstart  all of it on the 8x8 digits, in a few minutes

sde-score COMMAND --help shows the flags of a command.
"""


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
    config = None
    if named:
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


def _check_key(config: ConfigDict, path: str) -> None:
    from sde_score.registry import suggest

    section = config
    for depth, key in enumerate(path.split(".")):
        if not isinstance(section, ConfigDict) or key not in section:
            parent = ".".join(["config", *path.split(".")[:depth]])
            keys = section.keys() if isinstance(section, ConfigDict) else ()
            raise UsageError(f"there is no key {parent}.{key}.{suggest(key, keys)}")
        section = section[key]


def _parse(
    name: str, argv: list[str], define: Callable[[flags.FlagValues], None], *, config: bool = True
) -> flags.FlagValues:
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
                "\n  --config=NAME_OR_FILE[:ARGUMENT]   the configuration, e.g. digits:ve; read from --workdir once "
                "the run exists"
            )
            print(
                "  --config.SECTION.KEY=VALUE         any key of it, e.g. "
                "--config.sampling.predictor=ancestral_sampling"
            )
        raise SystemExit(0)
    chosen = None
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
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    return values


def _chosen_config(values: flags.FlagValues) -> ConfigDict | None:
    """The configuration after all flags, or None if the line names none and no run is there."""
    if "config" not in values or values.config is None:
        return None
    config = values.config
    given = [str(Path(p).resolve()) if p.endswith(".py") else p for p in values.plugin]
    names = {Path(p).name for p in given}  # a plug-in that has moved takes the place of its former self
    config.plugins = (*(p for p in config.plugins if Path(p).name not in names), *given)
    return config


def _need_run(values: flags.FlagValues):
    from sde_score.run import load

    if values.workdir is None:
        raise UsageError("--workdir=DIR is missing: the directory of a trained run")
    return load(values.workdir, _chosen_config(values), checkpoint=values.checkpoint, ema=values.ema)


def _run_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "the run directory", flag_values=values)
    flags.DEFINE_string("checkpoint", None, "a checkpoint file; default: the newest of the run", flag_values=values)
    flags.DEFINE_bool("ema", True, "use the averaged weights", flag_values=values)


def _finish(values: flags.FlagValues, result: dict, lines: list[str]) -> None:
    if values.json:
        from sde_score.run.run import plain

        print(json.dumps(plain(result)))
    else:
        print("\n".join(lines))


def train(argv: list[str]) -> None:
    """Train a score model, or go on where it stopped: the same command again resumes a run."""

    def define(values):
        flags.DEFINE_string("workdir", None, "the run directory", flag_values=values)
        flags.DEFINE_bool("overwrite", False, "delete the run that is there and begin anew", flag_values=values)

    values = _parse("train", argv, define)
    if values.workdir is None:
        raise UsageError("--workdir=DIR is missing: where the run is kept")
    config = _chosen_config(values)
    if config is None:
        raise UsageError("--config is missing, e.g. --config=digits or --config=my_config.py")
    from sde_score.run import train as run_train
    from sde_score.run.report import write_run_report
    from sde_score.training import distributed

    run, result = run_train(config, values.workdir, overwrite=values.overwrite)
    if not distributed.launched_as_main():
        return
    report = write_run_report(run)
    lines = [
        f"{result.status} at step {result.step} after {result.seconds:.0f} s; {result.skipped} steps skipped",
        f"report: {report}",
    ]
    _finish(
        values,
        {
            "status": result.status,
            "step": result.step,
            "seconds": result.seconds,
            "workdir": str(run.workdir),
            "report": str(report),
        },
        lines,
    )
    if result.status == "interrupted":
        raise KeyboardInterrupt


def sample(argv: list[str]) -> None:
    """Draw samples from a run: a picture, the numbers (.npz), and how they were drawn (.json)."""

    def define(values):
        _run_flags(values)
        flags.DEFINE_integer("num", 64, "how many", flag_values=values)
        flags.DEFINE_integer("seed", 0, "sample i depends on (seed, i) only", flag_values=values)
        flags.DEFINE_list("labels", [], "classes of a class-conditional model", flag_values=values)
        flags.DEFINE_string("tag", None, "name of the files; default: the method", flag_values=values)
        flags.DEFINE_bool("trajectory", True, "a strip and an animation from noise to data", flag_values=values)

    values = _parse("sample", argv, define)
    try:
        labels = [int(v) for v in values.labels]
    except ValueError as error:
        raise UsageError(f"--labels are class numbers, such as --labels=0,1; got {','.join(values.labels)}") from error
    run = _need_run(values)
    from sde_score.run.report import write_run_report
    from sde_score.run.sample import sample as run_sample
    from sde_score.run.sample import sampler_tag, save_samples
    from sde_score.training import distributed

    with distributed.processes(run.config.device):
        samples = run_sample(
            run,
            values.num,
            seed=values.seed,
            labels=labels or None,
            progress=not values.json,
            trajectory=values.trajectory,
        )
        main = distributed.is_main()
    if not main:
        return
    files = save_samples(samples, run, values.tag or sampler_tag(run))
    files["report"] = str(write_run_report(run, redraw=False))
    facts = samples.facts
    lines = [
        f"{facts['num']} samples, {facts['nfe']} score evaluations each, {facts['seconds']} s",
        *(f"{k}: {v}" for k, v in files.items()),
    ]
    _finish(values, facts | {"files": files}, lines)


def likelihood(argv: list[str]) -> None:
    """Log-likelihoods of held-out data by the probability-flow ODE: bits/dim for images, nats for continuous data."""

    def define(values):
        _run_flags(values)
        flags.DEFINE_enum("split", "test", ["test", "train"], "which data", flag_values=values)
        flags.DEFINE_integer("num", None, "the first so many samples only", flag_values=values)
        flags.DEFINE_integer("repeats", 1, "passes with fresh dequantisation", flag_values=values)
        flags.DEFINE_integer("seed", 0, "of dequantisation and probes", flag_values=values)

    values = _parse("likelihood", argv, define)
    run = _need_run(values)
    from sde_score.run.evaluate import likelihood as run_likelihood
    from sde_score.run.report import write_run_report
    from sde_score.training import distributed

    with distributed.processes(run.config.device):
        found = run_likelihood(
            run, values.split, num=values.num, repeats=values.repeats, seed=values.seed, progress=not values.json
        )
        main = distributed.is_main()
    if not main:
        return
    report = write_run_report(run, redraw=False)
    _finish(values, found, [*likelihood_lines(found), f"report: {report}"])


def likelihood_lines(found: dict) -> list[str]:
    """A likelihood in words."""
    lines = [
        f"{found['split']}: {found['num']} samples, {found['nfe']:.0f} score evaluations each, {found['seconds']} s"
    ]
    if "bits_per_dim" in found:
        bpd = found["bits_per_dim"]
        lines.append(
            f"bits/dim  {bpd['mean']:.4f} ± {bpd['stderr']:.4f}   (uniform dequantisation of {bpd['levels']} levels)"
        )
        lines += [f"  {name:<28} {b['mean']:.3f}" for name, b in found.get("baselines", {}).items()]
    else:
        lines.append(f"log p  {found['nats']['mean']:.4f} ± {found['nats']['stderr']:.4f} nats per sample")
        if "truth" in found:
            lines.append(f"  the true law {found['truth']['mean']:.4f} ± {found['truth']['stderr']:.4f}")
    return lines


def evaluate(argv: list[str]) -> None:
    """Compare samples with the test data in a feature space, and show the loss by noise level."""

    def define(values):
        _run_flags(values)
        flags.DEFINE_integer("seed", 0, "of the samples", flag_values=values)

    values = _parse("evaluate", argv, define)
    run = _need_run(values)
    from sde_score.run.evaluate import evaluate as run_evaluate
    from sde_score.run.report import write_run_report
    from sde_score.training import distributed

    with distributed.processes(run.config.device):
        found = run_evaluate(run, seed=values.seed, progress=not values.json)
        main = distributed.is_main()
    if not main:
        return
    report = write_run_report(run, redraw=False)
    _finish(values, found, [*evaluation_lines(found), f"report: {report}"])


def evaluation_lines(found: dict) -> list[str]:
    """An evaluation in words."""
    lines = [f"{found['num']} samples, features: {found['features']}; beside each figure that of the training data"]
    for mine, reference in zip(found["metrics"]["model"], found["metrics"]["training data"]):
        shown = [f"{m['value']:.4g}" if m.get("value") is not None else str(m.get("error")) for m in (mine, reference)]
        lines.append(f"  {mine['name']:<24} {shown[0]:>12} {shown[1]:>12}")
    return lines


def report(argv: list[str]) -> None:
    """Write report.html of a run anew."""
    values = _parse("report", argv, _run_flags)
    run = _need_run(values)
    from sde_score.run.report import write_run_report

    path = str(write_run_report(run))
    _finish(values, {"report": path}, [path])


def import_checkpoint(argv: list[str]) -> None:
    """Turn a checkpoint of the original PyTorch release (.pth) into a run directory."""

    def define(values):
        flags.DEFINE_string("checkpoint", None, "the .pth file; nothing in it is executed", flag_values=values)
        flags.DEFINE_string(
            "published",
            None,
            "its configuration, e.g. ve/cifar10_ncsnpp_continuous, where its tensors do not tell",
            flag_values=values,
        )
        flags.DEFINE_string("workdir", None, "the run directory to make", flag_values=values)

    values = _parse("import", argv, define, config=False)
    if values.checkpoint is None or values.workdir is None:
        raise UsageError("write --checkpoint=FILE.pth --workdir=DIR")
    from sde_score.run.import_official import import_official

    run = import_official(values.checkpoint, values.workdir, values.published)
    _finish(
        values,
        {"workdir": values.workdir, "step": run.step},
        [f"{values.workdir}: step {run.step}; try: sde-score sample --workdir={values.workdir}"],
    )


def export_checkpoint(argv: list[str]) -> None:
    """Write a run with a published network as a checkpoint under the original names."""

    def define(values):
        flags.DEFINE_string("workdir", None, "the run directory", flag_values=values)
        flags.DEFINE_string("to", None, "the .pth file to write", flag_values=values)

    values = _parse("export", argv, define, config=False)
    if values.to is None or values.workdir is None:
        raise UsageError("write --workdir=DIR --to=FILE.pth")
    from sde_score.run.import_official import export_official

    export_official(values.workdir, values.to)
    _finish(values, {"file": values.to}, [values.to])


def list_components(argv: list[str]) -> None:
    """List registered components with their arguments and first line of documentation: sde-score list [KIND]."""
    kinds = [a for a in argv if not a.startswith("-")]
    values = _parse("list", [a for a in argv if a.startswith("-")], lambda values: None, config=False)
    from sde_score.run.build import import_plugins
    from sde_score.run.components import components

    import_plugins(tuple(values.plugin))
    found = components()
    from sde_score.registry import suggest

    for kind in kinds:
        if kind not in found:
            raise UsageError(f"there is no kind of component {kind!r}.{suggest(kind, found)}")
    chosen = {k: v for k, v in found.items() if not kinds or k in kinds}
    lines = []
    for kind, rows in chosen.items():
        lines.append(f"{kind}")
        for row in rows:
            origin = "" if row["origin"].startswith("sde_score.") else f"  [{row['origin']}]"
            lines += [f"  {row['name']}{row['signature']}{origin}", f"      {row['doc']}"]
    _finish(values, chosen, lines)


@contextlib.contextmanager
def _few_threads():
    """One thread, unless OMP_NUM_THREADS says otherwise: on 8x8 images waking a second one costs more than it does."""
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quickstart(argv: list[str]) -> None:
    """Train on the 8x8 digits, sample with predictor-corrector and with the ODE, compute bits/dim, evaluate, and write
    the report.
    """

    def define(values):
        flags.DEFINE_string("workdir", "runs/quickstart", "the run directory", flag_values=values)

    values = _parse("quickstart", argv, define, config=False)
    base = [f"--workdir={values.workdir}"]
    # with --json the words of the parts go to stderr, and only the result to stdout
    with contextlib.redirect_stdout(sys.stderr) if values.json else contextlib.nullcontext(), _few_threads():
        train(["--config=digits", *base])
        sample([*base, "--num=100", "--tag=pc"])
        sample([*base, "--num=100", "--tag=ode", "--config.sampling.method=ode"])
        likelihood(base)
        evaluate(base)
    folder = Path(values.workdir)
    pictures = [
        str(p)
        for pattern in ("samples/p*.png", "samples/ode*.png", "plots/*.png")
        for p in sorted(folder.glob(pattern))
    ]
    found = {
        name: json.loads((folder / file).read_text())
        for name, file in (("likelihood", "likelihood/test.json"), ("evaluation", "eval/metrics.json"))
    }
    result = {"workdir": str(folder), "pictures": pictures, "report": str(folder / "report.html")} | found
    _finish(values, result, ["", "pictures:", *(f"  {p}" for p in pictures), "report:", f"  {folder / 'report.html'}"])


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "sample": sample,
    "likelihood": likelihood,
    "evaluate": evaluate,
    "report": report,
    "list": list_components,
    "import": import_checkpoint,
    "export": export_checkpoint,
    "quickstart": quickstart,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0 when done, 1 when it failed, 2 when the line could not be read."""
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
    command = COMMANDS.get(argv[0])
    if command is None:
        from sde_score.registry import suggest

        print(f"sde-score: there is no command {argv[0]!r}.{suggest(argv[0], COMMANDS)}", file=sys.stderr)
        return 2
    wants_traceback = "--traceback" in argv or os.environ.get("SDE_SCORE_TRACEBACK")
    try:
        command(argv[1:])
    except UsageError as error:
        print(f"sde-score {argv[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sde-score {argv[0]}: interrupted", file=sys.stderr)
        return 1
    except Exception as error:
        if wants_traceback:
            traceback.print_exc()
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f" for {error.filename}" if error.filename else ""
            print(
                f"sde-score {argv[0]}: no room on the disk{what}. What was written before is intact; free some space "
                f"and repeat the command.",
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
        return 1
    return 0


def entry(command: str | None = None) -> None:
    """Entry point of the scripts; `command` is that of a script for one command."""
    sys.exit(main(None if command is None else [command, *sys.argv[1:]]))


if __name__ == "__main__":
    entry()
