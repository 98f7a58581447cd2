# SPDX-License-Identifier: Apache-2.0
"""Average precision of instances as the measure of a validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.handlers import IgniteMetricHandler

from volseg.instances.average_precision_metric import InstanceAveragePrecisionMetric

__all__ = ["InstanceAveragePrecision"]


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
