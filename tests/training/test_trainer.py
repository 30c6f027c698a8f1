"""The training loop: published steps, invariances, and what it does when something is wrong."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from sde_score.models.ema import EMA
from sde_score.tensors import draw_uniform
from sde_score.training import (
    Cadence,
    CheckpointStore,
    JSONLWriter,
    Limits,
    Record,
    Schedule,
    StepSettings,
    Trainer,
    TrainingDiverged,
    ValidationLoss,
    make_optimizer,
)


class Net(nn.Module):
    """A tiny eps network for vectors, called like a score model."""

    def __init__(self, dim=2, width=16, dropout=0.0):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dim + 1, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, dim))

    def forward(self, x, t):
        return self.network(torch.cat([x, t[:, None]], 1))


def objective(model, x0, *, noise, **cond):
    """Denoising score matching on the path x = (1 - t) x0 + t z."""
    t = draw_uniform(noise, x0[:, 0])
    z = noise(x0)
    return ((model((1 - t[:, None]) * x0 + t[:, None] * z, t) - z) ** 2).sum(1)


def batch(step, size=12):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 2, generator=generator) + 1.0, None, range(size)


GROUPS = {"schedule": Schedule, "step": StepSettings, "limits": Limits, "cadence": Cadence, "record": Record}


def grouped(settings):
    """Settings by their own names, put into the groups that the trainer takes."""
    found = {}
    for group, kind in GROUPS.items():
        names = [field.name for field in dataclasses.fields(kind)]
        found[group] = kind(**{name: settings.pop(name) for name in names if name in settings})
    return found | settings


def make(net=None, loss=objective, data=batch, lr=1e-2, decay_rate=0.99, **settings):
    torch.manual_seed(0)
    model = net or Net()
    said = []
    settings = {"steps": 20, "say": said.append, "progress": False, **settings}
    optimizer = make_optimizer(model.parameters(), lr=lr)
    trainer = Trainer(model, EMA(model, decay_rate), loss, optimizer, data, **grouped(settings))
    trainer.said = said
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in (*trainer.model.parameters(), *trainer.ema.model.parameters())])


class Lines:
    """A writer that keeps its lines."""

    def __init__(self):
        self.lines = []

    def write(self, step, values):
        self.lines.append((step, dict(values)))

    def rewind(self, step):
        self.lines = [line for line in self.lines if line[0] <= step]

    def flush(self):
        pass


# Published steps


class TinyConv(nn.Module):
    """The network of the training goldens (formula in their metadata); `freq` is frozen."""

    def __init__(self, cscale):
        super().__init__()
        self.freq = nn.Parameter(torch.zeros(8), requires_grad=False)
        self.conv1, self.lin, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(1, 8), nn.Conv2d(8, 3, 3, padding=1)
        self.cscale = cscale

    def forward(self, x, c):
        h = self.conv1(x) + (self.lin(c[:, None] / self.cscale) * self.freq)[:, :, None, None]
        return self.conv2(torch.nn.functional.silu(h))


def published_loss(meta, first, z):
    """The loss of the file, with its recorded draws, written out (SPEC section 4)."""
    if meta["kind"] == "ve":
        std = 0.01 * (50.0 / 0.01) ** (first * (1 - 1e-5) + 1e-5)
        return lambda model, x0, **_: (
            0.5 * ((model(x0 + std[:, None, None, None] * z, std) * std[:, None, None, None] + z) ** 2).sum((1, 2, 3))
        )
    betas = torch.linspace(0.1 / 1000, 20.0 / 1000, 1000)
    mean = torch.cumprod(1 - betas, 0)[first].sqrt()[:, None, None, None]
    std = (1 - torch.cumprod(1 - betas, 0)[first]).sqrt()[:, None, None, None]
    return lambda model, x0, **_: ((model(mean * x0 + std * z, first.float()) - z) ** 2).mean((1, 2, 3))


@pytest.mark.parametrize("name, sigma_max", [("train_ve_continuous", 50.0), ("train_vp_ddpm_discrete", None)])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_published_training_steps(golden_dir, name, sigma_max, micro_batches):
    data = np.load(golden_dir / f"{name}.npz")
    meta = json.loads(str(data["meta_json"]))
    optim = meta["optim"]
    model = TinyConv(meta["cscale"])
    model.load_state_dict({key: torch.from_numpy(data[f"init/{key}"]) for key in model.state_dict()})
    ema = EMA(model, meta["ema_decay"])
    kind = "rand" if meta["continuous"] else "randint"
    first = {s: torch.from_numpy(data[f"s{s}_draw0_{kind}"]) for s in range(6)}
    z = {s: torch.from_numpy(data[f"s{s}_draw1_randn_like"]) for s in range(6)}
    x = {s: torch.from_numpy(data[f"s{s}_x"]) for s in range(6)}

    def loss(model, x0, *, noise, rows):
        return published_loss(meta, first[trainer.state.step][rows], z[trainer.state.step][rows])(model, x0)

    lines, compared = Lines(), []

    def compare(state):
        s = state.step - 1
        for key, value in state.model.state_dict().items():
            torch.testing.assert_close(value, torch.from_numpy(data[f"s{s}_p/{key}"]), atol=1e-5, rtol=1e-5)
        for key in meta["ema_order"]:
            shadow = torch.from_numpy(data[f"s{s}_ema/{key}"])
            torch.testing.assert_close(ema.model.state_dict()[key], shadow, atol=1e-5, rtol=1e-5)
        compared.append(s)

    trainer = Trainer(
        model,
        ema,
        loss,
        make_optimizer(model.parameters(), lr=optim["lr"], eps=optim["eps"]),
        lambda step: (x[step], {"rows": torch.arange(4)}, range(4)),
        Schedule(6, warmup=optim["warmup"], published_warmup=True),
        step=StepSettings(grad_clip=optim["grad_clip"], micro_batches=micro_batches),
        cadence=Cadence(1, actions=[(1, compare)]),
        record=Record(writers=[lines], progress=False),
    )
    assert trainer.run().status == "done"
    assert compared == [0, 1, 2, 3, 4, 5]
    for (_, values), rate, value, norm in zip(
        lines.lines, meta["lr_used"], meta["loss"], meta["grad_norm_before_clip"]
    ):
        assert values["lr"] == pytest.approx(rate, rel=1e-12)
        assert values["loss"] == pytest.approx(value, rel=1e-5)  # float32
        assert values["grad_norm"] == pytest.approx(norm, rel=1e-4)  # float32 sums of squares of some 200 terms


@pytest.mark.parametrize("off", [0.0, -1.0])
def test_a_largest_norm_of_nothing_is_no_clipping(off):
    clipped, free, never = (make(steps=3, grad_clip=c) for c in (1e-3, off, 1e9))
    for trainer in (clipped, free, never):
        trainer.run()
    assert torch.equal(weights(free), weights(never)) and not torch.equal(weights(free), weights(clipped))


def test_our_warmup_begins_with_a_step_and_the_published_one_without():
    ours = [Schedule(100, warmup=4)(k) for k in range(6)]
    published = [Schedule(100, warmup=4, published_warmup=True)(k) for k in range(6)]
    assert ours == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert published == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_decay_falls_from_one_to_zero():
    factors = [Schedule(100, warmup=10, decay="cosine")(k) for k in range(101)]
    assert factors[9] == factors[10] == 1.0
    assert all(a > b for a, b in zip(factors[10:], factors[11:]))
    assert factors[55] == pytest.approx(0.5) and factors[100] == pytest.approx(0.0, abs=1e-12)


def test_optimizer_names_and_settings():
    model = Net()
    assert type(make_optimizer(model.parameters(), name="adamw", weight_decay=0.1)) is torch.optim.AdamW
    assert make_optimizer(model.parameters(), beta1=0.8).param_groups[0]["betas"] == (0.8, 0.999)
    with pytest.raises(ValueError, match="'adam' and 'adamw', not 'sgd'"):
        make_optimizer(model.parameters(), name="sgd")


# Invariances


def test_it_learns():
    """The best loss of this toy problem is far below the 2 of a network that answers 0; 300 steps must get a good
    part of the way.
    """
    lines = Lines()
    make(steps=300, log=50, writers=[lines]).run()
    losses = [values["loss"] for _, values in lines.lines]
    assert losses[-1] < 0.75 * losses[0] and losses[-1] < 1.3


def test_same_seed_same_run_other_seed_other_run():
    one, same, other = make(net=None), make(), make(seed=1)
    for trainer in (one, same, other):
        trainer.run()
    assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(one), weights(other))


@pytest.mark.parametrize("micro_batches", [2, 5, 12])
def test_accumulation_equals_the_whole_batch(micro_batches):
    """Also for parts of unequal size (12 in 5 parts). Float64, so that only the order of the sums differs."""
    trainers = []
    for parts in (1, micro_batches):
        trainer = make(
            net=Net().double(), data=lambda step: (batch(step)[0].double(), None, range(12)), micro_batches=parts
        )
        trainer.model.load_state_dict(
            {k: torch.linspace(-1, 1, v.numel()).reshape(v.shape) for k, v in trainer.model.state_dict().items()}
        )
        trainer.run()
        trainers.append(trainer)
    torch.testing.assert_close(*map(weights, trainers), rtol=1e-6, atol=1e-6)  # losses are handed over in float32


def test_the_global_generator_is_left_alone():
    make(steps=1).run()  # first use of anything that draws once
    torch.manual_seed(5)
    expected = torch.rand(3)
    trainer = make(net=Net(dropout=0.5))
    torch.manual_seed(5)
    trainer.run()
    assert torch.equal(torch.rand(3), expected)


def test_resume_is_exact_also_with_dropout_and_a_window_cut_in_two(tmp_path):
    settings = {"steps": 30, "log": 10, "checkpoint": 7, "max_skips": 3, "warmup": 5, "decay": "cosine"}
    whole = make(net=Net(dropout=0.3), writers=[JSONLWriter(tmp_path / "whole.jsonl")], **settings)
    torch.manual_seed(1)
    start = {k: v.clone() for k, v in whole.model.state_dict().items()}
    whole.run()
    runs = []
    for stop_after in (16, None):

        def data(step, stop_after=stop_after):
            if step == stop_after:
                raise KeyboardInterrupt  # dies with the lines of step 10 and the checkpoint of step 14 written
            return batch(step)

        trainer = make(net=Net(dropout=0.3), data=data, checkpoints=CheckpointStore(tmp_path, say=lambda m: None),
                       writers=[JSONLWriter(tmp_path / "parts.jsonl")], **settings)  # fmt: skip
        trainer.model.load_state_dict(start)
        trainer.ema.model.load_state_dict(start)
        if stop_after:
            with pytest.raises(KeyboardInterrupt):
                trainer.run()
        else:
            trainer.run()
            assert "Going on from" in trainer.said[0] and "step 14 of 30" in trainer.said[0]
        runs.append(trainer)
    assert torch.equal(weights(runs[1]), weights(whole))
    assert timeless(tmp_path / "parts.jsonl") == timeless(tmp_path / "whole.jsonl")


def timeless(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "samples_per_second")} for line in lines]


def test_bf16_only_inside_the_network():
    seen = []

    class Watched(Net):
        def forward(self, x, t):
            out = super().forward(x, t)
            seen.append((self.network[0].seen, t.dtype, out.dtype))
            return out

    net = Watched()
    net.network[0].register_forward_hook(lambda module, args, out: setattr(module, "seen", out.dtype))
    plain, mixed = make(steps=100), make(net=net, steps=100, precision="bf16")
    plain.run()
    mixed.run()
    assert set(seen) == {(torch.bfloat16, torch.float32, torch.float32)}
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert not net.network._forward_pre_hooks, "the hooks stay inside run()"
    torch.testing.assert_close(objective_mean(plain), objective_mean(mixed), rtol=0.1, atol=0.05)


def objective_mean(trainer):
    values = ValidationLoss(objective, [(batch(999)[0], None)] * 20)
    return torch.tensor(values.evaluate(trainer.ema.model)["val/loss"])


# What goes wrong


def broken_at(bad_steps, trainer_box, value=float("nan")):
    def loss(model, x0, *, noise, **cond):
        losses = objective(model, x0, noise=noise)
        return (
            losses * torch.where(torch.arange(len(x0)) == 3, value, 1.0)
            if trainer_box[0].state.step in bad_steps
            else losses
        )

    return loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_loss_is_skipped_counted_and_reported(value):
    box, lines, seen = [], Lines(), {}
    trainer = make(loss=broken_at({4}, box, value), log=1, writers=[lines],
                   actions=[(1, lambda state: seen.update({state.step: weights(trainer).clone()}))])  # fmt: skip
    box.append(trainer)
    result = trainer.run()
    assert result.status == "done" and result.skipped == 1
    assert torch.equal(seen[4], seen[5]) and not torch.equal(seen[5], seen[6])
    assert trainer.ema.num_updates == 19
    assert len(trainer.said) == 2 and "Step 4 skipped" in trainer.said[0]
    assert "1 of 12 samples (first: the one at position 3, t = " in trainer.said[0]
    assert lines.lines[4][1]["loss"] is None and lines.lines[5][1]["loss"] > 0
    assert lines.lines[3][1]["skipped"] == 0 and lines.lines[4][1]["skipped"] == 1


def test_the_first_bad_layer_is_named():
    class Breaks(nn.SiLU):
        def forward(self, x):
            return super().forward(x) / (0.0 if trainer.state.step == 2 else 1.0)

    net = Net()
    net.network[1] = Breaks()
    trainer = make(net=net)
    trainer.run()
    assert "first layer with such an output: network.1 (Breaks)" in trainer.said[0]


def test_a_bad_gradient_with_a_good_loss_is_skipped():
    def loss(model, x0, *, noise, **cond):
        losses = objective(model, x0, noise=noise)
        zero = next(model.parameters()).flatten()[0] * 0.0
        return losses + (zero.sqrt() if trainer.state.step == 1 else 0.0)  # value 0, derivative 0 * inf

    trainer = make(loss=loss)
    assert trainer.run().skipped == 1
    assert "the gradient is not" in trainer.said[0] and "network.0.weight" in trainer.said[0]
    assert torch.isfinite(weights(trainer)).all()


def test_too_many_in_a_row_stop_the_run_and_leave_the_checkpoint(tmp_path):
    box, store = [], CheckpointStore(tmp_path)
    bad = {3, 4, *range(12, 30)}
    trainer = make(loss=broken_at(bad, box), max_skips=5, checkpoint=10, checkpoints=store, steps=100)
    box.append(trainer)
    with pytest.raises(
        TrainingDiverged, match=r"Step 16 skipped: loss nan.*number 5 in a row.*step_00000010.pt.*lower learning rate"
    ):
        trainer.run()
    saved = store.load_newest()
    assert saved.step == 10 and saved.progress["skipped"] == 2
    assert all(torch.isfinite(value).all() for value in saved.model.values())


def test_a_row_of_bad_steps_writes_no_checkpoints(tmp_path):
    """Else the weights from before the trouble would be pushed out by later ones."""
    box, store = [], CheckpointStore(tmp_path, keep=2)
    trainer = make(
        loss=broken_at(set(range(9, 99)), box), max_skips=20, checkpoint=2, checkpoints=store, steps=99
    )
    box.append(trainer)
    with pytest.raises(TrainingDiverged):
        trainer.run()
    assert [path.name for path in store.files()] == ["step_00000006.pt", "step_00000008.pt"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    def spoil(state):
        if state.step == 10:
            next(state.model.parameters()).data[0, 0] = float("nan")

    store = CheckpointStore(tmp_path)
    trainer = make(actions=[(1, spoil)], checkpoint=5, checkpoints=store)
    with pytest.raises(
        TrainingDiverged, match=r"At step 20 the weights are not finite.*network.0.weight.*step_00000010.pt"
    ):
        trainer.run()
    assert store.load_newest().step == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number):
    def data(step):
        if step == 7:
            os.kill(os.getpid(), number)
        return batch(step)

    before = signal.getsignal(number)
    trainer = make(data=data, checkpoints=CheckpointStore(tmp_path))
    result = trainer.run()
    assert (result.status, result.step) == ("interrupted", 8)
    assert "Interrupted at step 8 of 20." in trainer.said[-1] and "run the same command again" in trainer.said[-1]
    assert signal.getsignal(number) is before
    again = make(checkpoints=CheckpointStore(tmp_path))
    assert again.run().status == "done"
    whole = make()
    whole.run()
    assert torch.equal(weights(again), weights(whole))


def test_the_wall_clock_cap_counts_the_whole_run_and_says_so(tmp_path):
    trainer = make(steps=10**6, max_seconds=0.2, checkpoints=CheckpointStore(tmp_path))
    result = trainer.run()
    assert result.status == "cut short" and 0 < result.step < 10**6
    assert "cut short by max_seconds=0.2" in trainer.said[-1]
    again = make(steps=10**6, max_seconds=0.2, checkpoints=CheckpointStore(tmp_path))
    assert again.run().step == result.step, "the time is used up"


def test_actions_validation_and_metrics(tmp_path):
    held_out = [(batch(1000)[0], None), (batch(1001)[0], None)]
    validation = ValidationLoss(
        objective, held_out, log_snr=lambda t: 2 * torch.log((1 - t) / t), edges=(-2.0, 2.0), repeats=3
    )
    calls = []
    trainer = make(steps=25, log=10, writers=[JSONLWriter(tmp_path / "metrics.jsonl")],
                   actions=[(10, validation), (0, lambda state: calls.append(state.step)),
                            (100, lambda state: calls.append(-state.step))])  # fmt: skip
    trainer.run()
    assert calls == [-25], "every = 0: never; every = 100: after the last step"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 10, 20, 20, 25, 25]
    assert lines[0].keys() >= {"step", "time", "loss", "lr", "grad_norm", "samples", "skipped", "samples_per_second"}
    names = {"loss", "loss/logsnr<-2", "loss/logsnr-2..2", "loss/logsnr>2"}
    assert lines[1].keys() == {"step", *(f"{prefix}/{name}" for prefix in ("val", "val_raw") for name in names)}
    assert validation(trainer.state) == validation(trainer.state), "fixed noise, fixed times"
    losses, levels = validation.samples(trainer.model)
    assert losses.shape == levels.shape == (72,)


@pytest.mark.parametrize("every, at", [(1, 1), (10, 10), (100, 25)])
def test_a_failing_action_is_reported_and_costs_nothing(tmp_path, every, at):
    def picture(state):
        assert state.step < at or store.load_newest().step == at, "the checkpoint comes first"
        raise ValueError("no room for the picture")

    store = CheckpointStore(tmp_path)
    trainer = make(steps=25, actions=[(every, picture)], checkpoint=at, checkpoints=store)
    assert trainer.run().status == "done" and store.load_newest().step == 25
    assert any(f"Step {at}: the action" in said and "no room for the picture" in said for said in trainer.said)
    assert trainer.model.training
    whole = make(steps=25)
    whole.run()
    assert torch.equal(weights(trainer), weights(whole))


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is done."""


@pytest.mark.parametrize("step", [5, 10, 20, 25])
@pytest.mark.parametrize("moment", ["before the line", "before the actions", "between the actions", "at the end"])
def test_killed_between_the_checkpoint_and_what_is_due_after_it(tmp_path, step, moment):
    """Nothing is doubled or lost: at 20 line, actions and checkpoint coincide, at 25 the run ends."""
    order = ["before the line", "before the actions", "between the actions", "at the end"]
    calls = []

    def run(folder, dying):
        class Writer(JSONLWriter):
            def write(self, at, values):
                if dying and at == step and "lr" in values and moment == order[0]:
                    raise Killed
                super().write(at, values)

        def first(state):
            calls.append(state.step)
            if dying and state.step == step and moment == order[1]:
                raise Killed
            return {"first": float(next(state.ema.model.parameters()).detach().sum())}

        def second(state):
            if dying and state.step == step and moment == order[2]:
                raise Killed
            return {"second": float(next(state.model.parameters()).detach().sum())}

        def last(state):
            if dying and state.step == step and moment == order[3]:
                raise Killed

        trainer = make(
            net=Net(dropout=0.3), steps=25, log=10, checkpoint=5, decay="cosine",
            actions=[(5, first), (10, second), (1, last)], checkpoints=CheckpointStore(folder),
            writers=[Writer(folder / "metrics.jsonl")],
        )  # fmt: skip
        trainer.run()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return trainer, [{k: v for k, v in e.items() if k not in ("time", "samples_per_second")} for e in lines]

    whole, expected = run(tmp_path / "whole", False)
    try:
        run(tmp_path / "killed", True)
    except Killed:
        pass
    again, lines = run(tmp_path / "killed", False)
    assert lines == expected
    assert torch.equal(weights(again), weights(whole))
    done = len(calls)
    run(tmp_path / "killed", False)
    assert len(calls) == done, "a finished run does not repeat its actions"


def test_bins_average_to_the_whole():
    trainer = make(steps=5)
    trainer.run()
    validation = ValidationLoss(
        objective, [(batch(5)[0], None)], log_snr=lambda t: 2 * torch.log((1 - t) / t), repeats=8
    )
    losses, levels = validation.samples(trainer.model)
    values = validation.evaluate(trainer.model)
    bins = torch.bucketize(levels, torch.tensor([-6.0, -3.0, 0.0, 3.0, 6.0], dtype=levels.dtype))
    shares = [int((bins == i).sum()) / len(bins) for i in range(6)]
    means = [value for name, value in values.items() if name != "val/loss"]
    assert sum(s * m for s, m in zip([s for s in shares if s], means)) == pytest.approx(values["val/loss"])


def test_class_labels_arrive_as_y_and_prepare_sees_the_noise():
    seen = {}

    def loss(model, x0, *, noise, y):
        seen["y"], seen["x0"] = y, x0
        return objective(model, x0, noise=noise)

    data = lambda step: (torch.zeros(4, 2), torch.arange(4), torch.arange(4))  # noqa: E731
    make(loss=loss, data=data, steps=1, prepare=lambda x, noise: x + noise.uniform(x), micro_batches=2).run()
    assert seen["y"].tolist() == [2, 3] and (seen["x0"] > 0).all()


def test_errors_name_what_to_write():
    with pytest.raises(ValueError, match="one loss per sample"):
        make(loss=lambda model, x0, noise: objective(model, x0, noise=noise).mean()).run()
    with pytest.raises(ValueError, match="12 samples and 3 positions"):
        make(data=lambda step: (batch(step)[0], None, range(3))).run()
    with pytest.raises(ValueError, match="'float32' or 'bf16', not 'fp16'"):
        make(precision="fp16")
    with pytest.raises(ValueError, match="steps=...."):
        make(steps=0)
    frozen = Net().requires_grad_(False)
    with pytest.raises((ValueError, RuntimeError), match="grad"):
        make(net=frozen).run()


def test_progress_line_off_a_terminal(monkeypatch):
    from sde_score.training.progress import TrainingProgress

    monkeypatch.setattr(TrainingProgress.__init__, "__defaults__", (0.0,))
    trainer = make(steps=3, progress=True)
    trainer.run()
    assert trainer.said[0].startswith("step 1 of 3: loss ") and trainer.said[0].endswith("samples/s")


@pytest.mark.parametrize("decay, told", [("cosine", True), ("constant", False)])
def test_a_schedule_cut_short_is_said(tmp_path, decay, told):
    trainer = make(steps=10**6, decay=decay, max_seconds=0.3, checkpoints=CheckpointStore(tmp_path))
    result = trainer.run()
    assert result.status == "cut short"
    last = trainer.said[-1]
    assert ("cosine schedule was cut" in last) == told
    assert (f"--config.training.n_iters={result.step}" in last) == told
