"""Checkpoints: whole or absent, verified, never executed."""

import errno
import io
import json
import os
import pickle
import re
import resource
import shutil
import subprocess

import pytest
import torch
from torch import nn

from sde_score import files
from sde_score.models.ema import EMA
from sde_score.training import CheckpointError, CheckpointStore, TrainState, load_checkpoint, make_optimizer
from sde_score.training import checkpoint as module
from sde_score.training.checkpoint import DamagedCheckpoint, UnsafeCheckpoint


def make_state(width=4, steps=2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 3))
    ema, optimizer = EMA(model), make_optimizer(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        ema.update(model)
    return TrainState(model, ema, optimizer, step=steps)


def save_steps(store, *steps):
    state = make_state()
    for step in steps:
        state.step = step
        store.save(state.state_dict(config={"sde": "vp", "lr": 0.1}))
    return state


def flatten(tree):
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in flatten(tree[key])]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in flatten(value)]
    return [tree]


def same(a, b):
    a, b = flatten(a), flatten(b)
    return len(a) == len(b) and all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b))


def test_everything_comes_back_bit_for_bit(tmp_path):
    state = make_state()
    state.skipped, state.samples, state.seconds, state.window.loss = 3, 640, 1.25, 0.1
    path = CheckpointStore(tmp_path).save(state.state_dict(config={"sde": "vp"}))
    assert path.name == "step_00000002.pt"
    assert json.loads((tmp_path / "checkpoints" / "latest.json").read_text()) == {"file": path.name, "step": 2}
    other = make_state(steps=1)
    read = load_checkpoint(tmp_path)
    other.load(read)
    assert same(other.state_dict(), state.state_dict())
    assert read.config == {"sde": "vp"} and read.path == path
    assert same(read.weights(), state.ema.model.state_dict()) and same(
        read.weights(ema=False), state.model.state_dict()
    )
    for where in (path, str(tmp_path), tmp_path / "checkpoints"):
        assert load_checkpoint(where).step == 2


def test_the_file_loads_with_weights_only(tmp_path):
    path = CheckpointStore(tmp_path).save(make_state().state_dict(config='{"a": 1}'))
    assert torch.load(path, weights_only=True)["config"] == '{"a": 1}'


def test_settings_of_the_optimizer_stay_as_constructed(tmp_path):
    CheckpointStore(tmp_path).save(make_state().state_dict())
    other = make_state()
    other.optimizer.param_groups[0].update(lr=0.5, betas=(0.5, 0.9))
    other.load(load_checkpoint(tmp_path))
    assert other.optimizer.param_groups[0]["lr"] == 0.5 and other.optimizer.param_groups[0]["betas"] == (0.5, 0.9)


def test_the_newest_are_kept_and_the_permanent(tmp_path):
    store = CheckpointStore(tmp_path, keep=2, permanent_every=4)
    save_steps(store, *range(1, 11))
    assert [module.step_of(path) for path in store.files()] == [4, 8, 9, 10]


@pytest.mark.parametrize("damage", ["truncated", "empty", "byte", "garbage"])
def test_a_damaged_newest_falls_back_and_says_so(tmp_path, damage):
    said = []
    store = CheckpointStore(tmp_path, say=said.append)
    save_steps(store, 1, 2)
    path = store.files()[-1]
    content = bytearray(path.read_bytes())
    if damage == "byte":
        content[content.index(b"data/0") + 200] ^= 1  # inside the first tensor
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "byte": content, "garbage": b"\0" * 5000}[damage]
    )
    assert store.load_newest().step == 1
    assert "step_00000002.pt is damaged" in said[0] and "Falling back" in said[0]
    assert path.exists(), "a reader changes nothing"
    assert store.load_newest(repair=True).step == 1
    assert not path.exists() and path.with_name(path.name + ".damaged").exists()
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(path.with_name(path.name + ".damaged"))
    store.files()[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match="None of the 1 checkpoints"):
        store.load_newest()


def test_every_changed_bit_is_noticed(tmp_path):
    """Of the records, of the archive's headers and its directory, of the padding, of the digest itself."""
    path = CheckpointStore(tmp_path).save(make_state(width=2).state_dict())
    content = path.read_bytes()
    assert torch.load(path, weights_only=True)["format"] == module.FORMAT, "other programs read the file as it is"
    missed = []
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        try:
            if module._verify(io.BytesIO(changed), path):
                missed.append(place)
        except DamagedCheckpoint:
            continue
        path.write_bytes(changed)  # the digest was not recognised: the reader knows that there must be one
        with pytest.raises(DamagedCheckpoint, match="the digest at its end is missing"):
            module.read_checkpoint(path)
    assert not missed
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedCheckpoint):
            module.read_checkpoint(path)
    path.write_bytes(content + b"\n")
    with pytest.raises(DamagedCheckpoint):
        module.read_checkpoint(path)


def test_a_tensor_marked_as_a_folder_is_refused(tmp_path):
    """torch takes such a record as read, and gives whatever lay in memory as weights."""
    path = tmp_path / "step_00000001.pt"
    torch.save({"format": 1, "step": 1, "model": {"w": torch.ones(50)}, "config": None}, path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    while not content[entry + 46 :].startswith(b"step_00000001/data/0"):
        entry = content.index(b"PK\x01\x02", entry + 1)
    content[entry + 38] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match="data/0' is marked as a folder"):
        load_checkpoint(path)


def test_a_file_of_the_first_format_is_read_and_its_lack_of_a_digest_told(tmp_path):
    path, said = tmp_path / "step_00000002.pt", []
    torch.save({"format": 1, **make_state().state_dict(config={"sde": "vp"})}, path)
    read = load_checkpoint(path, say=said.append)
    assert same(read.model, make_state().model.state_dict()) and "no digest" in said[0]
    said.clear()
    load_checkpoint(CheckpointStore(tmp_path).save(make_state().state_dict()), say=said.append)
    assert not said


def test_the_file_alone_is_enough(tmp_path):
    (tmp_path / "run").mkdir()
    path = CheckpointStore(tmp_path / "run").save(make_state().state_dict())
    shutil.copy(path, tmp_path / "elsewhere.pt")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert load_checkpoint(tmp_path / "elsewhere.pt").step == load_checkpoint(tmp_path / "moved").step == 2


@pytest.mark.parametrize(
    "entry, value, words",
    [
        ("step", ..., "'step' is missing; it must be a whole number"),
        ("step", "7", "'step' is of type str"),
        ("model", ..., "'model' is missing"),
        ("model", {"w": 1.0}, "tensors by name"),
        ("ema", [1], "'ema' is of type list"),
        ("ema", {"model": {}}, "num_updates"),
        ("optimizer", {"state": {}}, "param_groups"),
        ("progress", [1], "'progress' is of type list"),
        ("config", 5, "'config' is of type int"),
        ("config", "[" * 100_000, "JSON object"),
        ("config", "[1]", "JSON object"),
    ],
)
def test_an_entry_that_cannot_be_is_named(tmp_path, entry, value, words):
    state = make_state().state_dict(config={"sde": "vp"}) | {"format": 1, entry: value}
    if value is ...:
        del state[entry]
    torch.save(state, tmp_path / "step_00000001.pt")
    with pytest.raises(CheckpointError, match=re.escape(words)) as error:
        load_checkpoint(tmp_path / "step_00000001.pt")
    assert "step_00000001.pt" in str(error.value)


@pytest.mark.parametrize("entry", ["samples", "window", "seconds"])
def test_missing_counters_are_named(tmp_path, entry):
    state = make_state()
    saved = state.state_dict()
    del saved["progress"][entry]
    path = CheckpointStore(tmp_path).save(saved)
    with pytest.raises(CheckpointError, match=f"{path}.*progress.*{entry}"):
        state.load(load_checkpoint(tmp_path))


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_unexecuted(tmp_path, zipped):
    store = CheckpointStore(tmp_path)
    save_steps(store, 1)
    target, path = tmp_path / "executed", tmp_path / "checkpoints" / "step_00000005.pt"
    if zipped:
        torch.save({"format": 1, "step": 5, "model": Bomb(str(target))}, path)
        with pytest.raises(UnsafeCheckpoint, match="nothing in it was executed"):
            store.load_newest()
    else:
        path.write_bytes(pickle.dumps(Bomb(str(target))))
        assert store.load_newest().step == 1
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not target.exists()


def test_other_files_are_told_apart(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of a training run"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save({"format": 99}, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match="newer version"):
        load_checkpoint(tmp_path / "newer.pt")
    with pytest.raises(FileNotFoundError, match="run directory"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="--workdir"):
        load_checkpoint(tmp_path)


def test_another_model_is_refused_with_the_differing_keys(tmp_path):
    store = CheckpointStore(tmp_path)
    save_steps(store, 1)
    other = make_state(width=5)
    other.model.append(nn.Linear(3, 3))
    before = [p.clone() for p in other.model.parameters()]
    told = r"only in the model: 2.weight, 2.bias; of another shape: 0.weight \(model \(5, 3\), checkpoint \(4, 3\)\)"
    with pytest.raises(CheckpointError, match=told):
        other.load(store.load_newest())
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.parameters()))
    without = make_state()
    without.model = nn.Sequential(without.model[0])
    with pytest.raises(CheckpointError, match="only in the checkpoint: 1.weight, 1.bias"):
        without.load(store.load_newest())


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    store = CheckpointStore(tmp_path)
    save_steps(store, 1)
    leftover = tmp_path / "checkpoints" / ".step_00000002.pt.tmp"
    leftover.write_bytes(b"half")
    assert store.load_newest(repair=True).step == 1
    assert not leftover.exists()


# A full disk


def check_full(store, error):
    assert re.search(r"no room on the disk .*newest: step_00000001.pt.*run the same command again", str(error.value))
    assert [path.name for path in store.files()] == ["step_00000001.pt"]
    assert not list(store.folder.glob(".*"))
    assert store.load_newest().step == 1


def test_a_full_disk_by_a_failing_write(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    save_steps(store, 1)

    class Full(io.FileIO):
        written = 0

        def write(self, data):
            self.written += memoryview(data).nbytes
            if self.written > 2000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(files, "open", lambda path, mode: Full(path, mode), raising=False)
    with pytest.raises(CheckpointError) as error:
        save_steps(store, 2)
    check_full(store, error)


def test_a_full_disk_by_a_limit_of_the_system(tmp_path):
    store = CheckpointStore(tmp_path)
    save_steps(store, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(CheckpointError) as error:
            save_steps(store, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check_full(store, error)


def test_a_full_disk_on_a_small_tmpfs(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    ).returncode:  # fmt: skip
        pytest.skip("mounting a tmpfs needs rights that this user has not")
    try:
        store = CheckpointStore(disk, keep=9)
        save_steps(store, 1)
        (disk / "ballast").write_bytes(b"\0" * (shutil.disk_usage(disk).free - 4096))
        with pytest.raises(CheckpointError) as error:
            save_steps(store, 2)
        check_full(store, error)
        (disk / "ballast").unlink()
        save_steps(store, 2)
        assert store.load_newest().step == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="No earlier checkpoint exists. Check that the run directory"):
        save_steps(CheckpointStore(tmp_path / "file"), 1)
