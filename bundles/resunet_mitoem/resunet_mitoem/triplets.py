# SPDX-License-Identifier: Apache-2.0
"""Three consecutive clean sections, which the interpolation network (arXiv 2104.07961) learns from without labels."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform, Transform

from resunet_mitoem.data import datalist, find_em_volumes
from resunet_mitoem.interpolation import to_unit_range
from resunet_mitoem.noisy_sections import check_one_volume, find_noisy_sections
from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError

logger = logging.getLogger(__name__)

# what transforms take
Case = dict[Hashable, Any]


def triplet_splits(
    input: str | None,
    dataset_dir: str | None,
    patch_size: Sequence[int],
    phantom_dir: str,
    phantom_cases: Mapping[str, int],
    phantom_shape: Sequence[int],
    phantom_seed: int = 0,
    sections: Sequence[int] | None = None,
    held_out_fraction: float = 0.1,
) -> dict[str, list[Case]]:
    """The clean triplets of the volumes for training and of those for validation.

    Where there are no volumes for validation, the last clean triplets of each volume are held out.

    Args:
        input: volumes of any kind, see :func:`~resunet_mitoem.data.find_em_volumes`; empty: those of the dataset.
        dataset_dir, phantom_dir, phantom_cases, phantom_shape, phantom_seed: see
            :meth:`volseg.phantoms.dataset.PhantomSet.datalist`.
        patch_size: (height, width) of the patches, in pixels; both alike.
        sections: the noisy ones of the only volume; ``None`` looks for them, in all volumes.
        held_out_fraction: see :func:`hold_out`.

    Returns:
        for ``training`` and ``validation`` one case per volume: ``volume``, open for reading, and ``sections``, those
        that are clean and have clean neighbours.

    Raises:
        UserError: a volume cannot be read, has no clean triplet or is smaller than the patch; the patch is not square;
            or ``sections`` are given with several volumes.
    """
    if len({*patch_size}) != 1:
        raise UserError(
            f"patch_size must be square such as [256,256], as patches are rotated by 90 degrees, got {list(patch_size)}"
        )
    if input:
        paths = {"training": [str(path) for path in find_em_volumes(input)], "validation": []}
    else:
        phantoms = (phantom_dir, phantom_cases, phantom_shape, phantom_seed)
        paths = {
            split: [case["image"] for case in datalist(dataset_dir, split, *phantoms)]
            for split in ("training", "validation")
        }
    check_one_volume(sections, sum(len(found) for found in paths.values()))
    splits = {split: [_case(path, sections, patch_size) for path in found] for split, found in paths.items()}
    if splits["validation"]:
        return splits
    pairs = [hold_out(case, held_out_fraction) for case in splits["training"]]
    return {"training": [training for training, _ in pairs], "validation": [validation for _, validation in pairs]}


def hold_out(case: Case, fraction: float) -> tuple[Case, Case]:
    """Split the triplets of a volume in two without a section in common.

    Args:
        case: see :func:`triplet_splits`; its sections ascend.
        fraction: of the triplets, the last of them, that the second part takes; at least one.

    Raises:
        UserError: nothing is left for the first part.
    """
    sections = case["sections"]
    held_out = sections[-max(1, round(fraction * len(sections))) :]
    kept = [section for section in sections if section + 1 < held_out[0] - 1]
    if not kept:
        raise UserError(
            f"{_name(case['volume'])}: {len(sections)} clean triplets are too few for training and validation; give a "
            "deeper volume"
        )
    return {**case, "sections": kept}, {**case, "sections": held_out}


def fixed_places(cases: Sequence[Case], patches: int, patch_size: Sequence[int], seed: int = 0) -> list[Case]:
    """Places of patches that are drawn once; volumes take turns.

    Args:
        cases: see :func:`triplet_splits`.
        patches: how many.
        patch_size: (height, width), in pixels.
        seed: other seeds draw other places.

    Returns:
        entries that :class:`TripletPatch` reads.
    """
    draw = RandTripletPatch(patch_size)
    draw.set_random_state(seed)
    places: list[Case] = []
    for number in range(patches):
        case = cases[number % len(cases)]
        draw.randomize(case)
        places.append({"volume": case["volume"], "section": draw.section, "corner": draw.corner})
    return places


def clean_triplets(depth: int, noisy: Iterable[int], name: str = "volume") -> list[int]:
    """The sections that are clean and have clean sections right before and after them.

    Args:
        depth: number of sections.
        noisy: indices along z of sections that are not clean.
        name: of the volume, for the error.

    Raises:
        UserError: there is none.
    """
    spoilt = set(noisy)
    sections = [i for i in range(1, depth - 1) if spoilt.isdisjoint((i - 1, i, i + 1))]
    if not sections:
        raise UserError(
            f"{name}: no three consecutive clean sections, {len(spoilt)} of {depth} are noisy; give a deeper volume or "
            "fewer noisy sections"
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


def _case(path: str, sections: Sequence[int] | None, patch_size: Sequence[int]) -> Case:
    volume = open_chunked_volume(path)
    if any(patch > size for patch, size in zip(patch_size, volume.shape[1:], strict=True)):
        raise UserError(
            f"{path}: sections of {tuple(volume.shape[1:])} pixels are smaller than a patch, {tuple(patch_size)}; give "
            "a smaller --patch_size"
        )
    noisy = find_noisy_sections(volume, sections)
    triplets = clean_triplets(volume.shape[0], noisy, path)
    logger.info("%s: %d clean triplets, noisy sections: %s", path, len(triplets), noisy or "none")
    return {"volume": volume, "sections": triplets}


def _name(volume: Any) -> str:
    """The path of a volume on disk; an array has none."""
    return str(getattr(volume, "path", "volume"))
