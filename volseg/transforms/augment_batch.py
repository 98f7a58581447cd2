# SPDX-License-Identifier: Apache-2.0
"""Random transforms of a batch on the device that trains."""

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
    """Bring a batch to the device, and apply transforms to its cases there.

    For the ``prepare_batch`` of a trainer: the workers of the data loader read and decode, and a GPU turns, deforms and
    blurs what they bring, in a small part of the time that a core needs. Without transforms this is MONAI's default.

    Transforms draw their random numbers on the host, so that a seed means the same on every device.

    Args:
        transforms: from a case with ``image`` and ``label``, ``(C, X, Y, Z)`` each, to another one; all cases of a
            batch come out with one size.
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
        """Images and labels, ``(B, C, X, Y, Z)`` on the device."""
        keys = (CommonKeys.IMAGE, CommonKeys.LABEL)
        # a network is slower on tensors with meta data, of which it has no use
        image, label = (
            convert_to_tensor(batchdata[key], track_meta=False).to(device=device, non_blocking=non_blocking, **kwargs)
            for key in keys
        )
        if not self.transform.transforms:
            return image, label
        cases = [self.transform(dict(zip(keys, case, strict=True))) for case in zip(image, label, strict=True)]
        image, label = (torch.stack([convert_to_tensor(case[key], track_meta=False) for case in cases]) for key in keys)
        return image, label
