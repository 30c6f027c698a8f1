"""Weights for others."""

import json

import pytest
import torch

from sde_score.config import from_json
from sde_score.data import DataInfo
from sde_score.run import load
from sde_score.run.build import build_model
from sde_score.run.export import export


def test_any_run_as_safetensors(cli, digits_run, tmp_path):
    """The averaged weights, and all that is needed to build the model around them."""
    safetensors = pytest.importorskip("safetensors")
    file = tmp_path / "weights.safetensors"
    assert cli("export", f"--workdir={digits_run}", f"--to={file}", "--json").json["file"] == str(file)
    run, last = load(digits_run), load(digits_run, ema=False)
    with safetensors.safe_open(file, framework="pt") as opened:
        facts, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}
    assert facts["step"] == "20" and from_json(facts["config"]) == run.config
    model = build_model(from_json(facts["config"]), DataInfo.from_dict(json.loads(facts["info"])))
    model.load_state_dict(tensors)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), run.model.state_dict().values()))
    assert any(not torch.equal(tensors[name], tensor) for name, tensor in last.model.state_dict().items())
    from safetensors.torch import load_file

    again = load_file(run.export(tmp_path / "again.safetensors"))  # from Python
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_other_formats_are_listed(digits_run, tmp_path):
    run = load(digits_run)
    with pytest.raises(ValueError, match=r"'weights.onnx'.*\.safetensors: .*\.pth: "):
        export(run, tmp_path / "weights.onnx")
    with pytest.raises(ValueError, match=r"UNet has no original counterpart.*\.safetensors: .* of any run"):
        export(run, tmp_path / "weights.pth")
    assert not [*tmp_path.iterdir()]
