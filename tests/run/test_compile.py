"""`training.compile` and `sampling.compile` change the speed and nothing else."""

import shutil

import pytest
import torch

from sde_score.config import make_config
from sde_score.run.train import train
from sde_score.training import Schedule, StepSettings, Trainer, load_checkpoint, make_optimizer

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same short training with dropout, without compilation and with it."""
    made = []
    for compile in (False, True):
        config = make_config(
            sde="vp",
            model={"name": "unet(width=8, mult=(1,), attention=(), dropout=0.2)"},
            training={"n_iters": 3, "batch_size": 8, "compile": compile, "eval_samples": 8, "snapshot_samples": 4},
            optim={"warmup": 0, "lr": 1e-3},
            sampling={"steps": 5, "batch_size": 4},
        )
        made.append(train(config, tmp_path_factory.mktemp("runs") / "run")[0])
    return made


def test_training_takes_the_same_steps(runs):
    """Dropout included: with other masks the weights differ by 2e-4 on average, a fifth of the learning rate.

    Adam makes a step of a gradient that is nearly zero, so rounding shows in a few weights.
    """
    plain, fast = (load_checkpoint(run.workdir) for run in runs)
    assert plain.model.keys() == fast.model.keys()  # a compiled run is a run like any other
    learnt = [name for name, _ in runs[0].model.named_parameters()]
    gaps = torch.cat([(fast.model[name] - plain.model[name]).abs().flatten() for name in learnt])
    assert gaps.mean() < 1e-6 and gaps.max() < 1e-3


def test_samples_are_the_same_and_the_model_stays_as_it_is(runs):
    plain, fast = (runs[0].sample(4, seed=1, compile=compile) for compile in (False, True))
    assert fast.facts["nfe"] == plain.facts["nfe"]
    torch.testing.assert_close(fast.x, plain.x, atol=1 / 16, rtol=0)  # one grey level, where rounding tips it
    assert (fast.x != plain.x).float().mean() < 0.02
    # the run's own model is not compiled: forward-mode derivatives still work
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
    _, tangent = torch.func.jvp(lambda x: runs[0].model(x, t), (x,), (torch.ones_like(x),))
    assert tangent.isfinite().all()


def test_compiled_shares_its_weights(runs):
    model = runs[0].model
    compiled = model.compiled()
    assert {p.data_ptr() for p in compiled.parameters()} == {p.data_ptr() for p in model.parameters()}


def test_a_model_that_cannot_be_compiled_is_told():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"needs `model.compiled\(\)`; Linear has none"):
        optimizer = make_optimizer(model.parameters())
        Trainer(model, None, print, optimizer, print, Schedule(1), step=StepSettings(compile=True))
