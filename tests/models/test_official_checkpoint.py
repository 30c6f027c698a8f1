"""Checkpoints of the original releases: safe, strict, exact."""

import gzip
import io
import json
import pickle
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from torch import nn

from sde_score.files import DamagedArchive, check_archive
from sde_score.models.ncsn import NCSN
from sde_score.models.ncsnpp import NCSNpp
from sde_score.models.ncsnv2 import NCSNv2_64, NCSNv2_256
from sde_score.models.official.architecture import candidates, complete, network_facts
from sde_score.models.official.checkpoint import (
    DamagedFile,
    OfficialCheckpointError,
    UnsafeFile,
    WrongArchitecture,
    load_official,
    read_official,
    save_official,
)
from sde_score.models.official.infer import infer_unet
from sde_score.models.official.names import to_original_state_dict, trainable_original_names
from sde_score.published import PUBLISHED, network_arguments

ELU = dict(nonlinearity="elu", centered=False)  # what the tensors of a RefineNet do not show
SMALL = dict(nonlinearity="swish", centered=False, scale_by_sigma=True, skip_rescale=True, fir_kernel=(1, 3, 3, 1))


def randomised(network):
    """Every parameter drawn anew, so that no two are alike."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.2)
    return network


def assert_same_tensors(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


class TinyNetwork(nn.Module):
    """The network of the recorded training runs: conv + Linear(c / 50) * freq, SiLU, conv; freq is frozen."""

    def __init__(self):
        super().__init__()
        self.freq = nn.Parameter(torch.zeros(8), requires_grad=False)
        self.conv1, self.lin, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(1, 8), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, c):
        h = self.conv1(x) + (self.lin(c[:, None] / 50) * self.freq)[:, :, None, None]
        return self.conv2(nn.functional.silu(h))


def test_recorded_checkpoint_into_a_network_of_ones_own(golden_dir):
    model = load_official(golden_dir / "checkpoint_tiny.pth", network=TinyNetwork())
    recorded = np.load(golden_dir / "train_ve_continuous.npz")
    x, c = (torch.from_numpy(recorded[f"ckpt_query_{key}"]) for key in "xc")
    for network, key in ((model.network, "ckpt_out_raw"), (model.ema_network, "ckpt_out_ema")):
        reference = torch.from_numpy(recorded[key])
        assert (network(x, c) - reference).abs().max() < 1e-5 * max(1, float(reference.abs().max()))
    assert model.step == 6 and model.file.ema_updates == 6 and model.file.ema_decay == 0.999
    assert list(model.ema) == json.loads(str(recorded["meta_json"]))["ema_order"]


@pytest.mark.parametrize("layout", ["score_sde", "ncsnv2", "ncsn"])
def test_refinenet_files_round_trip_exactly(tmp_path, layout):
    network, averaged = (randomised(NCSNv2_64(2, nf=4, num_scales=7, sigma_max=9.0)) for _ in range(2))
    save_official(tmp_path / "file.pth", network, ema_network=averaged, step=12, layout=layout)
    model = load_official(tmp_path / "file.pth", **ELU)
    assert_same_tensors(to_original_state_dict(network), to_original_state_dict(model.network))
    assert (model.step, model.file.layout) == ((None, "ncsn") if layout == "ncsn" else (12, layout))
    if layout == "ncsn":
        assert model.ema_network is None and model.best_network is model.network
    else:
        assert_same_tensors(to_original_state_dict(averaged), to_original_state_dict(model.ema_network))
        assert model.best_network is model.ema_network
    x, label = torch.rand(2, 2, 8, 8), torch.tensor([0, 6])
    assert torch.equal(network(x, label), model.network(x, label))


@pytest.mark.parametrize("network", [NCSN(1, nf=4, num_scales=5), NCSNv2_256(1, nf=4, num_scales=5)])
def test_bare_state_dicts_with_and_without_prefix(network):
    state = to_original_state_dict(randomised(network))
    for prefix in ("", "module."):
        loaded = load_official({prefix + name: tensor for name, tensor in state.items()}, **ELU)
        assert type(loaded.network) is type(network) and loaded.network.num_scales == 5
        assert_same_tensors(state, to_original_state_dict(loaded.network))


def test_published_configuration_by_name_is_checked_against_the_tensors():
    state = to_original_state_dict(NCSN(3, nf=4, num_scales=10))
    with pytest.raises(WrongArchitecture) as error:
        load_official(state, config="ve/ncsn/cifar10")
    message = str(error.value)
    assert "begin_conv.weight: [4, 3, 3, 3] in the file, expected [128, 3, 3, 3]" in message
    assert "Nearest published configuration" in message
    with pytest.raises(OfficialCheckpointError, match="Did you mean 've/ncsn/cifar10'"):
        load_official(state, config="ve/ncsn/cifar")


def test_missing_left_over_and_misshapen_tensors_are_named():
    state = dict(to_original_state_dict(NCSNv2_64(3, nf=4, num_scales=5)))
    state.pop("res1.0.conv1.weight")
    state["head.weight"] = torch.zeros(2)
    state["end_conv.bias"] = torch.zeros(7)
    with pytest.raises(WrongArchitecture) as error:
        load_official(state, **ELU)
    for part in ("res1.0.conv1.weight: missing", "head.weight", "end_conv.bias: [7]", "(3 differences"):
        assert part in str(error.value)


def test_a_wrong_ema_list_is_an_error(tmp_path):
    network = NCSN(1, nf=4, num_scales=2)
    save_official(tmp_path / "file.pth", network)
    content = torch.load(tmp_path / "file.pth")
    content["ema"]["shadow_params"].pop()
    with pytest.raises(WrongArchitecture, match="EMA list has"):
        load_official(content, **ELU)
    content["ema"]["shadow_params"].append(torch.zeros(3, 3))
    with pytest.raises(WrongArchitecture, match="refine4.crp.norms.1.embed.weight"):
        load_official(content, **ELU)


def test_noise_levels_of_another_configuration_are_noticed(monkeypatch):
    facts = {**PUBLISHED["ve/ncsnv2/cifar10"], "nf": 4}
    monkeypatch.setitem(PUBLISHED, "ve/ncsnv2/cifar10", facts)
    state = to_original_state_dict(NCSNv2_64(3, nf=4, num_scales=232, sigma_max=90.0))
    with pytest.warns(UserWarning, match="run from 90 to 0.01, those of ve/ncsnv2/cifar10 from 50"):
        load_official(state, config="ve/ncsnv2/cifar10")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_file_is_refused_unexecuted(tmp_path, how):
    file, trace = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"model": {"module.w": torch.zeros(2)}, "step": Payload(str(trace))}
    if how == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps({"step": Payload(str(trace))}, protocol=2))
    with pytest.raises(UnsafeFile, match="evil.pth was refused") as error:
        load_official(file)
    assert "nothing in it was executed" in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, keep):
    save_official(tmp_path / "whole.pth", NCSN(1, nf=4, num_scales=2))
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(DamagedFile, match="cut.pth.*download or copy it again"):
        load_official(tmp_path / "cut.pth")


def test_every_changed_bit_of_an_archive_is_noticed_or_harmless(tmp_path):
    """One bit of each byte, and in the directory also the bit that marks a folder. Whatever is still read is right."""
    file = tmp_path / "file.pth"
    content = {"model": {"module.w": torch.arange(9.0), "module.b": torch.ones(3)}, "step": 7}
    torch.save(content, file)
    whole, noticed = file.read_bytes(), 0
    directory = whole.index(b"PK\x01\x02")
    for place in range(len(whole)):
        for bit in {1 << place % 8, 0x10 if place > directory else 1 << place % 8}:
            changed = bytearray(whole)
            changed[place] ^= bit
            try:
                check_archive(io.BytesIO(changed))
            except DamagedArchive:
                noticed += 1
                if place % 16:  # to save time: the reader asks the same question, as every 16th byte shows
                    continue
            file.write_bytes(changed)
            try:
                found = read_official(file)
            except DamagedFile:
                continue
            assert found.step == 7 and list(found.model) == ["w", "b"], place
            assert all(torch.equal(found.model[k], content["model"][f"module.{k}"]) for k in found.model), place
    assert noticed > len(whole) / 2  # the rest lies in padding, dates and versions


def test_other_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        load_official(tmp_path / "missing.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(DamagedFile, match="page.pth"):
        load_official(tmp_path / "page.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(OfficialCheckpointError, match="other.pth is a PyTorch file, but not a checkpoint"):
        load_official(tmp_path / "other.pth")
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "foreign.pth")
    with pytest.raises(WrongArchitecture, match="foreign.pth.*layer.weight"):
        load_official(tmp_path / "foreign.pth")


def test_files_of_old_pytorch_and_numpy_versions(tmp_path):
    """The format before zip archives, and the module that numpy 1 named for its numbers."""
    network = NCSN(1, nf=4, num_scales=2)
    state = {f"module.{name}": tensor for name, tensor in to_original_state_dict(network).items()}
    torch.save([state, {}], tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match="old.pth is in the format .* no checksums"):
        loaded = load_official(tmp_path / "old.pth", **ELU).network
    assert_same_tensors(to_original_state_dict(network), to_original_state_dict(loaded))

    torch.save({"model": {"module.w": torch.zeros(2)}, "step": 1, "lr": np.float64(0.1)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "numpy1.pth", "w") as numpy1:
        for record in new.namelist():
            numpy1.writestr(record, new.read(record).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert list(read_official(tmp_path / "numpy1.pth").model) == ["w"]


def test_numpy_numbers_of_the_originals_are_allowed(tmp_path):
    torch.save({"model": {"module.w": torch.zeros(2)}, "step": 1, "lr": np.float64(0.1)}, tmp_path / "file.pth")
    file = read_official(tmp_path / "file.pth")
    assert list(file.model) == ["w"] and file.prefix == "module."


# --- U-Nets ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(golden_dir):
    """A checkpoint that the original code wrote, and what its networks return."""
    recorded = np.load(golden_dir / "checkpoint_ncsnpp_small.npz")
    return golden_dir / "checkpoint_ncsnpp_small.pth", recorded, json.loads(str(recorded["meta_json"]))


def assert_small_outputs(model, recorded):
    x, cond = torch.from_numpy(recorded["x"]), torch.from_numpy(recorded["cond"])
    with torch.no_grad():
        for network, key in ((model.network, "out_raw"), (model.ema_network, "out_ema")):
            reference = torch.from_numpy(recorded[key])
            assert (network(x, cond) - reference).abs().max() < 1e-5 * max(1, float(reference.abs().max()))


@pytest.mark.parametrize("how", ["original configuration", "options", "content"])
def test_recorded_unet_checkpoint(small, how):
    path, recorded, meta = small
    if how == "original configuration":
        model = load_official(path, config=meta["config"])
    elif how == "options":
        model = load_official(path, **SMALL)
    else:
        content = read_official(path)
        model = load_official({"model": content.model, "ema": {"shadow_params": content.ema}}, config=meta["config"])
    assert_small_outputs(model, recorded)
    assert model.step == (None if how == "content" else 3) and model.facts["fir"] is True
    assert trainable_original_names(model.network) == meta["ema_order"]


@pytest.mark.parametrize("key", SMALL)
def test_every_option_that_changes_the_outputs_unseen_is_asked_for(small, key):
    """The others are given; the message names the argument and likely values."""
    with pytest.raises(OfficialCheckpointError) as error:
        load_official(small[0], **{other: value for other, value in SMALL.items() if other != key})
    message = str(error.value)
    assert f"the tensors do not show {key}, " in message and f"\n  {key}={SMALL[key]!r}" in message
    assert "load_official:" in message


@pytest.mark.parametrize("key, another", [("nonlinearity", "elu"), ("skip_rescale", False), ("fir_kernel", (1, 1))])
def test_options_that_are_asked_for_matter(small, key, another):
    """The same tensors, two answers: had one been assumed, the other network would be wrong in silence."""
    x, cond = (torch.from_numpy(small[1][name]) for name in ("x", "cond"))
    with torch.no_grad():
        one = load_official(small[0], **SMALL).network(x, cond)
        other = load_official(small[0], **SMALL | {key: another}).network(x, cond)
    assert (one - other).abs().max() > 1e-2 * one.abs().max()


@pytest.mark.parametrize("network", [NCSN(1, nf=4, num_scales=5), NCSNv2_256(1, nf=4, num_scales=5)])
def test_a_refinenet_is_asked_for_its_nonlinearity_and_its_scaling(network):
    state = to_original_state_dict(randomised(network))
    with pytest.raises(OfficialCheckpointError) as error:
        load_official(state, centered=False)
    assert "do not show nonlinearity" in str(error.value) and "nonlinearity='elu'" in str(error.value)
    assert "or 'relu'" in str(error.value) and "centered" not in str(error.value)
    with pytest.raises(OfficialCheckpointError, match="do not show centered"):
        load_official(state, nonlinearity="relu")
    x, index = torch.rand(2, 1, 16, 16), torch.tensor([0, 3])
    with torch.no_grad():
        elu, relu = (load_official(state, **ELU | {"nonlinearity": name}).network(x, index) for name in ("elu", "relu"))
    torch.testing.assert_close(elu, network(x, index))
    assert (elu - relu).abs().max() > 0.1 * elu.abs().max()


def test_a_refinenet_without_its_table_is_asked_for_it():
    network = NCSNv2_64(1, nf=4, num_scales=5, sigma_max=7.0, sigma_min=0.5, spacing="uniform")
    state = {name: tensor for name, tensor in to_original_state_dict(network).items() if name != "sigmas"}
    with pytest.raises(OfficialCheckpointError, match="do not show num_scales, sigma_max, sigma_min, spacing"):
        load_official(state, **ELU)
    given = dict(num_scales=5, sigma_max=7.0, sigma_min=0.5, spacing="uniform")
    assert torch.equal(load_official(state, **ELU, **given).network.sigmas, network.sigmas)


@pytest.mark.parametrize("spacing", ["geometric", "uniform"])
def test_the_spacing_is_read_from_the_table(spacing):
    network = NCSNv2_64(1, nf=4, num_scales=5, sigma_max=7.0, sigma_min=0.5, spacing=spacing)
    assert load_official(to_original_state_dict(network), **ELU).facts["spacing"] == spacing
    with pytest.raises(OfficialCheckpointError, match="the tensors are those of a network with '" + spacing):
        load_official(to_original_state_dict(network), **ELU, spacing="other")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(nonlinearty="swish"), "An original ncsnpp has no option 'nonlinearty'. Did you mean 'nonlinearity'?"),
        (dict(spacing="uniform"), "no option 'spacing'"),  # of another network
        (dict(nonlinearity="swich"), "Unknown activation 'swich'. Did you mean 'swish'?"),
        (dict(nf=16), "nf=16 was given, but the tensors are those of a network with 8"),
        (dict(model="ddpm"), "model='ddpm' was given, but the tensors are those of a network with 'ncsnpp'"),
        (dict(model="ncsnp"), "'ncsnp' is no original network. Did you mean 'ncsnpp'?"),
    ],
)
def test_options_are_never_swallowed(small, options, message):
    with pytest.raises(ValueError) as error:
        load_official(small[0], **SMALL | options)
    assert message in str(error.value)
    if "nonlinearity" not in options:
        with pytest.raises(OfficialCheckpointError):
            load_official(small[0], config="ve/cifar10_ncsnpp_continuous", **options)


def test_a_network_of_ones_own_takes_neither_configuration_nor_options(golden_dir):
    with pytest.raises(OfficialCheckpointError, match="leave out config, centered"):
        load_official(golden_dir / "checkpoint_tiny.pth", "ve/ncsn/cifar10", network=TinyNetwork(), centered=True)


def test_two_networks_with_the_same_tensors_are_told_apart_by_the_user():
    """DDPM, and NCSN++ of DDPM blocks: at width 32 the norms have 32 and 8 groups."""
    ours = NCSNpp(1, 8, nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), embedding_type="positional",
                  resblock_type="ddpm", fir=False, progressive_input="none", scale_by_sigma=False)  # fmt: skip
    state = to_original_state_dict(randomised(ours.eval()))
    given = dict(nonlinearity="swish", centered=False, scale_by_sigma=False)
    with pytest.raises(OfficialCheckpointError, match="model='ddpm' or 'ncsnpp'"):
        load_official(state, **given)
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([3.0, 500.0])
    with torch.no_grad():
        back = load_official(state, model="ncsnpp", skip_rescale=True, **given).network(x, t)
        other = load_official(state, model="ddpm", **given).network(x, t)
        torch.testing.assert_close(back, ours(x, t))
    assert (other - back).abs().max() > 1e-2 * back.abs().max()


# --- original configurations -----------------------------------------------------------------------------------------


def namespace(values):
    """As the original code makes it from YAML."""
    return SimpleNamespace(**{k: namespace(v) if isinstance(v, dict) else v for k, v in values.items()})


@pytest.mark.parametrize("as_read", [dict, namespace, ConfigDict], ids=["dict", "namespace", "ConfigDict"])
@pytest.mark.parametrize("name", ["net10_ncsn_v1_28px_1ch", "net11_ncsnv2_64", "net12_ncsnv2_128"])
def test_configurations_of_ncsn_and_ncsnv2_are_read(golden_dir, name, as_read):
    recorded = np.load(golden_dir / f"{name}.npz")
    state = {k[3:]: torch.from_numpy(recorded[k]) for k in recorded.files if k.startswith("sd/")}
    model = load_official(state, as_read(json.loads(str(recorded["config_json"]))))
    assert model.facts["centered"] is False and model.facts["nonlinearity"] == "elu"
    with torch.no_grad():
        out = model.network(torch.from_numpy(recorded["x"]), torch.from_numpy(recorded["cond"]))
    reference = torch.from_numpy(recorded["output"])
    assert (out - reference).abs().max() < 1e-5 * max(1, float(reference.abs().max()))


def ncsnv2_config(**changes):
    """The keys of the published files; `changes` are sections laid over theirs, None for a key taken away."""
    config = {
        "model": dict(ngf=4, num_classes=5, sigma_begin=7.0, sigma_end=0.5, sigma_dist="uniform", nonlinearity="relu",
                      normalization="InstanceNorm++", spec_norm=False, ema=True, ema_rate=0.999, sigma_rate=1),
        "data": dict(dataset="CIFAR10", image_size=8, channels=1, logit_transform=False, rescaled=False),
        "training": dict(batch_size=128),
    }  # fmt: skip
    for section, values in changes.items():
        config[section] = {k: v for k, v in (config[section] | values).items() if v is not None}
    return config


def test_every_key_of_an_ncsnv2_configuration_counts():
    network = NCSNv2_64(1, nf=4, num_scales=5, sigma_max=7.0, sigma_min=0.5, spacing="uniform", activation="relu")
    state = to_original_state_dict(randomised(network))
    x, index = torch.rand(2, 1, 8, 8), torch.tensor([0, 3])
    without_table = {name: tensor for name, tensor in state.items() if name != "sigmas"}
    with torch.no_grad():
        for tensors in (state, without_table):
            torch.testing.assert_close(load_official(tensors, ncsnv2_config()).network(x, index), network(x, index))
        for key in ("rescaled", "logit_transform"):
            scaled = load_official(state, ncsnv2_config(data={key: True})).network
            torch.testing.assert_close(scaled(2 * x - 1, index), network(x, index))
    for changes, message in [
        (dict(model={"nonlinearity": None}), "do not show nonlinearity"),
        (dict(data={"rescaled": None, "logit_transform": None}), "do not show centered"),
        (dict(model={"normalization": "VarianceNorm"}), "model.normalization is 'VarianceNorm'"),
        (dict(model={"spec_norm": True}), "spectral"),
        (dict(model={"num_classes": 6}), "num_scales=6 was given"),
        (dict(model={"sigma_begin": 8.0}), "sigma_max=8.0 was given"),
        (dict(model={"sigma_dist": "geometric"}), "spacing='geometric' was given"),
    ]:
        with pytest.raises(OfficialCheckpointError, match=message):
            load_official(state, ncsnv2_config(**changes))
    # what the tensors show may be missing, and what is missing may be given
    sparse = ncsnv2_config(model={"num_classes": None, "sigma_begin": None, "nonlinearity": None})
    assert torch.equal(load_official(state, sparse, nonlinearity="relu").network.sigmas, network.sigmas)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model": {"name": "ncsnpp"}}, "has the sections model and data; this one: model."),
        ({"data": {}}, "has the sections model and data; this one: data."),
        ({"model": 5, "data": {}}, "has the sections model and data"),
        ({}, "has the sections model and data; this one: {}."),
        (7, "has the sections model and data; this one: 7."),
        ({"model": {"nf": 8}, "data": {}}, "model.name is missing"),
        ({"model": {"name": "ncsnp"}, "data": {}}, "Did you mean 'ncsnpp'?"),
        ({"model": {"name": "ncsnpp"}, "data": {}}, "do not show nonlinearity, centered, scale_by_sigma, skip_rescale"),
    ],
)
def test_a_configuration_that_lacks_something_is_a_message(small, config, message):
    """Never a bare KeyError."""
    with pytest.raises(OfficialCheckpointError) as error:
        load_official(small[0], config)
    assert message in str(error.value) and "checkpoint_ncsnpp_small.pth" in str(error.value)


@pytest.mark.parametrize("section, key", [("model", "nonlinearity"), ("model", "fir_kernel"), ("data", "centered")])
def test_one_key_less_is_asked_for_or_given(small, section, key):
    path, recorded, meta = small
    config = json.loads(json.dumps(meta["config"]))
    value = config[section].pop(key)
    with pytest.raises(OfficialCheckpointError, match=f"do not show {key}"):
        load_official(path, config)
    assert_small_outputs(load_official(path, config, **{key: value}), recorded)


def test_writing_a_recorded_checkpoint_again_is_exact(small, tmp_path):
    path, _, meta = small
    model = load_official(path, config=meta["config"])
    save_official(
        tmp_path / "again.pth",
        model.network,
        ema_network=model.ema_network,
        step=model.step,
        ema_decay=model.file.ema_decay,
        ema_updates=model.file.ema_updates,
        optimizer=model.file.optimizer,
    )
    first, again = read_official(path), read_official(tmp_path / "again.pth")
    assert_same_tensors(first.model, again.model)
    assert len(first.ema) == len(again.ema) and all(torch.equal(a, b) for a, b in zip(first.ema, again.ema))
    assert (first.step, first.ema_decay, first.ema_updates) == (again.step, again.ema_decay, again.ema_updates)
    assert repr(first.optimizer["param_groups"]) == repr(again.optimizer["param_groups"])
    assert first.prefix == again.prefix


def test_wrong_unet_names_the_nearest_published_configuration(small):
    with pytest.raises(WrongArchitecture) as error:
        load_official(small[0], config="ve/cifar10_ncsnpp_continuous")
    assert "checkpoint_ncsnpp_small.pth does not fit" in str(error.value)
    assert "all_modules.0.W: [8] in the file, expected [128]" in str(error.value)
    assert "Nearest published configuration: ve/cifar10_ncsnpp_continuous (the same kind of network" in str(error.value)


def test_a_missing_sigmas_table_is_tolerated(small):
    path, recorded, meta = small
    content = torch.load(path, weights_only=False)
    content["model"].pop("module.sigmas")
    assert_small_outputs(load_official(content, config=meta["config"]), recorded)


NETS = ["net01", "net02", "net03", "net04", "net05", "net06", "net07", "net08", "net09"]


@pytest.mark.parametrize("net", NETS)
def test_architecture_is_read_from_the_tensors(golden_dir, net):
    (file,) = golden_dir.glob(f"{net}_*.npz")
    recorded = np.load(file)
    original = network_facts(json.loads(str(recorded["config_json"])))
    state = {k[3:]: torch.from_numpy(recorded[k]) for k in recorded.files if k.startswith("sd/")}
    seen = infer_unet(state)
    levels = seen.pop("attention_levels")
    sizes = [original["image_size"] >> level for level in range(len(original["ch_mult"]))]
    assert levels == tuple(level for level, size in enumerate(sizes) if size in original["attn_resolutions"])
    assert float(state["sigmas"][0]) == pytest.approx(original["sigma_max"])
    for key, value in seen.items():
        if key not in ("sigma_min", "sigma_max"):
            assert value == original[key], key


@pytest.mark.parametrize("net", NETS)
def test_networks_load_without_a_configuration(golden_dir, net):
    """All that the tensors do not show is given as options; the image size is not needed."""
    (file,) = golden_dir.glob(f"{net}_*.npz")
    recorded = np.load(file)
    original = network_facts(json.loads(str(recorded["config_json"])))
    state = {k[3:]: torch.from_numpy(recorded[k]) for k in recorded.files if k.startswith("sd/")}
    keys = ("model", "centered", "scale_by_sigma", "fir", "skip_rescale", "fir_kernel", "nonlinearity")
    model = load_official(state, **{key: original[key] for key in keys if key in original})
    with torch.no_grad():
        out = model.network(torch.from_numpy(recorded["x"]), torch.from_numpy(recorded["cond"]))
    reference = torch.from_numpy(recorded["output"]).float()
    assert (out - reference).abs().max() < 1e-5 * max(1, float(reference.abs().max()))


def test_published_checkpoints_are_recognised_as_far_as_their_tensors_tell(golden_dir):
    with gzip.open(golden_dir / "layouts.json.gz") as file:
        published = json.load(file)
    for name, entry in published["configs"].items():
        if "layout" not in entry:
            continue
        state = {row[0]: torch.empty(row[1], device="meta") for row in published["layouts"][entry["layout"]]}
        if not any(key.startswith("all_modules.") for key in state):
            continue
        seen = infer_unet(state)
        known = candidates(seen)
        assert name in known
        seen_with_sigmas = seen | {"sigma_max": float(entry["config"]["model"]["sigma_max"]), "sigma_min": 0.01}
        facts, known, open_options = complete(seen_with_sigmas, {})
        if len({json.dumps([PUBLISHED[k].get(o) for o in ("centered", "scale_by_sigma", "fir")]) for k in known}) == 1:
            assert not open_options
            expected, found = network_arguments(PUBLISHED[name]), network_arguments(facts)
            ignored = {"image_size", "attn_resolutions", "sigma_max"}
            assert expected[0] == found[0]
            assert {k: v for k, v in expected[1].items() if k not in ignored} == {
                k: v for k, v in found[1].items() if k not in ignored
            }
        else:
            assert open_options
    bedroom = complete(
        seen | {"sigma_max": 378.0}, {}
    )  # seen: not a bedroom model; its sigmas alone do not make it one
    assert "ve/bedroom_ncsnpp_continuous" not in bedroom[1]
