# SPDX-License-Identifier: Apache-2.0
"""Patches of three consecutive clean sections, to train the interpolation network (arXiv 2104.07961) without labels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform, Transform

from resunet_mitoem.interpolation import to_unit_range
from volseg.errors import UserError

__all__ = ["RandSwapChannelsd", "RandTripletPatch", "TripletPatch", "clean_triplets", "prepare_triplets"]


def clean_triplets(depth: int, noisy: Iterable[int], name: str = "volume") -> list[int]:
    """The sections that are clean and have clean sections right before and after them.

    Args:
        depth: number of sections.
        noisy: indices along z of sections that are not clean.
        name: of the volume, for the error.

    Raises:
        UserError: there are none.
    """
    spoilt = set(noisy)
    sections = [i for i in range(1, depth - 1) if spoilt.isdisjoint((i - 1, i, i + 1))]
    if not sections:
        raise UserError(
            f"{name}: no three clean sections in a row. Received: {depth} sections, {len(spoilt)} of them noisy. "
            "Expected: a deeper volume or fewer noisy sections"
        )
    return sections


class TripletPatch(Transform):
    """Read a section and its two neighbours at a given place of a volume.

    Only the patch is read, so that the volume may be larger than memory.

    Args:
        patch_size: (height, width) in pixels.
    """

    def __init__(self, patch_size: Sequence[int]) -> None:
        self.patch_size = tuple(patch_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, torch.Tensor]:
        """Read.

        Args:
            data: ``volume``, (D, H, W), an array or anything that is sliced like one: whole numbers are scaled to
                [0, 1] by the largest of their type, others must lie there. ``section``, the index along z of the
                section to predict. ``corner``, the patch's first row and column.

        Returns:
            ``neighbours`` float32 ``(2, height, width)``, the sections before and after, and ``target`` float32
            ``(1, height, width)``.
        """
        section, (top, left), (height, width) = data["section"], data["corner"], self.patch_size
        pixels = data["volume"][section - 1 : section + 2, top : top + height, left : left + width]
        before, target, after = torch.from_numpy(to_unit_range(np.asarray(pixels)))
        return {"neighbours": torch.stack([before, after]), "target": target[None]}


class RandTripletPatch(RandomizableTransform):
    """Read a section and its two neighbours at a random place of a volume, see :class:`TripletPatch`.

    Args:
        patch_size: (height, width) in pixels, not larger than a section.
    """

    def __init__(self, patch_size: Sequence[int]) -> None:
        super().__init__(prob=1.0)
        self.read = TripletPatch(patch_size)
        self.section = 0
        self.corner = (0, 0)

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw ``section`` and ``corner``, the patch's first row and column, for a case of :meth:`__call__`."""
        super().randomize(None)
        self.section = data["sections"][self.R.randint(len(data["sections"]))]
        top, left = (
            int(self.R.randint(size - patch + 1))
            for patch, size in zip(self.read.patch_size, data["volume"].shape[1:], strict=True)
        )
        self.corner = (top, left)

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, torch.Tensor]:
        """Read at a new place or at the last one.

        Args:
            data: ``volume`` as of :class:`TripletPatch`, and ``sections``, the sections that may be predicted.

        Returns:
            as :class:`TripletPatch`.
        """
        if randomize:
            self.randomize(data)
        return self.read({"volume": data["volume"], "section": self.section, "corner": self.corner})


class RandSwapChannelsd(RandomizableTransform, MapTransform):
    """Reverse the order of channels: of two neighbours, the one before becomes the one after.

    Args:
        keys: entries ``(C, ...)``; either all are reversed or none.
        prob: probability of it.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.5, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        """Reverse, by a new draw or by the last one."""
        d = dict(data)
        if randomize:
            self.randomize(None)
        if self._do_transform:
            for key in self.key_iterator(d):
                d[key] = d[key].flip(0)
        return d


def prepare_triplets(
    batch: Mapping[str, torch.Tensor],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a batch of triplets the network's input and what it shall give: ``prepare_batch`` of MONAI's engines."""
    return (
        batch["neighbours"].to(device, non_blocking=non_blocking, **kwargs),
        batch["target"].to(device, non_blocking=non_blocking, **kwargs),
    )
