# SPDX-License-Identifier: Apache-2.0
"""Mixed precision for MONAI's engines, with the loss outside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch.overrides import TorchFunctionMode

from volseg.runtime.accelerate import bfloat16_is_native

__all__ = ["AutocastInferer"]

logger = logging.getLogger(__name__)

CONVOLUTIONS = (torch.conv2d, torch.conv3d)


class AutocastInferer(SimpleInferer):
    """Run the network in bfloat16, on a GPU or a CPU that multiplies it in hardware, and hand its output on in float32.

    The engines' own ``amp`` is for CUDA alone, takes float16, and includes the loss, though sums of squares over a
    volume leave the range of float16. Here the loss is outside, and bfloat16 has the range of float32, so that no
    gradient needs scaling and a checkpoint has no scaler to carry. Weights and optimiser stay in float32. GPUs before
    Ampere have bfloat16 in name only; CPUs without it compute in float32.

    Args:
        enabled: ``False`` is MONAI's ``SimpleInferer``.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        devices = {"cuda", "cpu"} if bfloat16_is_native() else {"cuda"}
        self.enabled = enabled
        self.devices = devices if enabled else set()

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The network's output for ``inputs`` ``(B, C, X, Y, Z)``, float32; a list where it is several tensors."""
        device = inputs.device.type
        is_used = device in self.devices
        if self.enabled:
            _announce(device, is_used)
        with (
            torch.autocast(device, torch.bfloat16, enabled=is_used),
            _ExactGradients() if is_used and device == "cpu" else nullcontext(),
        ):
            output = network(inputs, *args, **kwargs)
        return output.float() if isinstance(output, torch.Tensor) else [part.float() for part in output]


@lru_cache
def _announce(device: str, is_used: bool) -> None:
    """Say once what is computed in, as only the machine decides it."""
    what = "bfloat16, loss and weights in float32" if is_used else "float32, as this device has no bfloat16"
    logger.info("mixed precision on %s: the network computes in %s", device.upper(), what)


class _ExactGradients(TorchFunctionMode):
    """Leaves convolutions in float32 whose grid is smaller than their kernel, as at the bottom of a network.

    With PyTorch 2.13 the gradient of their weights in bfloat16 is wrong on a CPU. They have next to no voxels.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in CONVOLUTIONS and any(n < k for n, k in zip(args[0].shape[2:], args[1].shape[2:], strict=True)):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))
