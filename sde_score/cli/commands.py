"""The sub-commands of `sde-score`. Whatever needs torch is imported when a command runs."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path

from absl import flags

from sde_score.cli.arguments import (
    UsageError,
    chosen_config,
    command,
    culprits,
    finish,
    given_keys,
    need_run,
    parse,
    run_flags,
)
from sde_score.config import is_run


@command("train")
def train(argv: list[str]) -> None:
    """Train a score model, or go on where it stopped: the same command again resumes a run."""

    def define(values):
        flags.DEFINE_string("workdir", None, "the run directory", flag_values=values)
        flags.DEFINE_bool("overwrite", False, "delete the run that is there and begin anew", flag_values=values)
        flags.DEFINE_string(
            "data", None, "data of your own, from which the configuration is chosen: a path", flag_values=values
        )
        flags.DEFINE_float("minutes", None, "how long to train, at most", lower_bound=1e-3, flag_values=values)

    values = parse("train", argv, define)
    if values.workdir is None:
        raise UsageError("--workdir=DIR is missing: where the run is kept")
    config = chosen_config(values)
    if config is None:
        raise UsageError(
            "what to train on is missing: --data=PATH for data of your own, or a configuration, e.g. --config=digits "
            "or --config=my_config.py"
        )
    from sde_score.run import train as run_train
    from sde_score.run.automatic import fitting
    from sde_score.run.report import try_report
    from sde_score.training import distributed

    if values.minutes is not None:
        if "training.max_seconds" in values.given:
            raise UsageError("--minutes and --config.training.max_seconds say the same; leave one of them out")
        config.training.max_seconds = 60 * values.minutes
    data = None
    if values.data is not None and (values.overwrite or not is_run(values.workdir)):
        config, data = fitting(config, given_keys(argv, config), minutes=values.minutes, plugins=values.plugin)
    with culprits(values):
        run, result = run_train(
            config,
            values.workdir,
            overwrite=values.overwrite,
            loaded=data,
            plugins=values.plugin,
            given=values.given,
        )
    if not distributed.launched_as_main():
        return
    report = try_report(run, redraw=True)
    lines = [
        f"{result.status} at step {result.step} after {result.seconds:.0f} s; {result.skipped} steps skipped",
        *report_line(report),
    ]
    finish(
        values,
        {
            "status": result.status,
            "step": result.step,
            "seconds": result.seconds,
            "workdir": str(run.workdir),
            "report": report and str(report),
        },
        lines,
    )
    if result.status == "interrupted":
        raise KeyboardInterrupt


def report_line(report: Path | None) -> list[str]:
    """Where the report is, if it could be written."""
    return [] if report is None else [f"report: {report}"]


@command("sample")
def sample(argv: list[str]) -> None:
    """Draw samples from a run: a picture, the numbers (.npz), and how they were drawn (.json)."""

    def define(values):
        run_flags(values)
        flags.DEFINE_integer("num", None, "how many; default: 64, of vectors 1000", lower_bound=1, flag_values=values)
        flags.DEFINE_integer("seed", 0, "sample i depends on (seed, i) only", lower_bound=0, flag_values=values)
        flags.DEFINE_list("labels", [], "classes, as the data name them, of a model that is told", flag_values=values)
        flags.DEFINE_string("tag", None, "name of the files; default: what the samples are", flag_values=values)
        flags.DEFINE_bool("trajectory", True, "a strip and an animation from noise to data", flag_values=values)
        flags.DEFINE_string("movie", None, "a movie from noise to data: a .gif or .mp4 to write", flag_values=values)
        flags.DEFINE_integer("frames", None, "states kept on the way; default: 12, of a movie 60", flag_values=values)

    values = parse("sample", argv, define)
    from sde_score.run.results import check_tag
    from sde_score.visual.images import check_movie

    try:  # before anything is drawn
        if values.tag is not None:
            check_tag(values.tag)
        if values.movie is not None:
            check_movie(values.movie)
    except ValueError as error:
        raise UsageError(f"--{'tag' if 'tag' in str(error) else 'movie'}: {error}") from error
    if values.frames is not None and values.frames < 2:
        raise UsageError(f"--frames must be at least 2; got {values.frames}")
    if values.frames is not None and not values.trajectory and values.movie is None:
        raise UsageError("--frames are those of a trajectory; leave out --notrajectory, or write --movie=FILE.gif")
    run = need_run(values, "sample")
    from sde_score.run.report import try_report
    from sde_score.run.results import costs_nothing
    from sde_score.run.sample import TRAJECTORY_FRAMES, save_samples
    from sde_score.run.sample import sample as run_sample
    from sde_score.training import distributed

    frames = values.frames or (60 if values.movie else TRAJECTORY_FRAMES)

    with distributed.processes(run.config.device):
        samples = run_sample(
            run,
            (1000 if run.info.kind == "vector" else 64) if values.num is None else values.num,
            seed=values.seed,
            labels=values.labels or None,
            progress=not values.json,
            trajectory=frames if values.trajectory or values.movie else False,
        )
        main = distributed.is_main()
    if not main:
        return
    files = save_samples(samples, run, values.tag)
    if values.movie is not None:
        with costs_nothing(f"The movie {values.movie}"):
            files["movie"] = str(samples.save(values.movie))
    if report := try_report(run):
        files["report"] = str(report)
    facts = samples.facts
    lines = [
        f"{facts['num']} samples, {facts['nfe']} score evaluations each, {facts['seconds']} s",
        *(f"{k}: {v}" for k, v in files.items()),
    ]
    finish(values, facts | {"files": files}, lines)


@command("likelihood")
def likelihood(argv: list[str]) -> dict | None:
    """Log-likelihoods of held-out data by the probability-flow ODE: bits/dim for images, nats for continuous data."""

    def define(values):
        run_flags(values)
        flags.DEFINE_enum("split", "test", ["test", "train"], "which data", flag_values=values)
        flags.DEFINE_integer("num", None, "the first so many samples only", lower_bound=1, flag_values=values)
        flags.DEFINE_integer(
            "repeats", 1, "passes with fresh dequantisation and probes", lower_bound=1, flag_values=values
        )
        flags.DEFINE_integer("seed", 0, "of dequantisation and probes", lower_bound=0, flag_values=values)
        flags.DEFINE_string("per_sample", None, "a .csv or .npz for the values of each sample", flag_values=values)

    values = parse("likelihood", argv, define)
    from sde_score.run.results import check_table, write_table

    try:
        table = None if values.per_sample is None else check_table(values.per_sample)
    except ValueError as error:
        raise UsageError(f"--per_sample: {error}") from error
    run = need_run(values, "likelihood")
    from sde_score.run.evaluate import likelihood as run_likelihood
    from sde_score.run.report import try_report
    from sde_score.training import distributed

    with distributed.processes(run.config.device):
        found = run_likelihood(
            run, values.split, num=values.num, repeats=values.repeats, seed=values.seed, progress=not values.json
        )
        main = distributed.is_main()
    if not main:
        return None
    written = [found["file"], *found["per_sample_files"]]
    if table is not None:
        written.append(str(write_table(table, found.per_sample)))
    finish(values, found, [*likelihood_lines(found), f"files: {', '.join(written)}", *report_line(try_report(run))])
    return found


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


@command("evaluate")
def evaluate(argv: list[str]) -> dict | None:
    """Compare samples with the test data in a feature space, and show the loss by noise level."""

    def define(values):
        run_flags(values)
        flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0, flag_values=values)
        flags.DEFINE_string(
            "samples", None, "samples drawn before: a name in the run directory, or an .npz file", flag_values=values
        )

    values = parse("evaluate", argv, define)
    if values.samples is not None and values["seed"].present:
        raise UsageError("--seed is that of new samples; --samples are there already: leave one of them out")
    for key in values.given if values.samples is not None else ():
        if key.startswith("sampling."):
            raise UsageError(f"--config.{key} is for new samples; --samples are there already: leave one of them out")
    run = need_run(values, "evaluate")
    from sde_score.run.evaluate import evaluate as run_evaluate
    from sde_score.run.report import try_report
    from sde_score.training import distributed

    with distributed.processes(run.config.device):
        found = run_evaluate(run, seed=values.seed, progress=not values.json, samples=values.samples)
        main = distributed.is_main()
    if not main:
        return None
    finish(values, found, [*evaluation_lines(found), f"file: {found['file']}", *report_line(try_report(run))])
    return found


def evaluation_lines(found: dict) -> list[str]:
    """An evaluation in words."""
    from sde_score.run.evaluate import AS_MANY, HELD_OUT

    def shown(metric: dict | None) -> str:
        value = (metric or {}).get("value")
        return f"{value:.4g}" if value is not None else "-"

    rows = {who: {m["name"]: m for m in found["metrics"][who]} for who in ("model", AS_MANY, HELD_OUT)}
    first, second = found["num_reference"]
    heads = (f"{found['num']}/{found['num_real']}", f"{min(first, found['num'])}/{second}", f"{first}/{second}")
    lines = [
        f"{found['num']} samples against {found['num_real']} held-out ones, features: {found['features']}",
        f"  {'':<24} {'model':>12} {'model':>12} {'held-out':>12}",
        f"  {'samples/held-out':<24} {heads[0]:>12} {heads[1]:>12} {heads[2]:>12}",
    ]
    if found["num"] < found["num_asked"]:
        lines.append(f"  ({found['num_asked']} samples were asked for; as many as training samples were drawn)")
    for name in dict.fromkeys(name for row in rows.values() for name in row):
        cells = [rows[who].get(name) for who in rows]
        lines.append(f"  {name:<24} " + " ".join(f"{shown(cell):>12}" for cell in cells))
        reasons = dict.fromkeys(cell["error"] for cell in cells if cell and cell.get("error"))
        lines += [f"      no value: {reason}" for reason in reasons]
    return lines


@command("report")
def report(argv: list[str]) -> None:
    """Write report.html of a run anew."""
    values = parse("report", argv, run_flags)
    run = need_run(values, "report")
    from sde_score.run.report import write_run_report

    path = str(write_run_report(run))
    finish(values, {"report": path}, [path])


@command("import")
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

    values = parse("import", argv, define, config=False, plugins=False)
    if values.checkpoint is None or values.workdir is None:
        raise UsageError("write --checkpoint=FILE.pth --workdir=DIR")
    from sde_score.run.import_official import import_official

    run = import_official(values.checkpoint, values.workdir, values.published)
    finish(
        values,
        {"workdir": values.workdir, "step": run.step},
        [f"{values.workdir}: step {run.step}; try: sde-score sample --workdir={values.workdir}"],
    )


@command("export")
def export_weights(argv: list[str]) -> None:
    """Write the weights of a run to a file for others: any run as .safetensors, with its configuration; one with a
    published network as a .pth checkpoint under the original names.
    """

    def define(values):
        flags.DEFINE_string("workdir", None, "the run directory", flag_values=values)
        flags.DEFINE_string("checkpoint", None, "a checkpoint file; default: the newest of the run", flag_values=values)
        flags.DEFINE_string("to", None, "the .safetensors or .pth file to write", flag_values=values)

    values = parse("export", argv, define, config=False)
    if values.to is None or values.workdir is None:
        raise UsageError("write --workdir=DIR --to=FILE.safetensors or --to=FILE.pth")
    from sde_score.run import load
    from sde_score.run.export import export

    run = load(values.workdir, checkpoint=values.checkpoint, plugins=values.plugin)
    path = str(export(run, values.to, checkpoint=values.checkpoint))
    finish(values, {"file": path}, [path])


@command("list")
def list_components(argv: list[str]) -> None:
    """List registered components with their arguments and first line of documentation: sde-score list [KIND]."""
    values = parse("list", argv, lambda values: None, config=False, loose=True)
    kinds = values.loose
    from sde_score.run.components import components
    from sde_score.run.plugins import import_plugins

    import_plugins(values.plugin)
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
    finish(values, chosen, lines)


@command("check")
def check(argv: list[str]) -> None:
    """Run the conformance checks on components, named FILE.py:CLASS, MODULE:CLASS(ARGUMENT=VALUE) or as registered."""

    def define(values):
        flags.DEFINE_string("sde", "vp", "the SDE that predictors, correctors ... are made for", flag_values=values)
        flags.DEFINE_list("skip", [], "names of checks to leave out", flag_values=values)

    values = parse("check", argv, define, config=False, loose=True)
    names = values.loose
    if not names:
        raise UsageError("write what to check, e.g. my_module.py:MySDE or vp")
    from sde_score.run.components import REGISTRIES
    from sde_score.run.plugins import import_plugins
    from sde_score.testing.command import CannotCheck, check_components

    import_plugins(tuple(values.plugin))
    skip = dict.fromkeys(values.skip, "left out on the command line")
    try:
        reports = check_components(names, REGISTRIES, sde=values.sde, skip=skip)
    except CannotCheck as error:
        raise UsageError(str(error)) from error
    rows = {r.name: {"kind": r.kind, "checks": [vars(c) for c in r.results]} for r in reports}
    finish(values, rows, [line for r in reports for line in r.lines()])
    failed = sum(r.failures for r in reports)
    if failed:
        raise RuntimeError(f"{failed} of {sum(len(r.results) for r in reports)} checks failed")


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


QUICKSTART_SAMPLES = 256  # a grid that can be looked at, and enough for figures of quality


@command("quickstart")
def quickstart(argv: list[str]) -> None:
    """Train on the 8x8 digits, sample with predictor-corrector and with the ODE, compute bits/dim, evaluate, and write
    the report.
    """

    def define(values):
        flags.DEFINE_string("workdir", "runs/quickstart", "the run directory", flag_values=values)

    values = parse("quickstart", argv, define, config=False, plugins=False)
    base = [f"--workdir={values.workdir}"]
    # with --json the words of the parts go to stderr, and only the result to stdout
    folder = Path(values.workdir)
    with contextlib.redirect_stdout(sys.stderr) if values.json else contextlib.nullcontext(), _few_threads():
        train(["--config=digits", *base])
        sample([*base, f"--num={QUICKSTART_SAMPLES}", "--tag=pc"])
        sample([*base, "--num=100", "--tag=ode", "--config.sampling.method=ode"])
        found = {"likelihood": likelihood(base), "evaluation": evaluate([*base, "--samples=pc"])}
    pictures = [
        str(p)
        for pattern in ("samples/p*.png", "samples/ode*.png", "plots/*.png")
        for p in sorted(folder.glob(pattern))
    ]
    result = {"workdir": str(folder), "pictures": pictures, "report": str(folder / "report.html")} | found
    lines = ["", "pictures:", *(f"  {p}" for p in pictures), "report:", f"  {folder / 'report.html'}"]
    finish(values, result, [*lines, "what next, for example:", *(f"  {line}" for line in next_commands(folder))])


def next_commands(workdir: Path) -> list[str]:
    """Three commands that work as they stand, wherever the program lies."""
    program = "sde-score"
    if shutil.which(program) is None:
        program = "python -m sde_score" if sys.argv[0].endswith(".py") else shlex.quote(sys.argv[0])
    run = f"--workdir={shlex.quote(str(workdir))}"
    return [
        f"{program} sample {run} --config.sampling.method=ode --movie=from_noise.gif",
        f"{program} sample {run} --config.sampling.predictor=ancestral_sampling --config.sampling.corrector=none",
        f"{program} likelihood {run} --num=100 --per_sample=unusual.csv",
    ]
