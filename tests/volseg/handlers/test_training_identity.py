# SPDX-License-Identifier: Apache-2.0
"""Two trainings are the same if nothing that their result depends on differs."""

from functools import partial

import numpy as np
import pytest
import torch
from monai.data import Dataset
from monai.losses import DiceLoss
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from torch import nn

from volseg.handlers.training_identity import training_identity
from volseg.inferers.autocast import AutocastInferer


def parts(**changed):
    """A training's parts, made anew at each call, with some of their hyperparameters changed."""
    values = {"dropout": 0.1, "amp": False, "prob": 0.5, "momentum": 0.9, "squared": True, "warmup": 10, "case": "a",
              "deviation": (1, 2), "shift": 1.0} | changed  # fmt: skip
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Dropout(values["dropout"]))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=values["momentum"])
    transform = Compose([RandFlipd("image", prob=values["prob"]), RandGaussianNoised("image", std=values["deviation"])])
    return {
        "dataset": Dataset([{"image": values["case"]}], transform),
        "network": network,
        "loss": DiceLoss(squared_pred=values["squared"]),
        "optimizer": optimizer,
        "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, i / values["warmup"])),
        "inferer": AutocastInferer(values["amp"]),
        "prepare": partial(max, values["shift"]),
        "targets": np.array([values["shift"]]),
    }


def test_equal_trainings_are_one():
    assert training_identity(parts()) == training_identity(parts())


@pytest.mark.parametrize(
    "change",
    [{"dropout": 0.2}, {"amp": True}, {"prob": 0.6}, {"momentum": 0.8}, {"squared": False}, {"warmup": 20},
     {"case": "b"}, {"deviation": (1, 3)}, {"shift": 2.0}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_hyperparameter_counts(change):
    assert training_identity(parts()) != training_identity(parts(**change))


def test_random_states_and_devices_do_not_count():
    drawn = parts()
    drawn["dataset"].transform.set_random_state(7)
    assert training_identity(drawn) == training_identity(parts())
    assert training_identity({"a": torch.device("cpu")}) == training_identity({"a": torch.device("cuda")})


def test_circles_end():
    class Node:
        pass

    node = Node()
    node.self = node
    assert training_identity({"node": node}) == training_identity({"node": node})
