# SPDX-License-Identifier: Apache-2.0
"""Tests of the way from class probabilities to a label map in the file's geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd
from pdvnet_lung.lobes import from_cip_codes

from volseg.data.volume_reader import load_volume
from volseg.label_maps.overlap import confusion_counts, dice_per_label
from volseg.transforms.checks import CheckLabelsd
from volseg.transforms.grid_resize import GridResized, SoftTargetd
from volseg.transforms.native_argmax import NativeArgmaxd, interpolated_argmax

# voxel axes run to posterior, superior, left
AFFINE = np.array([[0, 0, -1.5, 12], [-0.7, 0, 0, -30], [0, 2.5, 0, 400], [0, 0, 0, 1.0]])
NATIVE = (9, 6, 11)

REAL = Path(__file__).parents[4] / "shared" / "data" / "lung"


def preprocessed(size: tuple[int, ...], native: MetaTensor | None = None) -> tuple[Compose, MetaTensor]:
    if native is None:
        native = MetaTensor(torch.zeros(1, *NATIVE), affine=torch.from_numpy(AFFINE), meta={"filename_or_obj": "a.nii"})
    preprocessing = Compose([Orientationd("image", "RAS", labels=None), GridResized("image", size)])
    return preprocessing, preprocessing({"image": native})["image"]


def logits(channels: int, size: tuple[int, ...]) -> torch.Tensor:
    return 3 * torch.randn(channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("native", "size"),
    [
        (NATIVE, (8, 12, 4)),
        (NATIVE, (11, 9, 6)),  # the native grid, turned to RAS
        ((5, 37, 4), (8, 3, 7)),  # more slices (along the second axis) than are decided at a time
        ((5, 37, 4), (2, 8, 50)),
        ((66, 3, 70), (30, 13, 3)),  # more along the other two
    ],
)
def test_equals_inverting_all_channels_at_once(native, size):
    volume = MetaTensor(torch.zeros(1, *native), affine=torch.from_numpy(AFFINE), meta={"filename_or_obj": "a.nii"})
    preprocessing, image = preprocessed(size, volume)
    pred = logits(4, size)
    labels = NativeArgmaxd("pred", preprocessing)({"image": image, "pred": pred})["pred"]

    invert = Invertd("p", preprocessing, orig_keys="image", nearest_interp=False)
    channels = torch.cat([invert({"image": image, "p": MetaTensor(p[None])})["p"].as_tensor() for p in pred.softmax(0)])
    assert labels.shape == (1, *native)
    # the chosen class is as probable as the best one: rounding may decide between equals
    chosen = channels.gather(0, labels.as_tensor().long())
    torch.testing.assert_close(chosen, channels.amax(dim=0, keepdim=True), rtol=0, atol=1e-6)
    assert (labels.as_tensor() == channels.argmax(dim=0, keepdim=True)).float().mean() > 0.99
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("size", [(140, 70, 40), (130, 60, 9)])
def test_blocks_of_one_class_are_decided_as_the_others(size):
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (35, 32, 20)), indexing="ij")
    ball = 0.2 - (x - 0.6).square() - y.square() - (z + 0.2).square()
    edge = 0.1 - (x - 0.6).abs() - y.abs()
    scores = 20 * torch.stack([torch.zeros_like(x), ball, edge, x - 2])  # the last one is nowhere the best
    labels = interpolated_argmax(scores, size)
    assert labels.unique().tolist() == [0, 1, 2]
    assert not labels[:64].any()
    expected = F.interpolate(scores.softmax(0)[None], size=size, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(expected.gather(0, labels[None].long())[0], expected.amax(0), rtol=0, atol=1e-6)


def test_geometry_is_that_of_the_file():
    preprocessing, image = preprocessed((8, 12, 4))
    data = {"image": image, "pred": logits(3, (8, 12, 4))}
    labels = NativeArgmaxd("pred", preprocessing)(data)["pred"]
    assert labels.shape == (1, *NATIVE)
    assert labels.dtype == torch.uint8
    np.testing.assert_allclose(labels.affine, AFFINE, atol=1e-5)
    assert data["image"] is image and len(image.applied_operations) == 2  # the image is as it was
    assert data["pred"].shape == (3, 8, 12, 4)


def test_class_comes_out_where_it_was_in_the_patient():
    preprocessing, image = preprocessed((11, 9, 6))  # the native grid, turned to RAS
    pred = torch.zeros(3, 11, 9, 6)
    pred[1, 0] = 9  # the patient's leftmost plane
    pred[2, :, :, 5] = 12  # the highest
    labels = NativeArgmaxd("pred", preprocessing)({"image": image, "pred": pred})["pred"][0]
    assert (labels[:, 5] == 2).all()
    assert (labels[:, :5, 10] == 1).all()
    assert (labels[:, :5, :10] == 0).all()


def test_equally_probable_classes_go_to_the_first():
    preprocessing, image = preprocessed((8, 12, 4))
    pred = torch.zeros(3, 8, 12, 4)
    pred[0] = -1
    assert (NativeArgmaxd("pred", preprocessing)({"image": image, "pred": pred})["pred"] == 1).all()


def test_preprocessing_that_does_not_end_on_a_fixed_grid():
    preprocessing = Compose([Orientationd("image", "RAS", labels=None)])
    image = preprocessing({"image": MetaTensor(torch.zeros(1, *NATIVE), affine=torch.from_numpy(AFFINE))})["image"]
    with pytest.raises(ValueError, match=r"must be GridResized, got Orientation"):
        NativeArgmaxd("pred", preprocessing)({"image": image, "pred": logits(3, (11, 9, 6))})


def test_probabilities_and_not_logits_are_interpolated():
    preprocessing, image = preprocessed((1, 1, 2), MetaTensor(torch.zeros(1, 1, 1, 8), affine=torch.eye(4)))
    # class 0 by 50 in the first cell, class 1 by 2 in the second: probabilities 1 and 0.88 meet after 0.57 of the way
    # from one centre to the other, logits after 0.96
    pred = torch.tensor([[50.0, 0.0], [0.0, 2.0]])[:, None, None, :]
    labels = NativeArgmaxd("pred", preprocessing)({"image": image, "pred": pred})["pred"]
    # voxel centres lie at 0, 0, 1/8, 3/8, 5/8, 7/8, 1, 1 of the way
    assert labels.flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_low_precision_logits():
    preprocessing, image = preprocessed((8, 12, 4))
    pred = logits(3, (8, 12, 4)).bfloat16()
    transform = NativeArgmaxd("pred", preprocessing)
    low, full = (transform({"image": image, "pred": p})["pred"] for p in (pred, pred.float()))
    assert torch.equal(low.as_tensor(), full.as_tensor())


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no lobe maps in {REAL}")
def test_real_labels_survive_the_network_grid_as_inference_does_it():
    paths = [*sorted(REAL.glob("ts_lobe_labels_1p5mm/*.nii.gz")), *sorted(REAL.glob("tang_luna16_lobes/*.nrrd"))]
    scores = {path.name: round_trip_dice(path) for path in paths}
    assert len(scores) == 18
    assert np.mean(list(scores.values())) >= 0.985
    # the worst has 336 slices of 1.5 mm, so that each of the 32 cells along z spans 16 mm
    assert min(scores.values()) >= 0.96, scores


def round_trip_dice(path: Path) -> float:
    """Mean lobe Dice of a label map that goes to the network's output grid and back the way inference does it."""
    grid = (512, 512, 64)
    label = load_volume(path)
    if path.suffix == ".nrrd":
        label = MetaTensor(torch.from_numpy(from_cip_codes(label.numpy())), meta=label.meta)
    label = CheckLabelsd("label", 6)({"label": label})["label"]
    preprocessing, image = preprocessed(grid, label)

    target = Compose([Orientationd("label", "RAS", labels=None), SoftTargetd("label", 6, [n // 2 for n in grid])])
    fractions = target({"label": label})["label"]
    enlarged = F.interpolate(fractions[None], scale_factor=2.0, mode="trilinear", align_corners=False)[0]
    data = {"image": image, "pred": enlarged.clamp_(min=1e-6).log_()}
    back = NativeArgmaxd("pred", preprocessing)(data)["pred"]

    assert back.shape == label.shape
    np.testing.assert_allclose(back.affine, label.affine, atol=1e-3)
    return dice_per_label(confusion_counts(back.numpy()[0], label.numpy()[0].astype(np.uint8), num_classes=6))[
        1:
    ].mean()
