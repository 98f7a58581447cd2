# SPDX-License-Identifier: Apache-2.0
"""Tests of the augmentation of batches."""

from __future__ import annotations

import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.transforms import CenterSpatialCropd, RandShiftIntensityd, RandSpatialCropd

from volseg.handlers.epoch import EpochSeed
from volseg.transforms.augment_batch import AugmentBatch


def batch() -> dict[str, torch.Tensor]:
    image = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 1, 3, 4, 5)
    return {"image": image, "label": -image, "name": ["a", "b"]}


def test_without_transforms_the_batch_is_as_it_was():
    given = batch()
    image, label = AugmentBatch()(given, "cpu")
    assert image is given["image"]
    assert label is given["label"]


def test_each_case_is_transformed_and_its_entries_together():
    crop = RandSpatialCropd(["image", "label"], roi_size=(2, 2, 3), random_size=False)
    image, label = AugmentBatch([crop]).set_random_state(0)(batch(), "cpu")
    assert image.shape == label.shape == (2, 1, 2, 2, 3)
    assert torch.equal(image, -label)
    starts = image[:, 0, 0, 0, 0] - torch.tensor([0, 60])
    assert starts[0] != starts[1]


def test_meta_data_is_left_behind():
    given = {key: MetaTensor(value) for key, value in batch().items() if key != "name"}
    image, _ = AugmentBatch([CenterSpatialCropd(["image", "label"], roi_size=(1, 2, 3))])(given, "cpu", dtype=float)
    assert image.dtype == torch.float64
    assert type(AugmentBatch()(given, "cpu")[0]) is torch.Tensor
    assert torch.equal(torch.as_tensor(image[0, 0, 0]), batch()["image"][0, 0, 1, 1:3, 1:4].double())


def test_epochs_of_augmentation_depend_on_seed_and_epoch_alone():
    def means(start: int, seed: int = 5) -> list[float]:
        augment = AugmentBatch([RandShiftIntensityd("image", offsets=9.0, prob=1.0)])
        network, seen = torch.nn.Conv3d(1, 1, 1), []
        for _ in range(start):  # draws that a resumed training has not made
            augment(batch(), "cpu")
        trainer = SupervisedTrainer(
            device=torch.device("cpu"), max_epochs=3, train_data_loader=[batch()], network=network,
            optimizer=torch.optim.SGD(network.parameters(), 0.0), loss_function=torch.nn.MSELoss(),
            prepare_batch=augment, decollate=False, train_handlers=[],
        )  # fmt: skip
        EpochSeed(seed, dataset=[]).attach(trainer)
        trainer.add_event_handler("ITERATION_COMPLETED", lambda e: seen.append(float(e.state.output["image"].mean())))
        trainer.run()
        return seen

    assert len(set(means(0))) == 3
    assert means(2) == means(0)
    assert means(0, seed=6)[:2] == means(0)[1:]
