"""One self-contained page of everything that a run directory holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sde_score.run.build import told_conditions
from sde_score.run.facts import RunFacts
from sde_score.visual.plots import extent_of, plane, plot_density, plot_loss, plot_loss_by_noise, plot_score_field
from sde_score.visual.report import Section, Table, write_report
from sde_score.visual.svg import bar_chart

PLANE = 70  # points along an axis of a density's picture: each is an ODE to be solved


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def draw_plots(run: RunFacts) -> dict[str, Path]:
    """The loss curves, and for points of the plane the density and the score field."""
    folder, metrics = run.workdir / "plots", run.workdir / "metrics.jsonl"
    folder.mkdir(exist_ok=True)
    plots = {}
    if metrics.is_file():
        for name, plot in (("loss", plot_loss), ("loss_by_noise", plot_loss_by_noise)):
            try:
                plots[name] = plot(folder / f"{name}.png", metrics)
            except ValueError:  # too short a run has nothing of that kind to show
                continue
    flat = run.info.shape == run.codec.shape == (2,) and run.info.levels is None
    if flat and run.has_data() and not told_conditions(run.config, run.info):
        plots |= _plane_plots(run, folder)
    return plots


def _plane_plots(run: RunFacts, folder: Path) -> dict[str, Path]:
    import torch

    from sde_score.likelihood import log_likelihood

    extent = extent_of(run.data.test[range(min(2000, len(run.data.test)))].x)

    def encoded(x):
        return run.codec.encode(x.float()).to(run.device)

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
    return ({"density": plot_density(folder / "density.png", densities, extent=extent)} if known else {}) | {
        "score_field": plot_score_field(
            folder / "score_field.png",
            {f"score at t = {float(level):.3g}": model_score},
            extent=extent,
            log_density=grid,
        ),
    }


def _samples_sections(run: RunFacts) -> list[Section]:
    sections = []
    for facts_file in sorted((run.workdir / "samples").glob("*.json")):
        facts = _read(facts_file)
        # beside the facts, wherever the run directory has been moved to
        pictures = [
            (str(path), caption)
            for path, caption in (
                (facts_file.with_suffix(".png"), f"{facts['num']} samples, seed {facts['seed']}"),
                (facts_file.with_name(f"{facts_file.stem}_trajectory.png"), "from noise to data"),
            )
            if path.is_file()
        ]
        settings = ", ".join(f"{k}={v}" for k, v in facts["sampling"].items())
        text = (
            f"{settings}. {facts['nfe']} score evaluations per sample, {facts['seconds']} s, weights of step "
            f"{facts['step']}."
        )
        sections.append(Section(f"Samples: {facts_file.stem.replace('_', ' ')}", text=text, image=pictures or None))
    return sections


def _likelihood_section(found: dict[str, Any]) -> Section:
    rows: list[tuple] = []
    if "bits_per_dim" in found:
        bpd = found["bits_per_dim"]
        rows.append(("this model", (bpd["mean"], bpd["stderr"])))
        rows += [(name, (b["mean"], b["stderr"])) for name, b in found.get("baselines", {}).items()]
        unit = "bits/dim"
        note = (
            f"Uniform dequantisation of {bpd['levels']} grey levels, probability-flow ODE from t = {found['t_min']:g}; "
            "lower is better."
        )
    else:
        rows.append(("this model", (found["nats"]["mean"], found["nats"]["stderr"])))
        if "truth" in found:
            rows.append(("the true law", (found["truth"]["mean"], found["truth"]["stderr"])))
        of = "what the codec makes of the data" if found.get("space") == "model" else "the data, in their own units"
        unit, note = "nats per sample", f"Mean log density of {of}; higher is better."
    chart = (
        None
        if "truth" in found or "bits_per_dim" not in found
        else bar_chart(
            [r[0] for r in rows],
            [r[1][0] for r in rows],
            errors=[r[1][1] for r in rows],
            highlight=(0,),
            unit=unit,
            title=unit,
        )
    )
    text = (
        f"{found['num']} {found['split']} samples, {found['trace']}, {found['solver']}, {found['nfe']:.0f} evaluations "
        f"each, {found['seconds']} s."
    )
    return Section(
        f"Likelihood of the {found['split']} data",
        text=text,
        table=Table(["model", unit], rows, highlight=(0,), note=note),
        svg=chart,
    )


def _evaluation_section(found: dict[str, Any]) -> Section:
    metrics = found["metrics"]
    other = {m["label"] if "label" in m else m["name"]: m for m in metrics["training data"]}
    rows = []
    for m in metrics["model"]:
        label = m.get("label", m["name"])
        reference = other.get(label, {})
        rows.append((label, (m["value"], m["stderr"]), (reference.get("value"), reference.get("stderr"))))
    note = (
        f"Features: {found['features']}. {found['num']} samples against {found['num_real']} test samples; the right "
        "column is what perfect samples get."
    )
    return Section("Sample quality", table=Table(["figure", "samples", "training data"], rows, note=note))


def write_run_report(run: RunFacts, *, redraw: bool = True) -> Path:
    """Write `report.html`; `redraw=False` takes the plots that are there."""
    drawn = {path.stem: path for path in sorted((run.workdir / "plots").glob("*.png"))}
    plots = draw_plots(run) if redraw or not drawn else drawn
    facts = _read(run.workdir / "run.json")
    sections = _samples_sections(run)
    sections += [_likelihood_section(_read(p)) for p in sorted((run.workdir / "likelihood").glob("*.json"))]
    evaluation = _read(run.workdir / "eval" / "metrics.json")
    if evaluation:
        sections.append(_evaluation_section(evaluation))
    if plots:
        sections.append(Section("Curves", image=[(str(path), name.replace("_", " ")) for name, path in plots.items()]))
    workdir = run.workdir
    commands = (
        f"sde-score sample --workdir={workdir} --num=100 --config.sampling.method=ode",
        f"sde-score sample --workdir={workdir} --config.sampling.predictor=ancestral_sampling "
        "--config.sampling.corrector='langevin(snr=0.16)'",
        f"sde-score likelihood --workdir={workdir}",
        f"sde-score evaluate --workdir={workdir}",
    )
    sections.append(Section("Go on from here", commands=commands))
    summary = (
        f"{run.info.name}: SDE {run.config.sde}, network {run.config.model.name}, {run.step} training steps"
        + (f" in {facts['seconds']:.0f} s ({facts['status']})" if "seconds" in facts else "")
        + "."
    )
    return write_report(
        workdir / "report.html",
        title=f"sde_score: {run.info.name}",
        summary=summary,
        sections=sections,
        provenance=facts | {"config": run.config.to_dict()},
    )
