"""The trainer with the library's own model, objective and data loader."""

import torch

from sde_score.data import Batch, BatchLoader
from sde_score.models.ema import EMA
from sde_score.models.score_model import ScoreModel
from sde_score.objectives import OBJECTIVES
from sde_score.sdes import SDES
from sde_score.training import (
    CheckpointStore,
    Record,
    Schedule,
    StepSettings,
    Trainer,
    ValidationLoss,
    load_checkpoint,
    make_optimizer,
)


class Points:
    """A split of two-dimensional points, as the data room defines it."""

    name = "points"

    def __len__(self):
        return 100

    def __getitem__(self, indices):
        x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + torch.tensor([1.0, -1.0])
        return Batch(x[indices], {}, indices)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2))

    def forward(self, x, label):
        return self.layers(torch.cat([x, label.reshape(-1, 1).to(x.dtype) / 1000], 1))


def test_a_score_model_is_trained_saved_and_read_back(tmp_path):
    torch.manual_seed(0)
    sde = SDES.build("vp")
    model = ScoreModel(Net(), sde)
    ema, objective = EMA(model, 0.99), OBJECTIVES.build("dsm", sde)
    held_out = [(Points()[torch.arange(100)].x, None)]
    validation = ValidationLoss(objective, held_out, log_snr=sde.log_snr, repeats=4)
    before = validation.evaluate(model)["val/loss"]
    trainer = Trainer(
        model,
        ema,
        objective,
        make_optimizer(model.parameters(), lr=1e-2),
        BatchLoader(Points(), 32),
        Schedule(150),
        step=StepSettings(precision="bf16"),
        record=Record(CheckpointStore(tmp_path), say=lambda message: None, progress=False, config={"sde": "vp"}),
    )
    assert trainer.run().status == "done"
    values = validation(trainer.state)
    assert values["val/loss"] < 0.8 * before
    assert len([name for name in values if name.startswith("val/loss/logsnr")]) >= 4
    other = ScoreModel(Net(), sde)
    other.load_state_dict(load_checkpoint(tmp_path).weights())
    x, t = torch.randn(5, 2), torch.rand(5)
    assert torch.equal(other.score_fn()(x, t), ema.model.score_fn()(x, t))
