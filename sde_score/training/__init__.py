"""The training run: one loop, its state, checkpoints, several processes, metrics."""

from sde_score.training.checkpoint import Checkpoint, CheckpointError, CheckpointStore, load_checkpoint
from sde_score.training.optim import Schedule, make_optimizer
from sde_score.training.sentinel import TrainingDiverged
from sde_score.training.settings import Cadence, Limits, Record, StepSettings
from sde_score.training.state import TrainState
from sde_score.training.trainer import Trainer, TrainResult
from sde_score.training.validation import ValidationLoss
from sde_score.training.writers import JSONLWriter, MetricsWriter, TensorBoardWriter, TextLog

__all__ = [
    "Cadence",
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "JSONLWriter",
    "Limits",
    "MetricsWriter",
    "Record",
    "Schedule",
    "StepSettings",
    "TensorBoardWriter",
    "TextLog",
    "TrainResult",
    "TrainState",
    "Trainer",
    "TrainingDiverged",
    "ValidationLoss",
    "load_checkpoint",
    "make_optimizer",
]
