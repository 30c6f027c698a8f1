"""Data: named sets, your own images and arrays, toy laws; how they are coded, and in which order they are read."""

from sde_score.data import array_files, digits, images, tables, torchvision_sets  # noqa: F401 - they register themselves
from sde_score.data.arrays import from_arrays
from sde_score.data.base import (
    DATASETS,
    Batch,
    DataSplits,
    LazySplit,
    Split,
    Subset,
    TensorSplit,
    load_dataset,
    settings_of,
)
from sde_score.data.codec import CODECS, Codec, Scaler, load_codec
from sde_score.data.info import Condition, DataInfo
from sde_score.data.loader import BatchLoader, batch_indices, batch_positions, iterate
from sde_score.data.survey import BrokenImage
from sde_score.data.toy import Checkerboard, Law, MixtureLaw

__all__ = [
    "CODECS",
    "DATASETS",
    "Batch",
    "BatchLoader",
    "BrokenImage",
    "Checkerboard",
    "Codec",
    "Condition",
    "DataInfo",
    "DataSplits",
    "Law",
    "LazySplit",
    "MixtureLaw",
    "Scaler",
    "Split",
    "Subset",
    "TensorSplit",
    "batch_indices",
    "batch_positions",
    "from_arrays",
    "iterate",
    "load_codec",
    "load_dataset",
    "settings_of",
]
