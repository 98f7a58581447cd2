# SPDX-License-Identifier: Apache-2.0
"""Tests of the average precision of instances as a metric of MONAI."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from monai.data import MetaTensor

from volseg.errors import UserError
from volseg.instances.average_precision_metric import InstanceAveragePrecisionMetric

# (1, D, H, W) = (1, 2, 1, 8): 8 voxels of 1, 2 of 2
TRUTH = torch.tensor([[[[1, 1, 1, 1, 0, 2, 2, 0]], [[1, 1, 1, 1, 0, 0, 0, 0]]]])
# 7 of 1 with an IoU of 7/8, nothing of 2: right up to a recall of 1/2, which 51 of 101 points do not pass
HALF = torch.tensor([[[[7, 7, 7, 7, 0, 0, 0, 0]], [[7, 7, 7, 0, 0, 0, 0, 0]]]])
HALF_AP = 51 / 101
NOTHING = torch.zeros_like(TRUTH)


@pytest.mark.parametrize(
    "convert", [lambda x: x, lambda x: x.to(torch.uint8), lambda x: MetaTensor(x.float()), lambda x: x.bfloat16()]
)
def test_lists_and_batches(convert):
    metric = InstanceAveragePrecisionMetric()
    values = metric([convert(HALF), convert(TRUTH)], [convert(TRUTH)] * 2)
    assert values.shape == (2, 1)
    torch.testing.assert_close(values, torch.tensor([[HALF_AP], [1.0]]))
    batch = metric(torch.stack([convert(HALF), convert(HALF)]), torch.stack([convert(TRUTH)] * 2))
    assert batch.shape == (2, 1)
    assert metric.aggregate().item() == pytest.approx((3 * HALF_AP + 1) / 4)
    metric.reset()
    metric([HALF], [TRUTH])
    assert metric.aggregate().item() == pytest.approx(HALF_AP)


def test_volumes_of_different_shapes():
    metric = InstanceAveragePrecisionMetric()
    metric([HALF, TRUTH[:, :1, :, :6]], [TRUTH, TRUTH[:, :1, :, :6]])
    assert metric.aggregate().item() == pytest.approx((HALF_AP + 1) / 2)


def test_options():
    strict, large = InstanceAveragePrecisionMetric(0.9), InstanceAveragePrecisionMetric(min_size=3)
    assert strict([HALF], [TRUTH]).tolist() == [[0]]
    assert large([HALF], [TRUTH]).tolist() == [[1]]


def test_empty_volumes():
    metric = InstanceAveragePrecisionMetric()
    values = metric([NOTHING, NOTHING, HALF, TRUTH], [TRUTH, NOTHING, NOTHING, TRUTH])
    torch.testing.assert_close(values, torch.tensor([[0], [torch.nan], [torch.nan], [1]]), equal_nan=True)
    assert metric.aggregate().item() == 0.5
    metric.reset()
    metric([HALF], [NOTHING])
    assert metric.aggregate().item() == 0


def test_aggregate_before_a_call():
    with pytest.raises(ValueError, match="must be PyTorch Tensor"):
        InstanceAveragePrecisionMetric().aggregate()


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (HALF.repeat(2, 1, 1, 1), r"prediction must hold instance ids in one channel.*, got \(1, 2, 2, 1, 8\)"),
        (HALF[0], r", got \(1, 2, 1, 8\)"),
        (HALF + 0.5, r"integers below 16777216, got other values of torch\.float32"),
        (HALF * torch.nan, "integers below"),
        ((HALF * 300).bfloat16(), "integers below 256"),
        (HALF[..., :7], "must have one shape"),
    ],
)
def test_errors(prediction, message):
    with pytest.raises(UserError, match=message):
        InstanceAveragePrecisionMetric()([prediction], [TRUTH])
    with pytest.raises(UserError, match="got no truth"):
        InstanceAveragePrecisionMetric()([HALF])


def test_all_processes_get_the_mean_of_all_volumes(tmp_path):
    # forked, as new interpreters would spend seconds on imports
    torch.multiprocessing.start_processes(in_one_of_two_processes, (str(tmp_path),), nprocs=2, start_method="fork")
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    # two volumes in one process, one in the other
    for aggregate, buffer in results:
        assert aggregate.item() == pytest.approx((HALF_AP + 1 + 0) / 3)
        torch.testing.assert_close(buffer, torch.tensor([[HALF_AP], [1.0], [0.0]]))


def in_one_of_two_processes(rank: int, folder: str) -> None:
    # A process that waits in vain fails instead of blocking the tests.
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=10)
    )
    metric = InstanceAveragePrecisionMetric()
    predictions = [[HALF, TRUTH], [NOTHING]][rank]
    metric(predictions, [TRUTH] * len(predictions))
    torch.save((metric.aggregate(), metric.get_buffer()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
