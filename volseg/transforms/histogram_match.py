# SPDX-License-Identifier: Apache-2.0
"""Match the intensity distribution of one volume to another (V-Net, arXiv 1606.04797, section 3)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import Dataset
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

__all__ = ["RandHistogramMatchd", "match_quantiles", "quantiles_of"]

# intensity levels that match_quantiles distinguishes
LEVELS = 65536


class RandHistogramMatchd(RandomizableTransform, MapTransform):
    """Match a volume's histogram to that of a randomly chosen case.

    All cases are equally likely; drawing the volume's own case leaves it unchanged. Only the quantiles of a case are
    kept, computed when it is first drawn. Each data loading worker has its own copy: make workers persistent, or every
    epoch recomputes them.

    Args:
        keys: entries ``(C, X, Y, Z)``; one call matches all of them to the same case.
        references: cases with the same keys, preprocessed like the input volumes but not augmented. With a
            ``PersistentDataset`` only quantiles stay in memory.
        prob: probability of a match.
        quantiles: number of quantiles to keep per case, 16 KB for 4097. Fewer miss the few bright voxels. On z-scored
            prostate MRI, 4097 differ from the exact match by 0.0001 on average; 257 differ by 0.003 on average and by
            more than 1 at the brightest voxels.

    Raises:
        ValueError: there are no references, or fewer than two quantiles.
    """

    def __init__(
        self,
        keys: KeysCollection,
        references: Dataset | Sequence[Mapping[Hashable, Any]],
        prob: float = 1.0,
        quantiles: int = 4097,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if len(references) == 0:
            raise ValueError("references must hold at least one case, got none")
        if quantiles < 2:
            raise ValueError(f"quantiles must be an integer >= 2, got {quantiles}")
        self.references = references
        self.quantiles = quantiles
        self.reference = 0
        self._tables: dict[int, dict[Hashable, torch.Tensor]] = {}

    def randomize(self, data: Any | None = None) -> None:
        """Decide whether to match and, if so, draw the index of the case into ``reference``."""
        super().randomize(None)
        if self._do_transform:
            self.reference = int(self.R.randint(len(self.references)))

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        """Match to a newly drawn case or to the last one."""
        d = dict(data)
        if randomize:
            self.randomize()
        if not self._do_transform:
            return d
        tables = self._quantile_tables(self.reference)
        for key in self.key_iterator(d):
            d[key] = match_quantiles(d[key], tables[key])
        return d

    def _quantile_tables(self, index: int) -> dict[Hashable, torch.Tensor]:
        if index not in self._tables:
            case = self.references[index]
            keys = self.key_iterator(dict(case))
            self._tables[index] = {key: quantiles_of(case[key], self.quantiles) for key in keys}
        return self._tables[index]


def quantiles_of(image: torch.Tensor, n: int = 4097) -> torch.Tensor:
    """Return the values at ``n`` evenly spaced cumulative frequencies from 0 to 1.

    Args:
        image: any shape.
        n: at least 2.

    Returns:
        float32 ``(n,)``, ascending.
    """
    values, counts = np.unique(convert_to_tensor(image, track_meta=False).cpu().numpy(), return_counts=True)
    # frequencies up to and including each value, as in scikit-image; numpy.quantile counts gaps between values
    frequencies = np.cumsum(counts) / counts.sum()
    return torch.from_numpy(np.interp(np.linspace(0, 1, n), frequencies, values)).float()


def match_quantiles(image: torch.Tensor, quantiles: torch.Tensor) -> torch.Tensor:
    """Map each value to the reference's value of equal cumulative frequency.

    This is scikit-image's ``match_histograms`` up to rounding, many times faster: values are not sorted, but rounded to
    65,536 levels between their extremes, and the reference counts as uniformly distributed between two quantiles.

    Args:
        image: any shape. A constant image has no histogram and is returned unchanged.
        quantiles: ``(n,)`` of the reference, see :func:`quantiles_of`.

    Returns:
        the image's shape, metadata and device; its dtype, or float32 for an integer dtype.
    """
    voxels = convert_to_tensor(image, track_meta=False)
    if not (voxels.numel() > 0 and bool(voxels.min() < voxels.max())):
        return image
    low, high = torch.aminmax(voxels.float())
    # high - low may be so small that its inverse overflows: divide first
    level = ((voxels.float() - low) / (high - low) * (LEVELS - 1)).round_().int().flatten()
    frequencies = torch.bincount(level, minlength=LEVELS).cumsum(0).double() / level.numel()
    # linear interpolation between quantiles
    position = frequencies * (len(quantiles) - 1)
    below = position.long().clamp(max=len(quantiles) - 2)
    table = quantiles.to(voxels.device, torch.float64)
    matched = torch.lerp(table[below], table[below + 1], position - below).float()
    dtype = image.dtype if image.dtype.is_floating_point else torch.float32
    return convert_to_dst_type(matched.index_select(0, level).reshape(image.shape), dst=image, dtype=dtype)[0]
