"""From an original checkpoint to a run directory."""

import json

import numpy as np
import pytest
import torch

from sde_score.config import load_config
from sde_score.models.official import OfficialCheckpointError, read_official
from sde_score.run.export import export
from sde_score.run.import_official import import_official
from sde_score.run.run import load


@pytest.fixture
def imported(golden_dir, tmp_path):
    """The recorded small checkpoint: a VE model like ve/cifar10_ncsnpp_continuous, for 8 x 8 pixels."""
    config = load_config("published:ve/cifar10_ncsnpp_continuous")
    options = {"centered": False, "scale_by_sigma": True, "image_size": 8}
    run = import_official(golden_dir / "checkpoint_ncsnpp_small.pth", tmp_path / "run", config, **options)
    return run, tmp_path / "run"


def test_imported_run_gives_the_recorded_outputs(golden_dir, imported):
    run, workdir = imported
    recorded = np.load(golden_dir / "checkpoint_ncsnpp_small.npz")
    x, sigma = torch.from_numpy(recorded["x"]), torch.from_numpy(recorded["cond"])
    t = torch.log(sigma / 0.01) / np.log(50 / 0.01)  # sigma(t) = 0.01 (50 / 0.01)^t
    for ema, key in ((True, "out_ema"), (False, "out_raw")):
        model = load(workdir, ema=ema).model
        reference = torch.from_numpy(recorded[key])
        with torch.no_grad():
            # t in float32 moves sigma by 1e-6 relative, which the Fourier features see
            assert (model(x, t) - reference).abs().max() < 1e-4 * max(1, float(reference.abs().max()))
            network_output = model.network(x, sigma)
        assert (network_output - reference).abs().max() < 1e-5 * max(1, float(reference.abs().max()))
    assert run.step == 3 and run.info.shape == (3, 8, 8)
    assert json.loads((workdir / "run.json").read_text())["status"] == "imported"


def test_imported_run_samples(imported):
    run, _ = imported
    result = run.sample(2, predictor="reverse_diffusion", steps=2)
    assert result.x.shape == (2, 3, 8, 8) and torch.isfinite(result.x).all()


def test_a_run_is_never_overwritten_and_the_configuration_is_asked_for(golden_dir, imported, tmp_path):
    _, workdir = imported
    with pytest.raises(ValueError, match="holds a run already"):
        import_official(golden_dir / "checkpoint_ncsnpp_small.pth", workdir)
    given = dict(nonlinearity="swish", centered=False, scale_by_sigma=True, skip_rescale=True, fir_kernel=(1, 3, 3, 1))
    with pytest.raises(OfficialCheckpointError, match="Say which it is"):
        import_official(golden_dir / "checkpoint_ncsnpp_small.pth", tmp_path / "other", **given)


def test_a_configuration_of_ours_says_what_the_tensors_do_not_show(golden_dir, tmp_path):
    """No option is needed; what the configuration leaves to its network's defaults counts as said."""
    source, recorded = golden_dir / "checkpoint_ncsnpp_small.pth", np.load(golden_dir / "checkpoint_ncsnpp_small.npz")
    x, sigma = torch.from_numpy(recorded["x"]), torch.from_numpy(recorded["cond"])
    outputs = {}
    for name in ("ncsnpp(nf=8)", "ncsnpp(nf=8, nonlinearity='elu')"):
        config = load_config("published:ve/cifar10_ncsnpp_continuous")
        config.model.name, config.data.image_size = name, 8
        run = import_official(source, tmp_path / name, config)
        assert run.info.shape == (3, 8, 8) and run.config.data.centered is False
        with torch.no_grad():
            outputs[name] = run.model.network(x, sigma)
    reference = torch.from_numpy(recorded["out_ema"])
    assert (outputs["ncsnpp(nf=8)"] - reference).abs().max() < 1e-5 * max(1, float(reference.abs().max()))
    assert (outputs["ncsnpp(nf=8, nonlinearity='elu')"] - reference).abs().max() > 1e-2
    config.model.name = "ncsnpp(fir=False)"
    with pytest.raises(OfficialCheckpointError, match="fir=False was given, but"):
        import_official(source, tmp_path / "other", config)


def test_export_gives_the_file_back(golden_dir, imported, tmp_path):
    _, workdir = imported
    export(load(workdir), tmp_path / "back.pth")
    first, back = read_official(golden_dir / "checkpoint_ncsnpp_small.pth"), read_official(tmp_path / "back.pth")
    assert list(first.model) == list(back.model) and first.step == back.step
    assert all(torch.equal(first.model[name], back.model[name]) for name in first.model)
    assert len(first.ema) == len(back.ema) and all(torch.equal(a, b) for a, b in zip(first.ema, back.ema))
