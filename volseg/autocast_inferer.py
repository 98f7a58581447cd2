# SPDX-License-Identifier: Apache-2.0
"""Mixed precision for MONAI's engines, with the loss outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer

from volseg.runtime import bfloat16_is_native

__all__ = ["AutocastInferer"]


class AutocastInferer(SimpleInferer):
    """Run the network in bfloat16, on a GPU and where asked for on a CPU, and hand its output on in float32.

    The engines' own ``amp`` includes the loss, and sums of squares over a volume leave the range of float16. Here the
    loss is outside, and bfloat16 has the range of float32, so that no gradient needs scaling and a checkpoint has no
    scaler to carry. Weights and optimiser stay in float32. GPUs before Ampere have bfloat16 in name only.

    With PyTorch 2.13 the weights' gradients of 5x5x5 convolutions in bfloat16 are wrong on a CPU where the grid is
    smaller than the kernel, as at the bottom of a network that sees small volumes. Hence ``on_cpu``: for networks whose
    grids stay larger than their kernels, on CPUs that multiply bfloat16 in hardware; others compute in float32.

    Args:
        enabled: ``False`` is MONAI's ``SimpleInferer``.
        on_cpu: whether a CPU with bfloat16 uses it too.
    """

    def __init__(self, enabled: bool = True, on_cpu: bool = False) -> None:
        super().__init__()
        devices = {"cuda", "cpu"} if on_cpu and bfloat16_is_native() else {"cuda"}
        self.devices = devices if enabled else set()

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The network's output for ``inputs`` ``(B, C, X, Y, Z)``, float32."""
        device = inputs.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device in self.devices):
            output = network(inputs, *args, **kwargs)
        return output.float()
