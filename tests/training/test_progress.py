"""What a person is told while a training goes on: by a clock of the test's own."""

from types import SimpleNamespace

import pytest

from sde_score.training import progress


@pytest.fixture
def told(monkeypatch):
    """`told(steps, max_seconds, of)`: what is said when a step takes two seconds, but the first one a minute."""

    def run(steps: int, max_seconds: float | None = None, of: int = 1020) -> list[str]:
        now, said = [0.0], []
        monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
        state = SimpleNamespace(step=0, seconds=0.0)
        trainer = SimpleNamespace(steps=of, state=state, max_seconds=max_seconds, progress=True, say=said.append)
        with progress.TrainingProgress(trainer, interval=1e9) as shown:
            for k in range(steps):
                now[0] += 60.0 if k == 0 else 2.0
                state.step, state.seconds = k + 1, now[0]
                shown.advance(1.0, 8)
        return said

    return run


def test_an_estimate_once_after_twenty_steps(told):
    assert told(19) == []
    assert told(500) == ["2 s a step: about 33 min for the 1,000 steps that are left."]


def test_the_cap_is_told_beforehand(told):
    # 60 + 19 · 2 = 98 s have gone by; 902 are left, for 451 of 1,000 steps
    (line,) = told(40, max_seconds=1000.0)
    assert "max_seconds=1000 leaves time for about 451 of the 1,000 steps" in line and "take 33 min" in line
    assert told(40, max_seconds=1e6) == ["2 s a step: about 33 min for the 1,000 steps that are left."]


def test_nothing_is_left(told):
    assert told(20, of=20) == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(40.2, "40 s"), (90, "1.5 min"), (725, "12 min"), (5400, "1.5 h"), (3 * 86400, "3 days")]
)
def test_durations_in_words(seconds, words):
    assert progress.in_words(seconds) == words
