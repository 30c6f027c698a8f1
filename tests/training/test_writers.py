"""Writers of metrics and messages."""

import builtins
import json

import pytest

from sde_score.training import JSONLWriter, TensorBoardWriter, TextLog


def test_jsonl_appends_and_rewinds(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = JSONLWriter(path)
    writer.rewind(0)
    for step in (10, 20, 30):
        writer.write(step, {"loss": step / 7, "bad": float("nan"), "none": None})
    writer.flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1] == {"step": 20, "loss": 20 / 7, "bad": None, "none": None}
    JSONLWriter(path).rewind(20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]


@pytest.mark.parametrize("tail", ['{"step": 15, "lo', "nonsense\n", '{"step": 15}'])
def test_jsonl_drops_an_unfinished_line(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n' + tail)
    JSONLWriter(path).rewind(99)
    assert path.read_text() == '{"step": 10}\n'


def test_tensorboard_writes_events_past_the_restored_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for restored, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = TensorBoardWriter(tmp_path)
        writer.rewind(restored)
        for step in steps:
            writer.write(step, {"loss": float(restored + step), "none": None})
        writer.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    values = {event.step: event.value for event in events.Scalars("loss")}
    assert values == {1: 1.0, 2: 2.0, 3: 5.0, 4: 6.0}


def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    said = []
    writer = TensorBoardWriter(tmp_path, say=said.append)
    writer.rewind(0)
    writer.write(1, {"loss": 1.0})
    writer.flush()
    assert len(said) == 1 and "pip install tensorboard" in said[0]


def test_text_log(tmp_path, capsys):
    log = TextLog(tmp_path / "log.txt")
    log("Going on from here.")
    assert capsys.readouterr().err == "Going on from here.\n"
    assert (tmp_path / "log.txt").read_text().endswith("Going on from here.\n")
