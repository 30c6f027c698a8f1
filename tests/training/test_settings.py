"""Settings of a run: what cannot be is refused where it is written, and what is not written is as documented."""

import pytest
import torch

from sde_score.training import Cadence, Limits, Schedule, StepSettings


@pytest.mark.parametrize("make, name", [(StepSettings, "micro_batches"), (Limits, "max_skips"), (Cadence, "log")])
def test_counts_begin_at_one(make, name):
    assert getattr(make(**{name: 1}), name) == 1
    for wrong in (0, -3):
        with pytest.raises(ValueError, match=rf"{make.__name__}\({name}=\.\.\.\)` must be at least 1, got {wrong}"):
            make(**{name: wrong})


def test_what_would_switch_something_off_in_silence():
    for make, words in (
        (lambda: Limits(max_seconds=0), r"Limits\(max_seconds=...\)` must be above 0, or None"),
        (lambda: Limits(max_seconds=float("nan")), "above 0"),
        (lambda: Cadence(checkpoint=-1), r"Cadence\(checkpoint=...\)` must be at least 0"),
        (lambda: Schedule(5, warmup=-1), r"Schedule\(warmup=...\)` must be at least 0"),
        (lambda: StepSettings(grad_clip=float("nan")), "0 for no clipping"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    assert Cadence(checkpoint=0).checkpoint == 0 and Schedule(5, warmup=0)(0) == 1


@pytest.mark.parametrize("wrong", [-0.1, 1.0, float("nan")])
def test_a_share_of_dropped_conditions_is_less_than_all(wrong):
    with pytest.raises(ValueError, match="0 <= p < 1"):
        StepSettings(condition_dropout=wrong)


def test_a_network_that_knows_no_condition_cannot_drop_one():
    class Knows(torch.nn.Module):
        def no_condition(self, cond):
            return cond

    for settings in (StepSettings(), StepSettings(condition_dropout=0.1)):
        settings.check_model(Knows())
    StepSettings().check_model(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear has no method `no_condition"):
        StepSettings(condition_dropout=0.1).check_model(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear has none"):
        StepSettings(compile=True).check_model(torch.nn.Linear(2, 2))


def test_what_is_not_written_is_as_documented():
    step, limits, cadence = StepSettings(), Limits(), Cadence()
    assert (step.grad_clip, step.micro_batches, step.precision) == (1.0, 1, "float32")
    assert not step.compile and step.condition_dropout == 0
    assert (limits.max_seconds, limits.max_skips) == (None, 20)
    assert (cadence.log, cadence.checkpoint, list(cadence.actions)) == (100, 1000, [])
    schedule = Schedule(1)
    assert (schedule.warmup, schedule.decay, schedule.published_warmup) == (0, "constant", False)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Schedule(0)
