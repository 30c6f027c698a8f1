"""Speed and memory of this library beside a plain transcription of the published arithmetic, on the same weights.

    python tools/benchmark.py                                          # CPU, float32, eager: a few minutes
    python tools/benchmark.py --networks=ve8 --measures=train --compile
    python tools/benchmark.py --device=cuda --networks=ncsnpp_cifar --batch=128 --precision=bf16 --compile

Both sides run in turns, A B A B, so that a machine's other load meets both; a ratio is the median over the turns, with
its smallest and largest value. Beside wall time stands CPU time of all threads (which other load hardly changes): on
the CPU the ratios are those of CPU time. The baseline (`benchmark_baseline.py`) always runs as published: eager,
float32. Weights are drawn anew: the published initialisation has weights near 1e-10, and denormal numbers are slow.

What is measured:
    forward     the score of a batch at one time per sample, without gradients
    train       a training step: times, noise, forward, backward, clip, Adam, EMA
    sample      one reverse-diffusion predictor step, everything included
    overhead    the share of such a step that is spent outside the network
    likelihood  log p of 16 digits by a network trained shortly on them, at no larger error than the baseline's, against
                a tight reference

Memory is the peak of what a call allocates on top of weights, optimiser and EMA: by the allocator's events on the CPU,
`torch.cuda.max_memory_allocated` on a GPU. MFU (model FLOP utilisation) is the FLOPs of the mathematics, counted by
`FlopCounterMode`, over time and peak; the peak is `--peak-tflops`, or what a matrix product reaches here.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads must not eat CPU time

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent))
import benchmark_baseline as baseline  # noqa: E402

from sde_score.likelihood import log_likelihood  # noqa: E402
from sde_score.models import ScoreModel  # noqa: E402
from sde_score.models.ema import EMA  # noqa: E402
from sde_score.models.ncsnpp import NCSNpp  # noqa: E402
from sde_score.objectives import OBJECTIVES  # noqa: E402
from sde_score.sampling import PCSampler  # noqa: E402
from sde_score.sdes import SDES  # noqa: E402
from sde_score.tensors import SampleNoise  # noqa: E402
from sde_score.training import Record, Schedule, StepSettings, Trainer, make_optimizer  # noqa: E402
from sde_score.training.precision import autocast_network  # noqa: E402
from sde_score.training.trainer import LossModule  # noqa: E402

MEASURES = ("forward", "train", "sample", "overhead", "likelihood")
TURN = 0.2  # seconds for which a short call is repeated in a turn
STEPS = 4  # sampling steps in one timed call
LR, WARMUP, CLIP, DECAY = 2e-4, 5000, 1.0, 0.999  # the published defaults, on both sides

VP = {"embedding_type": "positional", "fir": False, "progressive_input": "none", "scale_by_sigma": False}


@dataclass(frozen=True)
class Setup:
    """A network and its process, "ve" or "vp"."""

    process: str
    options: dict[str, Any]


NETWORKS = {
    "ve32": Setup("ve", dict(channels=3, image_size=32, nf=32, ch_mult=(1, 2, 2, 2), num_res_blocks=2)),
    "vp32": Setup("vp", dict(channels=3, image_size=32, nf=32, ch_mult=(1, 2, 2, 2), num_res_blocks=2, **VP)),
    "ve8": Setup("ve", dict(channels=1, image_size=8, nf=32, ch_mult=(1, 2), num_res_blocks=2, attn_resolutions=(4,))),
    "vp8": Setup(
        "vp", dict(channels=1, image_size=8, nf=32, ch_mult=(1, 2), num_res_blocks=2, attn_resolutions=(4,), **VP)
    ),
    "ncsnpp_cifar": Setup("ve", dict(channels=3, image_size=32)),  # NCSN++ cont.: nf 128, 4 blocks, FIR, residual input
    "tiny": Setup("ve", dict(channels=1, image_size=4, nf=4, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(2,))),
}
"""`tiny` is for trying the benchmark itself."""


# --- both sides -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw_weights(network: nn.Module, seed: int = 0) -> None:
    """Weights N(0, 1/fan_in), scales of norms 1 + N(0, 0.1^2), biases N(0, 0.1^2)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            values *= parameter[0].numel() ** -0.5
        else:
            values = values * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        parameter.copy_(values)


class Pair:
    """Our score model and the baseline of one setup, on the same weights."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        setup = NETWORKS[name]
        self.name, self.args, self.device = name, args, torch.device(args.device)
        torch.manual_seed(args.seed)
        network = NCSNpp(**setup.options)
        draw_weights(network, args.seed)
        network.to(self.device)
        self.shape = (args.batch, setup.options["channels"], setup.options["image_size"], setup.options["image_size"])
        self.plain = baseline.plain_network(network)
        self.network = network
        self.process = baseline.PlainVE() if setup.process == "ve" else baseline.PlainVP()
        sde = SDES.build(setup.process)
        kind = "score(c_noise='sigma')" if setup.process == "ve" else "eps(c_noise='999t', scale_input=False)"
        self.model = ScoreModel(network, sde, kind)
        self.ema = EMA(self.model, DECAY)
        torch.compiler.reset()  # after another network's shapes torch would compile for shapes that vary
        self.fast = self.model.compiled() if args.compile else self.model

    def images(self) -> Tensor:
        return torch.rand(self.shape, generator=torch.Generator().manual_seed(1)).to(self.device)

    def times(self) -> Tensor:
        return torch.linspace(0.05, 0.95, len(self.images()), device=self.device)


class OurTraining:
    """The steps of `Trainer.run`, one at a time."""

    def __init__(self, pair: Pair) -> None:
        x, everyone = pair.images().cpu(), range(pair.args.batch)
        self.trainer = Trainer(
            pair.model,
            pair.ema,
            OBJECTIVES.build("dsm", pair.model.sde),
            make_optimizer(pair.model.parameters(), lr=LR),
            lambda step: (x, None, everyone),
            Schedule(10**9, warmup=WARMUP),
            step=StepSettings(grad_clip=CLIP),
            record=Record(progress=False),
        )
        self.trainer.losses = LossModule(pair.fast, self.trainer.losses.objective)
        pair.model.train()

    def step(self) -> float:
        return self.trainer.advance(self.trainer.losses)[0]


class NullNetwork(nn.Module):
    """Costs nothing: what is left of a sampler's time is its own."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.answer


def forward_calls(pair: Pair) -> dict[str, Callable[[], Any]]:
    x, t = pair.images(), pair.times()
    pair.model.eval()
    score = pair.fast  # in evaluation mode; `score_fn` would make its second module in the timed call

    def plain() -> None:
        pair.plain.eval()  # as published: at every call
        pair.process.score(pair.plain, x, t)

    return {"plain": torch.no_grad()(plain), "ours": torch.no_grad()(lambda: score(x, t))}


def train_calls(pair: Pair) -> dict[str, Callable[[], Any]]:
    x = pair.images()
    plain = baseline.PlainTraining(pair.plain, pair.process, lr=LR, warmup=WARMUP, clip=CLIP)
    return {"plain": lambda: plain.step(x), "ours": OurTraining(pair).step}


def sample_calls(pair: Pair) -> dict[str, Callable[[], Any]]:
    """STEPS steps from the prior; `plain_null`, `ours_null`: without a network; `plain_net`, `ours_net`: it alone."""
    pair.model.eval()
    sde = pair.model.sde
    x_T = sde.prior_sampling(pair.shape, noise=SampleNoise(0, range(pair.shape[0])), device=pair.device)
    # STEPS steps of a long run, as a sampler's last and first call of the network count little there
    sampler = PCSampler(sde, "reverse_diffusion", steps=1000, denoise="none")
    sampler.grid = sampler.grid[:STEPS]
    times = torch.linspace(1.0, pair.process.t_sample, 1000)[:STEPS].tolist()
    null = NullNetwork(torch.zeros(pair.shape, device=pair.device))
    null_model = ScoreModel(null, sde, pair.model.parameterization)
    c_noise = torch.full(pair.shape[:1], 1.0, device=pair.device)

    def ours(model: ScoreModel) -> None:
        sampler(model, x_T, noise=SampleNoise(1, range(pair.shape[0])))

    def network(module: nn.Module) -> None:
        for _ in range(STEPS):
            module(x_T, c_noise)

    calls = {
        "plain": lambda: baseline.reverse_diffusion(pair.plain, pair.process, x_T, times),
        "ours": lambda: ours(pair.fast),
        "plain_null": lambda: baseline.reverse_diffusion(null, pair.process, x_T, times),
        "ours_null": lambda: ours(null_model),
        "plain_net": lambda: network(pair.plain),
        "ours_net": lambda: network(pair.fast.network),
    }
    return {name: torch.no_grad()(call) for name, call in calls.items()}


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Timing:
    """Seconds of one call: wall, and CPU of all threads."""

    wall: float
    cpu: float


def timed(call: Callable[[], Any], device: torch.device, times: int = 1) -> Timing:
    """The mean of so many calls in a row."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Timing((time.perf_counter() - wall) / times, (time.process_time() - cpu) / times)


def in_turns(
    calls: dict[str, Callable[[], Any]], *, repeats: int, device: torch.device, warmups: int = 2
) -> dict[str, list[Timing]]:
    """Every call once a turn, `repeats` times over, after `warmups` unmeasured turns.

    Short calls are made several times in a row, for about TURN seconds: so they are used, with warm caches.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in calls}
    times = dict.fromkeys(calls, 1)
    for turn in range(warmups + repeats):
        for name, call in calls.items():
            timing = timed(call, device, times[name])
            if turn >= warmups:
                timings[name].append(timing)
            else:
                times[name] = max(1, round(TURN / timing.wall))
    return timings


@dataclass
class Spread:
    """Median, smallest and largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int = 2) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most that tensors made by `call` occupy at one time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def model_flops(network: nn.Module, shape: tuple[int, ...], *, backward: bool) -> int:
    """FLOPs of a forward pass (and backward) for a batch of `shape`, a product and a sum counted as two."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(network.parameters()).device
    # One sample; a gradient for x chooses the attention that is made of counted products.
    x = torch.rand(1, *shape[1:], device=device).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        out = network(x, torch.ones(1, device=device))
        if backward:
            out.sum().backward()
    network.zero_grad(set_to_none=True)
    return counter.get_total_flops() * shape[0]


def matmul_flops_per_second(device: torch.device, precision: str) -> float:
    """What a large matrix product reaches: per second on a GPU, per second of CPU time on a CPU."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = min(clock(timed(lambda: a @ a, device), device) for _ in range(10))
    return 2 * size**3 / best


def clock(timing: Timing, device: torch.device) -> float:
    """The time that ratios are made of."""
    return timing.wall if device.type == "cuda" else timing.cpu


@dataclass
class Row:
    """One line of the table; seconds of one step, on the clock of the ratios."""

    network: str
    measure: str
    plain: Spread
    ours: Spread
    ratio: Spread
    wall_ratio: Spread
    images_per_second: float | None = None
    plain_mib: float | None = None
    ours_mib: float | None = None
    mfu: float | None = None
    note: str = ""


def make_row(pair: Pair, measure: str, timings: dict[str, list[Timing]], *, steps: int = 1) -> Row:
    plain, ours = timings["plain"], timings["ours"]
    seconds = {
        side: Spread.of([clock(timing, pair.device) / steps for timing in timings[side]]) for side in ("plain", "ours")
    }
    return Row(
        pair.name,
        measure,
        seconds["plain"],
        seconds["ours"],
        Spread.of([clock(a, pair.device) / clock(b, pair.device) for a, b in zip(plain, ours)]),
        Spread.of([a.wall / b.wall for a, b in zip(plain, ours)]),
        images_per_second=pair.shape[0] * steps / statistics.median(t.wall for t in ours),
    )


def run_measure(name: str, measure: str, args: argparse.Namespace, peak_flops: float) -> list[Row]:
    """The rows of one measure of one network."""
    pair = Pair(name, args)
    with ExitStack() as stack:
        stack.enter_context(autocast_network(pair.fast, args.precision))
        if measure in ("sample", "overhead"):
            return [_sampling_row(pair, measure, args)]
        calls = {"forward": forward_calls, "train": train_calls}[measure](pair)
        timings = in_turns(calls, repeats=args.repeats, device=pair.device)
        row = make_row(pair, measure, timings)
        row.plain_mib, row.ours_mib = (peak_bytes(calls[side], pair.device) / 2**20 for side in ("plain", "ours"))
    flops = model_flops(pair.network, pair.shape, backward=measure == "train")
    row.mfu = flops / row.ours.median / peak_flops
    return [row]


def _sampling_row(pair: Pair, measure: str, args: argparse.Namespace) -> Row:
    calls = sample_calls(pair)
    if measure == "sample":
        calls = {side: calls[side] for side in ("plain", "ours")}
        row = make_row(pair, measure, in_turns(calls, repeats=args.repeats, device=pair.device), steps=STEPS)
        row.plain_mib, row.ours_mib = (peak_bytes(calls[side], pair.device) / 2**20 for side in ("plain", "ours"))
        return row
    # On the CPU a run without a network is what a sampler does beside it. On a GPU the two overlap, and what counts is
    # what is left when the network's own time is taken from a step's.
    other = "net" if pair.device.type == "cuda" else "null"
    wanted = ("plain", "ours", f"plain_{other}", f"ours_{other}")
    timings = in_turns({k: calls[k] for k in wanted}, repeats=args.repeats, device=pair.device)
    shares = {}
    for side in ("plain", "ours"):
        shares[side] = [
            clock(part, pair.device) / clock(whole, pair.device)
            for part, whole in zip(timings[f"{side}_{other}"], timings[side])
        ]
        if other == "net":
            shares[side] = [1 - share for share in shares[side]]
    row = make_row(pair, measure, timings, steps=STEPS)
    row.images_per_second = None
    row.note = "outside the network: " + ", ".join(
        f"{who} {Spread.of([100 * s for s in shares[side]]).show(1)} %"
        for side, who in (("plain", "baseline"), ("ours", "ours"))
    )
    return row


# --- likelihood -------------------------------------------------------------------------------------------------------

LADDERS = (
    tuple(f"adams(steps={steps}, power=2)" for steps in (60, 80, 100, 120, 150, 200, 300)),
    tuple(f"dopri5(rtol={tol}, atol={tol})" for tol in (1e-3, 3e-4, 1e-4, 3e-5, 1e-5)),
)
"""Our solvers, each with rising effort."""


def likelihood_rows(args: argparse.Namespace) -> list[Row]:
    """The baseline, and ours with rising effort until the mean error is no larger."""
    from sde_score.data import load_dataset

    pair = Pair(args.likelihood_network, argparse.Namespace(**{**vars(args), "batch": 16, "compile": False}))
    images = _digits(load_dataset("digits").train, pair)
    _train_shortly(pair, images, args.likelihood_training)
    pair.model.eval().requires_grad_(False)
    pair.plain = baseline.plain_network(pair.network)

    x = _digits(load_dataset("digits").test, pair)[:16]
    probe = torch.where(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) < 0, -1.0, 1.0).to(x)
    to_bits = 1 / (x[0].numel() * math.log(2))
    sde, score, tight = pair.model.sde, pair.model.score_fn(), args.reference_tolerance
    reference = log_likelihood(
        sde, copy.deepcopy(pair.model).double().score_fn(), x.double(), probes=probe.double(), t_min=1e-5,
        solver=f"dopri5(rtol={tight}, atol={tight})",
    ).logp  # fmt: skip

    def error(logp: Tensor) -> float:
        return float((logp.double() - reference).abs().mean()) * to_bits

    answers: dict[str, Any] = {}

    def plain() -> None:
        answers["plain"] = baseline.log_likelihood(pair.plain, pair.process, x, probe)

    def solved(solver: str) -> None:
        answers["ours"] = log_likelihood(sde, score, x, probes=probe, t_min=1e-5, solver=solver)

    timings: dict[str, dict[str, list[Timing]]] = {}
    notes: dict[str, str] = {}
    for _ in range(args.likelihood_repeats):  # a turn: the baseline, then ours with as much effort as is needed
        once = timed(plain, pair.device)
        plain_error = error(answers["plain"][0])
        for ladder in LADDERS:
            for solver in ladder:
                turns = timings.setdefault(solver, {"plain": [], "ours": []})
                turns["ours"].append(timed(lambda solver=solver: solved(solver), pair.device))
                turns["plain"].append(once)
                ours_error = error(answers["ours"].logp)
                notes[solver] = (
                    f"{solver}: {answers['ours'].calls} evaluations, mean error {ours_error:.1e} bits/dim; baseline: "
                    f"{answers['plain'][2]} evaluations, {plain_error:.1e}"
                )
                if ours_error <= plain_error:
                    break

    rows = []
    for solver, turns in timings.items():
        row = make_row(pair, "likelihood", turns)
        row.note = notes[solver]
        rows.append(row)
    return rows


def _digits(split: Any, pair: Pair) -> Tensor:
    """The digits (17 grey levels), dequantised, in [0, 1]."""
    noise = torch.rand(split.x.shape, generator=torch.Generator().manual_seed(3))
    return ((split.x + noise) / 17).to(pair.device)


def _train_shortly(pair: Pair, images: Tensor, steps: int) -> None:
    """A few hundred steps of Adam on the digits, so that the score is one that a user would have."""
    objective = OBJECTIVES.build("dsm", pair.model.sde)
    optimizer = make_optimizer(pair.model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    pair.model.train()
    for _ in range(steps):
        x = images[torch.randint(len(images), (64,), generator=generator)]
        optimizer.zero_grad()
        objective(pair.model, x, noise=torch.randn_like).mean().backward()
        nn.utils.clip_grad_norm_(pair.model.parameters(), 1.0)
        optimizer.step()


# --- the report -------------------------------------------------------------------------------------------------------


def machine(args: argparse.Namespace) -> str:
    """What the numbers were measured on."""
    if args.device.startswith("cuda"):
        name = torch.cuda.get_device_name(args.device)
    else:
        name = platform.processor() or platform.machine()
        info = Path("/proc/cpuinfo")
        models = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
        name = f"{models[0].partition(':')[2].strip() if models else name}, {os.cpu_count()} cores"
        load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        name += f", {torch.get_num_threads()} thread(s) used{load}"
    ours = f"{args.precision}, {'compiled' if args.compile else 'eager'}"
    return f"{name}; torch {torch.__version__.split('+')[0]}; ours {ours}, baseline float32, eager; batch {args.batch}"


def markdown(rows: Sequence[Row], where: str, *, cuda: bool) -> str:
    unit = "ms" if cuda else "CPU-ms"
    head = ["network", "measure", f"baseline, {unit}", f"ours, {unit}", "ratio", "ratio of wall time", "images/s",
            "memory, MiB (baseline / ours)", "MFU", "note"]  # fmt: skip
    lines = [f"Measured on: {where}.", ""]
    lines += ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head))]
    for row in rows:
        memory = "" if row.ours_mib is None else f"{row.plain_mib:.1f} / {row.ours_mib:.1f}"
        cells = [row.network, row.measure, f"{1e3 * row.plain.median:.1f}", f"{1e3 * row.ours.median:.1f}",
                 row.ratio.show(), row.wall_ratio.show(),
                 "" if row.images_per_second is None else f"{row.images_per_second:.0f}", memory,
                 "" if row.mfu is None else f"{100 * row.mfu:.0f} %", row.note]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="ve32,vp32,ve8", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--measures", default="forward,train,sample,overhead", help=f"of {', '.join(MEASURES)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16"), help="of our network")
    parser.add_argument("--compile", action="store_true", help="our network through torch.compile")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7, help="turns that are measured")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak-tflops", type=float, help="peak of the device (on a CPU: of one core), for the MFU")
    parser.add_argument("--likelihood-network", default="vp8", help="an 8x8 network with one channel")
    parser.add_argument("--likelihood-training", type=int, default=200, help="training steps before the likelihood")
    parser.add_argument("--likelihood-repeats", type=int, default=1)
    parser.add_argument("--reference-tolerance", type=float, default=1e-6)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args(argv)
    args.networks, args.measures = args.networks.split(","), args.measures.split(",")
    for kind, given, known in (("network", args.networks, NETWORKS), ("measure", args.measures, MEASURES)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"unknown {kind} {unknown[0]!r}; known: {', '.join(known)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device=cuda, but torch sees no GPU here; write --device=cpu")
    if min(args.batch, args.repeats, args.threads, args.likelihood_repeats) < 1:
        parser.error("--batch, --repeats, --threads and --likelihood-repeats must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> list[Row]:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    where, device = machine(args), torch.device(args.device)
    peak = args.peak_tflops * 1e12 if args.peak_tflops else matmul_flops_per_second(device, args.precision)
    rows: list[Row] = []
    for measure in args.measures:
        for name in args.networks if measure != "likelihood" else [args.likelihood_network]:
            print(f"{name} {measure} ...", file=sys.stderr, flush=True)
            rows += likelihood_rows(args) if measure == "likelihood" else run_measure(name, measure, args, peak)
    print(markdown(rows, where, cuda=device.type == "cuda"))
    unit = "TFLOP/s" if device.type == "cuda" else "TFLOP per CPU-second"
    print(f"\nPeak for the MFU: {peak / 1e12:.3g} {unit} ({'given' if args.peak_tflops else 'a matrix product'}).")
    if args.json:
        record = {"machine": where, "peak_flops": peak, "settings": vars(args), "rows": [asdict(row) for row in rows]}
        Path(args.json).write_text(json.dumps(record, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
