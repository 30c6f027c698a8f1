"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sde_score.files import first_line
from sde_score.models.ema import EMA
from sde_score.protocols import NoiseFn
from sde_score.tensors import mix_seed
from sde_score.training import distributed
from sde_score.training.batch import Share
from sde_score.training.checkpoint import read_checkpoint
from sde_score.training.optim import Schedule
from sde_score.training.precision import autocast_network
from sde_score.training.progress import TrainingProgress
from sde_score.training.sentinel import TrainingDiverged, diagnose_gradients, diagnose_losses
from sde_score.training.settings import Cadence, Limits, Record, StepSettings
from sde_score.training.signals import StopSignal
from sde_score.training.state import TrainState
from sde_score.training.writers import TextLog

Batch = Callable[[int], tuple[Tensor, Any, Sequence[int]]]

# Keeps dropout apart from the noise of samples, (seed, step, position); no number of a step or of a sample gets so far.
_DROPOUT = 0xD07 << 40

ADVICE = (
    "Things to try: a lower learning rate, a longer warm-up, a smaller grad_clip, precision='float32', a larger t_min, "
    "and a look at the data for NaN."
)


@dataclass(frozen=True)
class TrainResult:
    """How `Trainer.run` ended: `status` is "done", "cut short" (`max_seconds`) or "interrupted" (Ctrl-C, SIGTERM)."""

    status: str
    step: int
    skipped: int
    seconds: float


def per_sample_loss(
    objective: Callable[..., Tensor], model: nn.Module, x0: Tensor, noise: NoiseFn, cond: Mapping[str, Tensor]
) -> Tensor:
    """The objective's loss of each sample, `(B,)`, in float32.

    Raises:
        ValueError: if the objective returns another shape.
    """
    losses = objective(model, x0, noise=noise, **cond)
    if losses.shape != x0.shape[:1]:
        raise ValueError(
            f"An objective returns one loss per sample, shape {tuple(x0.shape[:1])}; {type(objective).__name__} "
            f"returned {tuple(losses.shape)}. Reduce over all axes but the first."
        )
    return losses.float()


class LossModule(nn.Module):
    """Model and objective as one module, whose output is the loss of each sample.

    Several processes exchange the gradients of a module's `forward`; an objective may call any method of the model.
    """

    def __init__(self, model: nn.Module, objective: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, x0: Tensor, noise: NoiseFn, cond: Mapping[str, Tensor]) -> Tensor:
        return per_sample_loss(self.objective, self.model, x0, noise, cond)


class Trainer:
    """Train a score model: `Trainer(model, ema, objective, optimizer, batch, Schedule(steps=...)).run()`.

    The noise of sample i in step k is a function of (seed, k, i), so a run depends neither on the number of processes
    nor on the number of micro-batches (up to the order of sums, and to dropout), and a resumed run repeats the
    uninterrupted one, bit for bit on the CPU.

    Args:
        model: the module to train, on its device.
        ema: its moving average, or None.
        objective: `objective(model, x0, noise=noise, **cond)` -> loss of each sample, `(B,)`.
        optimizer: any torch optimiser; its learning rate is the peak of the schedule. See `make_optimizer`.
        batch: `batch(step)` -> `(x, cond, positions)`, or an object with a method `batch` like that. `x` of shape
            `(B, *)` is this process's share of the step's samples, `positions` are the B numbers that name their noise,
            `cond` is a mapping of tensors `(B, *)`, keyword arguments of the model, or class labels `(B,)` (given as
            `y`), or None.
        schedule: how many steps, and the course of the learning rate.
        seed: of all noise.
        prepare: `prepare(x, noise)` -> `x0`, for scaling and dequantisation: a codec's `encode`.
        step: how a step is worked out.
        limits: what ends the run before its last step.
        cadence: what happens every so many steps.
        record: where checkpoints, metrics and messages go.

    Raises:
        ValueError: for settings that the model cannot serve.
    """

    def __init__(
        self,
        model: nn.Module,
        ema: EMA | None,
        objective: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        batch: Batch | Any,
        schedule: Schedule,
        *,
        seed: int = 0,
        prepare: Callable[[Tensor, Any], Tensor] | None = None,
        step: StepSettings | None = None,
        limits: Limits | None = None,
        cadence: Cadence | None = None,
        record: Record | None = None,
    ) -> None:
        step, limits = step or StepSettings(), limits or Limits()
        cadence, record = cadence or Cadence(), record or Record()
        step.check_model(model)
        self.model, self.ema, self.optimizer = model, ema, optimizer
        self.batch = getattr(batch, "batch", batch)
        self.prepare = prepare if prepare is not None else lambda x, noise: x
        self.schedule, self.steps, self.seed, self.settings = schedule, schedule.steps, seed, step
        self.max_seconds, self.max_skips = limits.max_seconds, limits.max_skips
        self.log_every, self.checkpoint_every = cadence.log, cadence.checkpoint
        self.checkpoints, self.config = record.checkpoints, record.config
        main = distributed.is_main()
        self.actions = tuple(cadence.actions) if main else ()
        self.writers = tuple(record.writers) if main else ()
        self.say = (record.say or TextLog()) if main else (lambda message: None)
        self.progress = record.progress and main
        self.device = next(model.parameters()).device
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.losses = LossModule(model.compiled() if step.compile else model, objective)
        self.state = TrainState(model, ema, optimizer, codec=record.codec)

    def run(self) -> TrainResult:
        """Go on from the newest checkpoint, or begin; train to the end.

        Raises:
            TrainingDiverged: when loss or gradient were not finite in `max_skips` steps in a row.
            CheckpointError: when a checkpoint cannot be written, or does not fit this model.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        in_precision = autocast_network(self.losses.model, self.settings.precision)
        with torch.random.fork_rng(devices), StopSignal() as stop, in_precision:
            self.resume()
            parallel = distributed.wrap(self.losses, self.device)  # copies the main process's weights to the others
            if self.ema is not None:
                distributed.copy_from_main(self.ema.model)
            with TrainingProgress(self) as progress:
                status = self._loop(parallel, stop, progress)
        return TrainResult(status, self.state.step, self.state.skipped, self.state.seconds)

    def _loop(self, parallel: nn.Module, stop: StopSignal, progress: TrainingProgress) -> str:
        state = self.state
        self.model.train()
        if not state.closed:  # killed after the checkpoint of this step, before its line and its actions were done
            self.set_learning_rate(state.step - 1)
            self.close_step(None)
        started = time.monotonic() - state.seconds
        cap = math.inf if self.max_seconds is None else self.max_seconds
        if state.step < self.steps and state.seconds >= cap:
            return self._ended_early(late=True)
        late = False

        def wants_stop() -> bool:
            nonlocal late
            late = distributed.is_main() and time.monotonic() - started >= cap
            return late or stop.asked

        while state.step < self.steps:
            loss, samples, stopping = self.advance(parallel, wants_stop)
            state.seconds = time.monotonic() - started
            progress.advance(loss, samples)
            state.closed = False
            # The checkpoint comes first, so that nothing that fails after it costs it. It says that its step is not
            # closed: a run that goes on from it drops the lines of that step, and does again what is due after it.
            # In a row of failing steps none is written, so that the weights from before it are not pushed out.
            due = _due(state.step, self.checkpoint_every) and not state.skipped_in_a_row
            if stopping or due or state.step == self.steps:
                self.save()
            self.close_step(progress)
            if stopping and state.step < self.steps:
                return self._ended_early(late and not stop.asked)
        self.say(f"Training done: {state.step} steps in {state.seconds:.0f} s, {state.skipped} skipped.")
        return "done"

    def close_step(self, progress: TrainingProgress | None) -> None:
        """The line of the metrics and the actions that are due after a step. `progress` knows the speed; None: a run
        that goes on does not.
        """
        state = self.state
        if state.step == self.steps or _due(state.step, self.log_every):
            self.log(None if progress is None else progress.take_rate())
        self.act()
        state.closed = True
        if state.step == self.steps:
            self.save()  # once more, so that a finished run that is started again does not repeat its last pictures

    def advance(self, parallel: nn.Module, wants_stop: Callable[[], bool] = lambda: False) -> tuple[float, int, bool]:
        """One step of training; the loss, the number of samples and whether any process wants to stop.

        `parallel` is `losses`, or what wraps it for several processes; `wants_stop` is asked once, after the gradient.
        """
        state = self.state
        self.seed_dropout()
        share = Share.of(*self.batch(state.step), self.device)
        self.set_learning_rate(state.step)
        loss_sum = self.backward(parallel, share)
        loss, grad_norm, samples, stopping = self.gather(loss_sum, len(share), wants_stop())
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.scale_gradients(grad_norm, samples)
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.model)
            state.window.add(loss, grad_norm)
            state.skipped_in_a_row = 0
        else:
            self.skip(share, loss, grad_norm)
        state.step += 1
        state.samples += samples
        return loss, samples, stopping

    # The parts of a step, in their order.

    def seed_dropout(self) -> None:
        """Seed torch's own generator by step and process, so that a resumed run repeats the dropout."""
        seed = mix_seed(self.seed, _DROPOUT, self.state.step, distributed.rank())
        # `torch.manual_seed` also reaches for accelerators, which takes 0.2 ms where there is none
        (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)

    def set_learning_rate(self, step: int) -> None:
        """Peak rate of each parameter group times the factor of the schedule."""
        factor = self.schedule(step)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates):
            group["lr"] = peak * factor

    def sample_losses(self, module: Callable[..., Tensor], share: Share) -> Tensor:
        """The loss of each sample, `(B,)`; `module` is called as a `LossModule`."""
        noise = share.noise(self.seed, self.state.step)
        none = getattr(getattr(self.model, "network", self.model), "no_condition", None)
        told = share.without_some_conditions(self.settings.condition_dropout, self.seed, self.state.step, none)
        return module(self.prepare(share.x, noise), noise, told.cond)

    def backward(self, parallel: nn.Module, share: Share) -> Tensor:
        """Gradients of the *summed* loss, micro-batch by micro-batch; returns the sum.

        Sums add up whatever the parts and shares are; `scale_gradients` divides once, by the size of the global batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        parts = share.cut(self.settings.micro_batches)
        for i, part in enumerate(parts):
            with distributed.no_sync(parallel) if i + 1 < len(parts) else nullcontext():
                loss = self.sample_losses(parallel, part).sum()
                loss.backward()
            total += loss.detach()
        return total

    def gather(self, loss_sum: Tensor, count: int, stop: bool) -> tuple[float, float, int, bool]:
        """Over all processes: mean loss, norm of its gradient, number of samples, whether anyone wants to stop."""
        sums = distributed.all_sum(torch.stack([loss_sum, *loss_sum.new_tensor([count, stop])]))
        # DDP has averaged the gradients of each process's sum; times world / count that is the gradient of the mean.
        norm = torch.nn.utils.get_total_norm(self.gradients()) * (distributed.world_size() / sums[1])
        numbers = torch.stack([sums[0] / sums[1], norm.float(), sums[1], sums[2]])
        loss, grad_norm, samples, stopping = numbers.tolist()  # the one place in a step that waits for the device
        return loss, grad_norm, int(samples), stopping > 0

    def gradients(self) -> list[Tensor]:
        """The gradients there are; frozen parameters have none."""
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            raise ValueError(
                "No parameter of the optimiser received a gradient: was it built from model.parameters(), and does the "
                "loss use the model?"
            )
        return gradients

    def scale_gradients(self, grad_norm: float, samples: int) -> None:
        """Make of the gradient of the sum that of the mean, and clip it.

        The mean's is multiplied by min(1, c / (norm + 1e-6)), c = `grad_clip`, as published; 0 or less: no clipping.
        """
        factor = distributed.world_size() / samples
        if self.settings.grad_clip > 0:
            factor *= min(1.0, self.settings.grad_clip / (grad_norm + 1e-6))
        torch._foreach_mul_(self.gradients(), factor)

    def skip(self, share: Share, loss: float, grad_norm: float) -> None:
        """Count and report a step whose loss or gradient is not finite; weights, EMA and optimiser stay as they are."""
        state = self.state
        state.skipped += 1
        state.skipped_in_a_row += 1
        stopping = state.skipped_in_a_row >= self.max_skips
        if state.skipped_in_a_row > 3 and not stopping:
            return  # the first few reports say it all
        try:
            reason = self.explain(share)
        except Exception as error:  # an objective that cannot be observed must not end the run
            reason = f"looking for the cause failed ({error!r})"
        told = f"Step {state.step} skipped: loss {loss:g}, gradient norm {grad_norm:g}; {reason}."
        if stopping:
            raise TrainingDiverged(
                f"{told} That was step number {state.skipped_in_a_row} in a row, after {state.seconds:.0f} s; training "
                f"stops (max_skips={self.max_skips}). {self._where_saved()} {ADVICE}"
            )
        self.say(f"{told} {state.skipped} skipped so far; {self.max_skips} in a row stop the run.")

    def explain(self, share: Share) -> str:
        """Repeat the forward pass of a failed step under observation; see `diagnose_losses`."""
        self.seed_dropout()
        for part in share.cut(self.settings.micro_batches):

            def losses(probe: Any, part=part) -> Tensor:
                return self.sample_losses(lambda *args: per_sample_loss(self.losses.objective, probe, *args), part)

            told = diagnose_losses(self.model, losses, part.positions)
            if told:
                return told
        return diagnose_gradients(self.model)

    # What happens between the steps.

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one; the main process chooses, and all load the same file."""
        newest = None
        if self.checkpoints is not None and distributed.is_main():
            newest = self.checkpoints.load_newest(repair=True)
        path = distributed.share(newest.path if newest is not None else None)
        if path is not None:
            checkpoint = newest if newest is not None else read_checkpoint(path, say=self.say)
            self.state.load(checkpoint)
            self.say(f"Going on from {checkpoint.path} at step {self.state.step} of {self.steps}.")
        for writer in self.writers:
            writer.rewind(self.state.step if self.state.closed else self.state.step - 1)

    def log(self, rate: float | None) -> None:
        """One line of metrics: means since the last line, and counters."""
        state = self.state
        values = {
            "time": round(state.seconds, 3),
            **state.window.means(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "samples": state.samples,
            "skipped": state.skipped,
            "samples_per_second": None if rate is None else round(rate, 2),
        }
        for writer in self.writers:
            writer.write(state.step, values)

    def act(self) -> None:
        """Run the actions that are due, and put the model back into training mode after them. One that fails is
        reported, and training goes on.
        """
        step = self.state.step
        for every, action in self.actions:
            if (step == self.steps and every > 0) or _due(step, every):
                values = None
                try:
                    values = action(self.state)
                except Exception as error:
                    if self.checkpoints is not None:
                        self.checkpoints.run_dir.check()  # a run directory that is gone ends the training
                    name = getattr(action, "__qualname__", type(action).__name__)
                    self.say(f"Step {step}: the action {name} failed, training goes on ({first_line(error)}).")
                finally:
                    self.model.train()
                if values:
                    for writer in self.writers:
                        writer.write(step, values)

    def save(self) -> None:
        """Write a checkpoint (main process only), unless that could push the last good one out.

        Raises:
            TrainingDiverged: when a weight is not finite, which no later step can mend.
        """
        for writer in self.writers:
            writer.flush()  # before the checkpoint, which relies on the lines up to its step
        if not distributed.is_main() or self.checkpoints is None:
            return
        bad = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        if bad:
            raise TrainingDiverged(
                f"At step {self.state.step} the weights are not finite, in {len(bad)} parameters (first: {bad[0]}); "
                f"they are not saved and training stops. {self._where_saved()} {ADVICE}"
            )
        self.checkpoints.save(self.state.state_dict(config=self.config))

    def _ended_early(self, late: bool) -> str:
        state = self.state
        if late:
            self.say(
                f"Training was cut short by max_seconds={self.max_seconds:g} at step {state.step} of {self.steps}. "
                f"{self._where_saved()} To train on, run the same command with a larger max_seconds."
                f"{self._schedule_cut()}"
            )
            return "cut short"
        self.say(
            f"Interrupted at step {state.step} of {self.steps}. {self._where_saved()} To go on, run the same command "
            "again."
        )
        return "interrupted"

    def _schedule_cut(self) -> str:
        """What it means for a decaying learning rate that the run ends here."""
        state, rate = self.state, self.schedule(max(self.state.step - 1, 0))
        if self.schedule.decay == "constant" or not state.step:
            return ""
        return (
            f" The {self.schedule.decay} schedule was cut with it: the learning rate still stands at {rate:.0%} of its "
            f"peak, and the samples are worse for that. At this speed --config.training.n_iters={state.step} would "
            "have run it to its end."
        )

    def _where_saved(self) -> str:
        files = self.checkpoints.files() if self.checkpoints is not None else []
        return f"The newest checkpoint is {files[-1]}." if files else "No checkpoint was saved."


def _due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens now; 0: never."""
    return every > 0 and step % every == 0
