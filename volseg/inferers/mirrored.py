# SPDX-License-Identifier: Apache-2.0
"""Predictions for an image and its mirror image, averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer

__all__ = ["MirroredInferer"]


class MirroredInferer(SimpleInferer):
    """The mean of a network's outputs for an image and for its mirror image, which is mirrored back.

    For anatomy that is nearly symmetric, and networks that were trained with mirroring.

    Args:
        spatial_axis: that is mirrored: 0 to 2 of x, y, z.
    """

    def __init__(self, spatial_axis: int = 0) -> None:
        super().__init__()
        self.axis = 2 + spatial_axis

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The output ``(B, C, X, Y, Z)`` for ``inputs`` ``(B, 1, X, Y, Z)``."""
        mirrored = network(inputs.flip(self.axis), *args, **kwargs).flip(self.axis)
        return (network(inputs, *args, **kwargs) + mirrored) / 2
