"""The library's SDEs against recorded numbers of the published systems."""

import json

import numpy as np
import pytest
import torch

from sde_score.sdes import SDES
from sde_score.tensors import expand_like


def load(golden_dir, name):
    data = np.load(golden_dir / f"{name}.npz")
    return {k: torch.from_numpy(data[k]) for k in data.files if k != "meta_json"}, json.loads(str(data["meta_json"]))


def close(actual, expected, tolerance=1e-5):
    scale = max(1.0, float(expected.abs().max()))
    assert float((actual - expected).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("kind", ["ve", "vp", "subvp"])
def test_published_quantities(golden_dir, kind):
    g, meta = load(golden_dir, f"sde_{kind}")
    settings = {} if kind == "ve" else {"published_rounding": True}
    sde = SDES.get(kind)(**meta["params"], **settings)
    x, t, z = g["x"], g["t"], g["z"]
    close(sde.drift(x, t), g["drift"])
    close(sde.diffusion(x, t).flatten(), g["diffusion"])
    mean, std = sde.marginal_prob(x, t)
    close(mean, g["mean"])
    close(std.flatten(), g["std"])
    close(sde.prior_logp(z), g["prior_logp"])
    shift, scale = sde.chain(meta["N"]).forward(x, t)
    close(shift, g["disc_f"])
    close(scale.flatten(), g["disc_G"])
    score = g["score"]

    def score_fn(x, t):
        return score

    close(sde.reverse(score_fn).drift(x, t), g["rev_drift"])
    close(sde.reverse(score_fn).diffusion(x, t).flatten(), g["rev_diffusion"])
    flow = sde.reverse(score_fn, eta=0.0)
    close(flow.drift(x, t), g["pf_drift"])
    assert float(flow.diffusion(x, t).abs().max()) == 0
    close(shift - scale**2 * score, g["rev_disc_f"])
    close(shift - 0.5 * scale**2 * score, g["pf_disc_f"])
    unit = g["prior_unit_noise"]
    close(sde.prior_sampling(tuple(unit.shape), noise=lambda like: unit), g["prior_sample"])


@pytest.mark.parametrize("kind", ["vp", "subvp"])
def test_default_std_is_exact_where_the_published_one_cancels(golden_dir, kind):
    g, meta = load(golden_dir, f"sde_{kind}")
    t = g["t"]
    sde = SDES.get(kind)(**meta["params"])
    exact = sde.marginal_coeffs(t.double())[1]
    relative = ((sde.marginal_coeffs(t)[1] - exact) / exact).abs()
    published = ((g["std"].double() - exact) / exact).abs()
    assert relative.max() < 1e-6
    assert published.max() > 1e-3  # the recorded defect, at t = 1e-5


def test_discrete_tables(golden_dir):
    g, meta = load(golden_dir, "sde_ve")
    close(SDES.get("ve")(**meta["params"]).chain(meta["N"]).sigmas, g["discrete_sigmas"])
    g, meta = load(golden_dir, "sde_vp")
    chain = SDES.get("vp")(**meta["params"]).chain(meta["N"])
    for name, table in (
        ("discrete_betas", chain.betas),
        ("alphas", chain.alphas),
        ("alphas_cumprod", chain.alphas_cumprod),
    ):
        close(table, g[name], 1e-6)
    index = torch.arange(meta["N"])
    close(chain.marginal(index)[0], g["sqrt_alphas_cumprod"], 1e-6)
    close(chain.marginal(index)[1], g["sqrt_1m_alphas_cumprod"], 1e-6)


def test_published_grid_and_index(golden_dir):
    from sde_score.sampling import PublishedSampler

    g, meta = load(golden_dir, "grids")
    sde = SDES.build("ve")
    for i, case in enumerate(meta["cases"]):
        grid = PublishedSampler(sde, steps=case["N"], t_min=case["eps"]).grid
        assert torch.equal(grid, g[f"g{i}_t"])
        assert torch.equal(sde.chain(case["N"]).index(g[f"g{i}_t"]), g[f"g{i}_index_truncated"].long())
    for i, (low, high, n) in enumerate(meta["sigmas"]):
        close(SDES.get("ve")(low, high).chain(n).sigmas, g[f"s{i}_sde_ascending_float32"], 1e-6)


def test_expand_like_refuses_too_many_axes():
    with pytest.raises(ValueError, match="more axes"):
        expand_like(torch.ones(2, 3, 4), torch.ones(2, 3))
