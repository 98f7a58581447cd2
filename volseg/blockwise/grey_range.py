# SPDX-License-Identifier: Apache-2.0
"""Grey values of a whole volume that go to a network a window at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["BYTES", "GreyRange"]


@dataclass(frozen=True)
class GreyRange:
    """Brings grey values from ``low`` and ``high`` to 0 and 1, alike in every block of a volume.

    With the mean as ``low``, the mean and one standard deviation as ``high`` and ``clipped=False`` it standardises.

    Attributes:
        low: becomes 0, and so does what is not finite.
        high: becomes 1; below ``low`` where larger values are darker.
        clipped: whether values outside the range become 0 and 1.
        finds_blank: whether what :func:`volseg.data.blank.find_blank` finds is no tissue: it gets neither a part in a
            prediction nor a label.
    """

    low: float
    high: float
    clipped: bool = True
    finds_blank: bool = False

    def __call__(self, voxels: NDArray[Any]) -> torch.Tensor:
        """float32 of the shape of ``voxels``, which stay as they are."""
        values = torch.from_numpy(np.array(voxels, dtype=np.float32))
        values = values.nan_to_num_(nan=self.low, posinf=self.low, neginf=self.low)
        values = values.sub_(self.low).div_((self.high - self.low) or 1.0)
        return values.clamp_(0, 1) if self.clipped else values


BYTES = GreyRange(0.0, 255.0)
"""Of 8-bit images."""
