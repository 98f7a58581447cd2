# SPDX-License-Identifier: Apache-2.0
"""Apply random transforms to a batch on the training device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys

__all__ = ["AugmentBatch"]


class AugmentBatch(PrepareBatch):
    """Move a batch to the device and apply transforms to its cases there.

    Use it as the ``prepare_batch`` of a trainer. The data loader's workers read and decode; a GPU then rotates, deforms
    and blurs in a fraction of the time of a CPU core. Without transforms this is MONAI's default.

    Transforms draw their random numbers on the host, so a seed gives the same result on every device.

    Args:
        transforms: map a case with ``image`` and ``label``, ``(C, X, Y, Z)`` each, to another case. All cases of a
            batch must come out in one size.
    """

    def __init__(self, transforms: Sequence[Callable[..., Any]] = ()) -> None:
        self.transform = Compose(list(transforms))

    def set_random_state(self, seed: int) -> AugmentBatch:
        """Seed the transforms."""
        self.transform.set_random_state(seed)
        return self

    def __call__(
        self,
        batchdata: Mapping[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels, ``(B, C, X, Y, Z)`` on the device."""
        keys = (CommonKeys.IMAGE, CommonKeys.LABEL)
        # networks run slower on tensors with metadata and do not use it
        image, label = (
            convert_to_tensor(batchdata[key], track_meta=False).to(device=device, non_blocking=non_blocking, **kwargs)
            for key in keys
        )
        if not self.transform.transforms:
            return image, label
        cases = [self.transform(dict(zip(keys, case, strict=True))) for case in zip(image, label, strict=True)]
        image, label = (torch.stack([convert_to_tensor(case[key], track_meta=False) for case in cases]) for key in keys)
        return image, label
