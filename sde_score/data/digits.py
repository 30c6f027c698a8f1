"""The embedded data set: 1,797 handwritten digits of 8x8 pixels and 17 grey levels. No download, no other package."""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch

from sde_score.data.base import DATASETS, DataSplits, TensorSplit
from sde_score.data.info import Condition, DataInfo

N_TRAIN, N_VALIDATION = 1500, 150


@DATASETS.register("digits")
def digits(validation: bool = False) -> DataSplits:
    """Handwritten digits, 8x8, 17 grey levels (embedded; 1,500 train, 297 test).

    The test set of the UCI "Optical Recognition of Handwritten Digits" data (Alpaydin and Kaynak 1998), as scikit-learn
    distributes it, in its order: the first 1,500 are for training, the last 297 for testing. All ten classes are about
    equally frequent in both parts. Made by `tools/make_digits_asset.py`.

    Args:
        validation: for the choice of settings: the last 150 of the 1,500 stand in the place of the test images, which
            stay unseen.
    """
    with (
        resources.files("sde_score").joinpath("assets/digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        x = torch.from_numpy(stored["images"]).unsqueeze(1)
        y = torch.from_numpy(stored["labels"]).long()
    held = N_TRAIN
    if validation:
        x, y, held = x[:N_TRAIN], y[:N_TRAIN], N_TRAIN - N_VALIDATION
    info = DataInfo("digits", (1, 8, 8), levels=17, conditions={"y": Condition(num=10, names=tuple("0123456789"))})
    train = TensorSplit(x[:held], {"y": y[:held]}, name="digits/train")
    return DataSplits(train, TensorSplit(x[held:], {"y": y[held:]}, name="digits/test"), info)
