"""A run on the user's own table: its labels, its units, its kinds of Python data."""

import numpy as np
import pytest
import torch

import sde_score
from sde_score.config import make_config
from sde_score.likelihood import log_likelihood
from sde_score.run.facts import as_splits

LABELS = (1, 64, 71)


def tiny(**sections):
    return make_config(
        sde="vp",
        model={"name": "mlp(width=8, blocks=1)", "class_conditional": True},
        training={"batch_size": 8, "n_iters": 2, "eval_freq": 0, "eval_samples": 8, "snapshot_freq": 0,
                  "snapshot_samples": 2, "checkpoint_freq": 2, "tensorboard": False},
        sampling={"steps": 3, "batch_size": 4}, likelihood={"trace": "exact", "solver": "rk4(steps=4)"},
        **sections,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = [f"{rng.lognormal(3)!r},{2.46e6 + k / 60!r},{LABELS[k % 3]}" for k in range(60)]
    (folder / "t.csv").write_text("\n".join(["price,date,label", *rows]).replace("np.float64(", "").replace(")", ""))
    config = tiny(data={"name": str(folder / "t.csv"), "codec": "scaler(log=('price',))"})
    sde_score.train(config, workdir=folder / "run")
    return sde_score.load(folder / "run")


def test_samples_are_of_the_labels_and_in_the_units_of_the_user(run):
    samples = run.sample(6, labels=[64, "1"])
    assert samples.cond["y"].tolist() == [1, 0] * 3 and run.info.class_names == ("1", "64", "71")
    assert run.sample(5).cond["y"].tolist() == [0, 1, 2, 0, 1], "only classes that occur"
    assert run.sample(2, condition={"y": torch.tensor([71])}).cond["y"].tolist() == [2, 2]
    assert run.sample(2, condition={"y": ["71", "1"]}).cond["y"].tolist() == [2, 0]
    assert samples.x.dtype == torch.float64 and bool((samples.x[:, 0] > 0).all())
    assert len(samples.x[:, 1].unique()) == 6 and run.info.columns == ("price", "date")
    for wrong in ([2], ["dog"]):
        with pytest.raises(ValueError, match="There is no class .*Known: 1, 64, 71"):
            run.sample(2, labels=wrong)


def test_files_hold_the_labels_and_the_digits_of_the_user(run, tmp_path):
    samples = run.sample(6, labels=[64, 71])
    samples.save(tmp_path / "s.csv")
    samples.save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as stored:
        assert stored["y"].tolist() == [64, 71] * 3
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "price,date,y" and [line.split(",")[2] for line in lines[1:]] == ["64", "71"] * 3
    assert [float(line.split(",")[1]) for line in lines[1:]] == samples.x[:, 1].tolist()
    found = run.likelihood(num=5)
    table = next(path for path in found["per_sample_files"] if path.endswith(".npz"))
    with np.load(table) as stored:
        assert set(stored["label"].tolist()) <= set(LABELS)
    assert sde_score.data.load_dataset(str(tmp_path / "s.csv"), holdout=0.5).info.class_names == ("64", "71")


def test_densities_are_in_the_units_of_the_user(run):
    """log p(v) = log p(z) + log |dz/dv|, with the Jacobian by automatic differentiation."""
    x = run.data.test[range(3)].x
    labels = [run.info.class_names[k] for k in run.data.test[range(3)].y]
    jacobians = [torch.autograd.functional.jacobian(lambda v: run.codec.forward(v[None])[0], row) for row in x]
    expected = torch.stack([torch.linalg.slogdet(j).logabsdet for j in jacobians])
    inside = log_likelihood(
        run.sde, run.score_fn(y=run.data.test[range(3)].y), run.codec.encode(x), solver="rk4(steps=4)", trace="exact"
    ).logp
    torch.testing.assert_close(run.log_prob(x, labels=labels).values, inside.double() + expected, rtol=1e-5, atol=1e-5)


def test_every_way_to_hand_data_over():
    x, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2
    pairs = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    expected = as_splits((x, y)).fingerprint()
    for same in ((x, {"y": y}), (torch.tensor(x), y.tolist()), pairs, {"x": x, "y": y}, {"x_train": x, "y_train": y}):
        assert as_splits(same).fingerprint() == expected
    assert len(as_splits({"x": x, "x_test": x[:7]}).test) == 7
    with pytest.raises(ValueError, match="no part 'x_tets'. Did you mean 'x_test'"):
        as_splits({"x": x, "x_tets": x})
