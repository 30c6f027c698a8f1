"""One self-contained page of everything that a run directory holds."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sde_score.files import first_line
from sde_score.run.build import told_conditions
from sde_score.run.evaluate import AS_MANY, HELD_OUT
from sde_score.run.facts import RunFacts
from sde_score.run.pictures import draw_picture, held_out
from sde_score.run.results import costs_nothing, read_json
from sde_score.visual.plots import (
    extent_of,
    has_one_scale,
    plane,
    plot_density,
    plot_loss,
    plot_loss_by_noise,
    plot_score_field,
)
from sde_score.visual.report import Section, Table, render_report, write_report
from sde_score.visual.svg import bar_chart

PLANE = 70  # points along an axis of a density's picture: each is an ODE to be solved


CAPTIONS = {
    "data": "Some of the data, as the pictures of samples show them.",
    "loss": "Loss over the steps: the training batches, and held-out data with the averaged and the raw weights.",
    "loss_by_noise": "Loss on held-out data by noise level, over the steps, and its first and newest values.",
    "density": "Log density of the model, beside that of the true law where it is known.",
    "score_field": "Score of the model at the least noise: arrows point where the density grows.",
}


def draw_plots(run: RunFacts) -> dict[str, Path]:
    """The data, the loss curves, and for points of the plane the density and the score field. One that fails is a line
    on stderr."""
    folder, metrics = run.workdir / "plots", run.workdir / "metrics.jsonl"
    folder.mkdir(exist_ok=True)
    plots = {}
    with costs_nothing("The picture of the data"):
        data = held_out(run)
        if data is not None:
            plots["data"] = draw_picture(folder / "data.png", run.info, {"data": data})
    if metrics.is_file():
        for name, plot in (("loss", plot_loss), ("loss_by_noise", plot_loss_by_noise)):
            try:
                plots[name] = plot(folder / f"{name}.png", metrics)
            except ValueError:  # too short a run has nothing of that kind to show
                continue
            except Exception as error:
                print(f"The plot {name} could not be made: {first_line(error)}", file=sys.stderr)
    flat = run.info.shape == run.codec.shape == (2,) and run.info.levels is None
    if flat and "data" in plots and not told_conditions(run.config, run.info):
        with costs_nothing("The picture of the density"):
            plots |= _plane_plots(run, folder)
    return plots


def _plane_plots(run: RunFacts, folder: Path) -> dict[str, Path]:
    import torch

    from sde_score.likelihood import log_likelihood

    def encoded(x):
        return run.codec.encode(x.float()).to(run.device)

    points = run.data.test[range(min(2000, len(run.data.test)))].x
    extent = extent_of(points)
    try:
        encoded(plane(extent, 2))
    except ValueError:  # it reaches where the codec has no value, as a logarithm below zero; the data's box does not
        (left, bottom), (right, top) = points.amin(0).tolist(), points.amax(0).tolist()
        extent = (left, right, bottom, top)

    def model_density(x):
        z = encoded(x)
        found = log_likelihood(
            run.sde,
            run.score_fn(),
            z,
            solver="dopri5(rtol=1e-4, atol=1e-4)",
            trace="exact",
            t_min=run.config.likelihood.t_min,
        )
        return (found.logp.detach() + run.codec.log_det(z)).cpu()

    known = run.codec.log_det(encoded(plane(extent, 2))) is not None
    grid = model_density(plane(extent, PLANE)).reshape(PLANE, PLANE) if known else None
    law = run.data.law
    # where the score is that of a slightly blurred density
    level = torch.tensor(run.sde.low_noise_time(), dtype=torch.float32)

    def model_score(x):
        with torch.no_grad():
            return run.model(encoded(x), level.expand(len(x)).to(run.device)).cpu()

    densities = ({"truth": law.log_prob} if law is not None else {}) | ({"model": grid} if known else {})
    shown = {"density": plot_density(folder / "density.png", densities, extent=extent)} if known else {}
    if not has_one_scale(extent):  # the directions of arrows would say nothing
        return shown
    return shown | {
        "score_field": plot_score_field(
            folder / "score_field.png",
            {f"score at t = {float(level):.3g}": model_score},
            extent=extent,
            log_density=grid,
        ),
    }


Results = list[tuple[Path, dict[str, Any]]]


def _results(folder: Path) -> tuple[Results, list[Section]]:
    """The results in a folder, those of the newest weights first, and a section for each file that is none."""
    found, damaged = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append((path, read_json(path)))
        except ValueError as error:
            damaged.append(_missing(path.stem, error))
    return sorted(found, key=lambda each: -(_number(each[1].get("step")) or 0)), damaged


def _readable(pictures: list[tuple[Path, str]]) -> list[tuple[str, str]] | None:
    """The pictures that are PNG files; in the place of another, nothing."""
    found = []
    for path, caption in pictures:
        try:
            with open(path, "rb") as file:
                if file.read(4) == b"\x89PNG":
                    found.append((str(path), caption))
        except OSError:
            continue
    return found or None


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if real and math.isfinite(value) else None


def _missing(what: str, error: Exception) -> Section:
    words = first_line(error) if type(error) in (ValueError, FileNotFoundError) else repr(error)[:200]
    return Section(what, text=f"This cannot be shown: {words}")


def _sections(results: Results, make: Callable[[Path, dict[str, Any], str], Section], newest: float) -> list[Section]:
    """A section for each result; one that holds something unforeseen says so in its place."""
    sections = []
    for path, found in results:
        step = _number(found.get("step"))
        age = "" if step is None or step >= newest else f" (older weights, of step {step:.0f})"
        try:
            section = make(path, found, age)
            render_report(title="", sections=[section])  # fails here, where one section is lost
        except Exception as error:
            section = _missing(path.stem, error)
        sections.append(section)
    return sections


def _said(found: dict[str, Any], key: str) -> str:
    """A fact in words; "unknown" where it is not there."""
    value = found.get(key)
    number = _number(value)
    if number is None:
        return "unknown" if value is None else str(value)
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:g}"


def _drawn_with(found: dict[str, Any]) -> str:
    """The settings of a sampler in words."""
    settings = found.get("sampling")
    return ", ".join(f"{k}={v}" for k, v in settings.items()) if isinstance(settings, dict) else "unknown settings"


def _samples_section(path: Path, facts: dict[str, Any], age: str, data: Path | None) -> Section:
    drawn = f"{_said(facts, 'num')} samples, seed {_said(facts, 'seed')}, weights of step {_said(facts, 'step')}"
    # beside the facts, wherever the run directory has been moved to
    pictures = [(data, "Real data, held out of the training.")] if data is not None else []
    pictures += [
        (picture, caption)
        for picture, caption in (
            (path.with_suffix(".png"), f"{drawn}."),
            (
                path.with_name(f"{path.stem}_trajectory.png"),
                "From noise to data: a sample in each row, its time above each column.",
            ),
        )
    ]
    text = (
        f"{_drawn_with(facts)}. {_said(facts, 'nfe')} score evaluations per sample, "
        f"{_said(facts, 'seconds')} s, weights of step {_said(facts, 'step')}."
    )
    return Section(f"Samples: {path.stem.replace('_', ' ')}{age}", text=text, image=_readable(pictures))


def _value(found: Any) -> tuple[float | None, Any]:
    """Mean and standard error, or value and standard error, or None and the reason."""
    found = found if isinstance(found, dict) else {}
    value = _number(found.get("mean", found.get("value")))
    if value is None:
        return None, found.get("error") or "not a number"
    return value, _number(found.get("stderr"))


def _likelihood_section(path: Path, found: dict[str, Any], age: str) -> Section:
    discrete = "bits_per_dim" in found
    rows: list[tuple[str, Any]] = [("this model", _value(found.get("bits_per_dim" if discrete else "nats")))]
    chart = None
    if discrete:
        baselines = found.get("baselines")
        rows += [(name, _value(b)) for name, b in (baselines if isinstance(baselines, dict) else {}).items()]
        levels = found["bits_per_dim"].get("levels") if isinstance(found["bits_per_dim"], dict) else None
        unit = "bits/dim"
        note = (
            f"Uniform dequantisation of {levels or 'the'} grey levels, probability-flow ODE from t = "
            f"{_said(found, 't_min')}; lower is better."
        )
        values = [value for _, (value, _) in rows]
        errors = [error if value is not None else None for _, (value, error) in rows]
        chart = bar_chart([r[0] for r in rows], values, errors=errors, highlight=(0,), unit=unit, title=unit)
    else:
        if "truth" in found:
            rows.append(("the true law", _value(found["truth"])))
        of = "what the codec makes of the data" if found.get("space") == "model" else "the data, in their own units"
        unit, note = "nats per sample", f"Mean log density of {of}; higher is better."
    split, total, num = (_said(found, key) for key in ("split", "num_split", "num"))
    which = f"{num}" if num == total or "num_split" not in found else f"the first {num} of {total}"
    text = (
        f"Of {which} {split} samples, seed {_said(found, 'seed')}, weights of step {_said(found, 'step')}. "
        f"{_said(found, 'trace')}, {_said(found, 'solver')}, {_said(found, 'nfe')} evaluations each, "
        f"{_said(found, 'seconds')} s. Single samples: {path.stem}.csv and .npz in the folder {path.parent.name}."
    )
    return Section(
        f"Likelihood of the {split} data{age}",
        text=text,
        table=Table(["model", unit], rows, highlight=(0,), note=note),
        svg=chart,
    )


def _evaluation_section(path: Path, found: dict[str, Any], age: str) -> Section:
    metrics = found.get("metrics")
    if not isinstance(metrics, dict) or not isinstance(metrics.get("model"), list):
        raise ValueError("it holds no metrics")
    columns = {who: {m.get("name"): m for m in metrics.get(who) or []} for who in ("model", AS_MANY, HELD_OUT)}
    names = dict.fromkeys(name for who in columns.values() for name in who)
    rows = [
        (str(name), *(_value(column[name]) if name in column else None for column in columns.values()))
        for name in names
    ]
    first, second = (found.get("num_reference") or ["?", "?"])[:2]
    num, real = _said(found, "num"), _said(found, "num_real")
    headings = ["figure", f"{num} samples", f"at most {first} samples", f"{first} held-out"]
    note = (
        f"Features: {_said(found, 'features')}. The first column compares {num} samples with {real} held-out ones. The "
        f"last one takes {first} held-out samples in the place of the model's, against the other {second}: what a "
        "perfect sampler would get. The middle one is the model's at those numbers, to be compared with it, since most "
        "figures depend on how many samples there are."
    )
    text = (
        f"Samples drawn with {_drawn_with(found)}, seed {_said(found, 'seed')}, weights of step "
        f"{_said(found, 'step')}; {_said(found, 'seconds')} s."
    )
    return Section(f"Sample quality{age}", text=text, table=Table(headings, rows, note=note))


def write_run_report(run: RunFacts, *, redraw: bool = True) -> Path:
    """Write `report.html`; `redraw=False` takes the plots that are there.

    It can always be written: what cannot be read or drawn of it says so in its place.
    """
    workdir = run.workdir
    drawn = {path.stem: path for path in sorted((workdir / "plots").glob("*.png"))}
    plots = draw_plots(run) if redraw or not drawn else drawn
    try:
        facts = read_json(workdir / "run.json")
    except ValueError:
        facts = {}
    read = {name: _results(workdir / name) for name in ("samples", "likelihood", "eval")}
    steps = [_number(found.get("step")) or 0 for results, _ in read.values() for _, found in results]
    newest = max([run.step, *steps])
    data = plots.get("data") if run.info.kind == "image" else None
    sections = _sections(read["samples"][0], lambda *each: _samples_section(*each, data), newest)
    sections += _sections(read["likelihood"][0], _likelihood_section, newest)
    sections += _sections(read["eval"][0], _evaluation_section, newest)
    sections += [section for _, damaged in read.values() for section in damaged]
    if shown := _readable([(path, CAPTIONS.get(name, name.replace("_", " "))) for name, path in plots.items()]):
        sections.append(Section("Data and curves", image=shown))
    commands = (
        f"sde-score sample --workdir={workdir} --num=100 --config.sampling.method=ode",
        f"sde-score sample --workdir={workdir} --config.sampling.predictor=ancestral_sampling "
        "--config.sampling.corrector='langevin(snr=0.16)'",
        f"sde-score likelihood --workdir={workdir}",
        f"sde-score evaluate --workdir={workdir}",
    )
    sections.append(Section("Go on from here", commands=commands))
    seconds = _number(facts.get("seconds"))
    summary = (
        f"{run.info.name}: SDE {run.config.sde}, network {run.config.model.name}, {run.step} training steps"
        + (f" in {seconds:.0f} s ({facts.get('status')})" if seconds is not None else "")
        + "."
    )
    return write_report(
        workdir / "report.html",
        title=f"sde_score: {run.info.name}",
        summary=summary,
        sections=sections,
        provenance=facts | {"config": run.config.to_dict()},
    )


def try_report(run: RunFacts, *, redraw: bool = False) -> Path | None:
    """`write_run_report` after a command whose numbers are safe: what fails is one line on stderr."""
    try:
        return write_run_report(run, redraw=redraw)
    except Exception as error:
        print(f"The report could not be written: {first_line(error)}", file=sys.stderr)
        return None
