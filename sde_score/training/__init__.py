"""The training run: one loop, its state, checkpoints, several processes, metrics."""

from sde_score.training.checkpoint import Checkpoint, CheckpointError, CheckpointStore, load_checkpoint
from sde_score.training.optim import learning_rate_factor, make_optimizer
from sde_score.training.sentinel import TrainingDiverged
from sde_score.training.state import TrainState
from sde_score.training.trainer import Trainer, TrainResult
from sde_score.training.validation import ValidationLoss
from sde_score.training.writers import JSONLWriter, MetricsWriter, TensorBoardWriter, TextLog

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "JSONLWriter",
    "MetricsWriter",
    "TensorBoardWriter",
    "TextLog",
    "TrainResult",
    "TrainState",
    "Trainer",
    "TrainingDiverged",
    "ValidationLoss",
    "learning_rate_factor",
    "load_checkpoint",
    "make_optimizer",
]
