"""Objectives and label conventions against recorded numbers of the published systems."""

import json

import numpy as np
import pytest
import torch

from sde_score.models.parameterization import PARAMETERIZATIONS
from sde_score.models.score_model import ScoreModel
from sde_score.objectives import OBJECTIVES
from sde_score.sdes import SDES
from sde_score.tensors import expand_like


def load(golden_dir, name):
    data = np.load(golden_dir / f"{name}.npz")
    return {k: torch.from_numpy(data[k]) for k in data.files if k != "meta_json"}, json.loads(str(data["meta_json"]))


def close(actual, expected, tolerance=1e-5):
    assert float((actual - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


class ToyNetwork(torch.nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(w))

    def forward(self, x, label):
        c = expand_like(label.float(), x)
        return self.w * (x / (1 + c) + 0.05 * torch.cos(0.01 * c))


class Draws:
    """A noise function that hands out one recorded uniform draw and one recorded normal draw."""

    def __init__(self, u, z):
        self.u, self.z = u, z

    def __call__(self, like):
        return self.z

    def uniform(self, like):
        return self.u


CONTINUOUS = {
    "ve": "score(c_noise='sigma')",
    "vp": "eps(c_noise='999t', scale_input=False)",
    "subvp": "eps(c_noise='999t', scale_input=False)",
}


def published_sde(kind):
    return SDES.get(kind)(**({} if kind == "ve" else {"published_rounding": True}))


def test_losses_and_their_gradients(golden_dir):
    g, meta = load(golden_dir, "losses")
    for i, case in enumerate(meta["cases"]):
        sde = published_sde(case["kind"])
        reduce = "mean" if case["reduce_mean"] else "half_sum"
        if case["loss"] == "continuous":
            model = ScoreModel(ToyNetwork(meta["w_continuous"]), sde, CONTINUOUS[case["kind"]])
            weighting = "likelihood" if case["likelihood_weighting"] else "sigma2"
            objective = OBJECTIVES.get("dsm")(sde, weighting=weighting, reduce=reduce)
            loss = objective(model, g["x"], noise=Draws(g[f"c{i}_u"], g[f"c{i}_z"])).mean()
        else:
            n, labels = case["N"], g[f"c{i}_labels"]
            model = ScoreModel(ToyNetwork(meta["w_discrete"]), sde, f"{case['loss']}(n={n})")
            index = n - 1 - labels if case["loss"] == "smld" else labels
            objective = OBJECTIVES.get("discrete_dsm")(sde, n=n, reduce=reduce)
            loss = objective.loss_at_index(model, g["x"], index, g[f"c{i}_z"]).mean()
        (gradient,) = torch.autograd.grad(loss, model.network.w)
        for actual, expected in ((loss, g[f"c{i}_loss"]), (gradient, g[f"c{i}_grad_w"])):
            assert abs(float(actual) / float(expected) - 1) < 1e-5, (case, float(actual), float(expected))


def test_score_conventions(golden_dir):
    g, meta = load(golden_dir, "score_wrappers")

    def network(x, label):
        c = expand_like(label.float(), x)
        return x / (1 + c) + 0.05 * torch.cos(0.01 * c)

    for i, case in enumerate(meta["cases"]):
        if case["continuous"] or case["kind"] == "subvp":
            spec = CONTINUOUS[case["kind"]]
        else:
            spec = f"{'smld' if case['kind'] == 've' else 'ddpm'}(n={case['N']})"
        parameterization = PARAMETERIZATIONS.build(spec, published_sde(case["kind"]))
        label = parameterization.c_noise(g["t"])
        assert str(label.dtype) == case["label_dtype"]
        close(label, g[f"c{i}_labels"])
        score = -parameterization.eps(network, g["x"], g["t"]) / parameterization.std(g["x"], g["t"])
        close(score, g[f"c{i}_score"])


def test_discrete_training_of_subvp_is_refused():
    with pytest.raises(ValueError, match="no published discrete chain"):
        OBJECTIVES.build("discrete_dsm(n=100)", SDES.build("subvp"))
    model = ScoreModel(ToyNetwork(1.0), SDES.build("vp"))
    with pytest.raises(ValueError, match="continuous in time"):
        OBJECTIVES.build("discrete_dsm(n=100)", SDES.build("vp"))(
            model, torch.zeros(2, 1, 2, 2), noise=torch.randn_like
        )
