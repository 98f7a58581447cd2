# SPDX-License-Identifier: Apache-2.0
"""Average precision of instances as a metric of MONAI, accumulated over volumes, and as its handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction

from volseg.errors import UserError
from volseg.instances.average_precision import NO_TRUTH, instance_average_precision

__all__ = ["InstanceAveragePrecision", "InstanceAveragePrecisionMetric"]


class InstanceAveragePrecisionMetric(CumulativeIterationMetric):
    """Mean over volumes of :func:`volseg.instances.average_precision.instance_average_precision`.

    Called with instance ids as a list of volumes (1, D, H, W) or a batch (B, 1, D, H, W), of integers or of whole
    numbers in floating point, as MONAI's transforms leave them; 0 is the background. A call returns the volumes' values
    (B, 1); :meth:`aggregate` gives their mean over all calls and processes.

    A volume without true instances has no average precision: its value is NaN and, as in MONAI's metrics, it does not
    count in the mean, which is 0 if no volume counts. A volume with true instances and no predicted ones has 0.

    Args:
        iou_threshold: IoU from which on a prediction is right, above 0 and up to 1.
        min_size: true instances with fewer voxels count as background.

    Raises:
        UserError: when called, if the threshold is outside its range, or a volume has several channels, holds values
            that are no ids, or does not fit its counterpart.
    """

    def __init__(self, iou_threshold: float = 0.75, min_size: int = 0) -> None:
        super().__init__()
        self.iou_threshold = iou_threshold
        self.min_size = min_size

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if y is None:
            raise UserError("the metric must be called with a prediction and a truth, got no truth")
        predictions, truths = _volumes("prediction", y_pred), _volumes("truth", y)
        values = [self._value(prediction, truth) for prediction, truth in zip(predictions, truths, strict=True)]
        # On the device of the prediction, where values of several processes are gathered.
        return torch.tensor(values, dtype=torch.float32, device=y_pred.device)[:, None]

    def _value(self, prediction: np.ndarray, truth: np.ndarray) -> float:
        result = instance_average_precision(prediction, truth, (self.iou_threshold,), {}, self.min_size)
        return float("nan") if result.ap == NO_TRUTH else result.ap

    def aggregate(self) -> torch.Tensor:
        """Mean over all volumes so far that have true instances, (1,).

        Raises:
            ValueError: the metric was not called since it was made or reset.
        """
        values = self.get_buffer()
        if not isinstance(values, torch.Tensor):
            raise ValueError("the data to aggregate must be PyTorch Tensor.")
        return do_metric_reduction(values, "mean")[0]


def _volumes(name: str, batch: torch.Tensor) -> np.ndarray:
    """Integer ids (B, D, H, W) of a batch (B, 1, D, H, W)."""
    ids = batch.detach().cpu()
    if ids.ndim < 4 or ids.shape[1] != 1:
        raise UserError(f"{name} must hold instance ids in one channel, (B, 1, D, H, W), got {tuple(batch.shape)}")
    ids = ids[:, 0]
    if ids.is_floating_point():
        # From 2 / eps on, neighbouring ids fall on one number: 2**24 in float32, 2048 in float16.
        highest_id = 2 / torch.finfo(ids.dtype).eps
        whole = ids.to(torch.int64)
        if not (torch.equal(whole.to(ids.dtype), ids) and float(ids.max() if ids.numel() else 0) < highest_id):
            raise UserError(
                f"{name} must hold instance ids, integers below {highest_id:.0f}, got other values of {ids.dtype}; "
                "keep ids in an integer type"
            )
        ids = whole
    return ids.numpy()


def _as_it_is(output: Any) -> Any:
    return output


class InstanceAveragePrecision(IgniteMetricHandler):
    """Mean average precision over the volumes of an epoch, to be a ``key_val_metric`` of MONAI's evaluators.

    Args:
        iou_threshold: IoU from which on a predicted instance is right; 0.75 gives the AP-75 of the MitoEM challenge.
        min_size: true instances with fewer voxels count as background.
        output_transform: takes the engine's output and returns predicted and true instance ids, each a list of
            (1, D, H, W) or a batch (B, 1, D, H, W): ``monai.handlers.from_engine(["pred", "label"])``.
        save_details: whether the engine keeps the value of every volume in ``state.metric_details``.

    Raises:
        UserError: in the run, as
            :class:`volseg.instances.average_precision_metric.InstanceAveragePrecisionMetric`.
    """

    def __init__(
        self,
        iou_threshold: float = 0.75,
        min_size: int = 0,
        output_transform: Callable[[Any], Any] = _as_it_is,
        save_details: bool = True,
    ) -> None:
        super().__init__(
            metric_fn=InstanceAveragePrecisionMetric(iou_threshold, min_size),
            output_transform=output_transform,
            save_details=save_details,
        )
