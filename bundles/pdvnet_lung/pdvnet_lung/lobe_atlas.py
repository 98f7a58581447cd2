# SPDX-License-Identifier: Apache-2.0
"""The floor of every score: lobes where most patients have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from volseg.phantoms.painted_ct.lobe_map import LobeMap, Patient

__all__ = ["LobeAtlas"]


class LobeAtlas(nn.Module):
    """The mean of lobe maps in the box around the lungs, whatever the image; stands in for a network.

    Args:
        lobe_maps: cases with ``lobe_map``, as :class:`pdvnet_lung.painted.ReadLobeMap` reads them.
        spatial_size: voxels of the grid over the box.
        margin_mm: around the lungs, as :class:`pdvnet_lung.lung_box.CropToLungsd` leaves it.

    Shapes:
        input ``(B, 1, X, Y, Z)``, output: logits ``(B, 6, X, Y, Z)``, the same for every input.
    """

    logits: torch.Tensor

    def __init__(
        self, lobe_maps: Iterable[Mapping[str, Any]], spatial_size: Sequence[int], margin_mm: float = 10.0
    ) -> None:
        super().__init__()
        shares = torch.stack([_shares_in_box(case["lobe_map"], spatial_size, margin_mm) for case in lobe_maps]).mean(0)
        background = 1 - shares.sum(0, keepdim=True)
        self.register_buffer("logits", torch.cat([background, shares]).clamp(min=1e-3).log()[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1, -1, -1, -1)


def _shares_in_box(shares: torch.Tensor, spatial_size: Sequence[int], margin_mm: float) -> torch.Tensor:
    """Shares of the lobes ``(5, X, Y, Z)`` at the centres of a grid over the box around the lungs."""
    patient = Patient(LobeMap(shares), np.random.default_rng(0), strength=0)
    low, high = patient.bounds_mm(step=2.0)
    low, high = low - margin_mm, high + margin_mm
    axes = [a + (np.arange(n) + 0.5) * (b - a) / n for a, b, n in zip(low, high, spatial_size, strict=True)]
    return torch.from_numpy(patient.shares(*axes))
