# SPDX-License-Identifier: Apache-2.0
"""Tests of the average precision of instances as the measure of a validation."""

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine

from volseg.instances.average_precision_metric import InstanceAveragePrecision

# (1, D, H, W) = (1, 2, 1, 8): 8 voxels of 1, 2 of 2
TRUTH = torch.tensor([[[[1, 1, 1, 1, 0, 2, 2, 0]], [[1, 1, 1, 1, 0, 0, 0, 0]]]])
# 7 of 1 with an IoU of 7/8, nothing of 2: right up to a recall of 1/2, which 51 of 101 points do not pass
HALF = torch.tensor([[[[7, 7, 7, 7, 0, 0, 0, 0]], [[7, 7, 7, 0, 0, 0, 0, 0]]]])
HALF_AP = 51 / 101


def evaluator(handler: InstanceAveragePrecision) -> SupervisedEvaluator:
    volumes = [{"image": ids.float(), "label": TRUTH.float()} for ids in (HALF, TRUTH, torch.zeros_like(HALF))]
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(volumes), batch_size=2),
        network=torch.nn.Identity(),
        key_val_metric={"val_ap75": handler},
        metric_cmp_fn=lambda new, best: new > best,
    )


def test_key_metric_of_an_evaluator():
    engine = evaluator(InstanceAveragePrecision(output_transform=from_engine(["pred", "label"])))
    for epoch in (1, 2):
        engine.run(epoch)
        assert engine.state.metrics["val_ap75"] == pytest.approx((HALF_AP + 1 + 0) / 3)
    assert (engine.state.key_metric_name, engine.state.best_metric_epoch) == ("val_ap75", 1)
    assert engine.state.best_metric == pytest.approx((HALF_AP + 1) / 3)
    details = engine.state.metric_details["val_ap75"]
    torch.testing.assert_close(details, torch.tensor([[HALF_AP], [1.0], [0.0]]))


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({"iou_threshold": 0.9}, 1 / 3),  # the IoU of 7/8 is too small
        ({"min_size": 3}, 2 / 3),  # the instance of 2 voxels is left out
    ],
)
def test_options(options, mean):
    engine = evaluator(
        InstanceAveragePrecision(output_transform=from_engine(["pred", "label"]), save_details=False, **options)
    )
    engine.run()
    assert engine.state.metrics["val_ap75"] == pytest.approx(mean)
    assert not hasattr(engine.state, "metric_details") or "val_ap75" not in engine.state.metric_details
