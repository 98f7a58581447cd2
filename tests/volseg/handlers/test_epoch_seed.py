# SPDX-License-Identifier: Apache-2.0
"""Tests of seeding every epoch."""

from __future__ import annotations

import random

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import Dataset
from monai.transforms import Compose, RandGaussianNoise
from torch.utils.data import DistributedSampler

from volseg.handlers.epoch import EpochSeed


def draws(seed: int, start: int = 0, noise_before: int = 0) -> list[tuple]:
    """What every generator draws in the epochs after ``start`` of four."""
    dataset = Dataset([torch.zeros(1, 3, 2)] * 2, Compose([RandGaussianNoise(prob=1.0)]))
    drawn = []

    def step(engine, batch):
        if engine.state.iteration > start:  # one iteration an epoch
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item(), float(dataset[0].sum())))
        for _ in range(noise_before):
            random.random(), np.random.rand(), torch.rand(1), dataset[1]

    engine = Engine(step)
    EpochSeed(seed, dataset).attach(engine)
    engine.run([0], max_epochs=4)
    return drawn


def test_epochs_depend_on_seed_and_epoch_alone():
    whole = draws(7)
    assert len(set(whole)) == 4
    for one, other in zip(*whole[:2], strict=True):  # no generator was forgotten
        assert one != other
    assert draws(7, noise_before=3) == whole
    assert draws(7, start=2) == whole[2:]
    assert draws(8)[:3] == whole[1:]  # epoch n draws from seed + n


def test_sampler_is_told_the_epoch():
    dataset = Dataset(list(range(10)))
    sampler = DistributedSampler(dataset, num_replicas=2, rank=0, shuffle=True, seed=3)
    orders = []
    engine = Engine(lambda engine, batch: orders.append(list(sampler)))
    EpochSeed(0, dataset, sampler).attach(engine)
    engine.run([0], max_epochs=3)
    assert sampler.epoch == 3
    assert len({tuple(order) for order in orders}) == 3
