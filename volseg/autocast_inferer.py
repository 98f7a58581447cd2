# SPDX-License-Identifier: Apache-2.0
"""Mixed precision for MONAI's engines, with the loss outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer

__all__ = ["AutocastInferer"]


class AutocastInferer(SimpleInferer):
    """Run the network in bfloat16 on a GPU, and hand its output on in float32.

    The engines' own ``amp`` includes the loss, and sums of squares over a volume leave the range of float16. Here the
    loss is outside, and bfloat16 has the range of float32, so that no gradient needs scaling and a checkpoint has no
    scaler to carry. Weights and optimiser stay in float32. GPUs before Ampere have bfloat16 in name only.

    On a CPU everything stays in float32: there, with PyTorch 2.13, the weights' gradients of 5x5x5 convolutions in
    bfloat16 are wrong where the grid is smaller than the kernel, as at the bottom of a network that sees small volumes.

    Args:
        enabled: ``False`` is MONAI's ``SimpleInferer``.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The network's output for ``inputs`` ``(B, C, X, Y, Z)``, float32."""
        device = inputs.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.enabled and device == "cuda"):
            output = network(inputs, *args, **kwargs)
        return output.float()
