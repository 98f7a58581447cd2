# SPDX-License-Identifier: Apache-2.0
"""Where the volumes of a training, an evaluation or an inference come from, and the voxel size that they share."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from volseg.data.blank import blank_warnings, find_blank
from volseg.data.datalist import check_not_empty, has_cases, load_datalist
from volseg.data.find_volumes import listed_labels
from volseg.data.open_volume import ChunkedVolume, open_chunked_volume
from volseg.data.semantic_mask import label_warnings
from volseg.data.volume_formats.hdf5 import HDF5_SUFFIXES
from volseg.data.volume_formats.mrc import MRC_SUFFIXES
from volseg.data.volume_formats.nifti import NIFTI_SUFFIXES
from volseg.data.volume_formats.section_volume import find_sections
from volseg.data.volume_formats.voxel_size import VoxelSize
from volseg.data.volume_formats.zarr_volume import ZARR_METADATA_FILES
from volseg.errors import UserError
from volseg.phantoms.dataset import OmeZarrVolumes, PhantomSet
from volseg.phantoms.electron_microscopy import GENERATION, VARIED_GENERATION, electron_microscopy
from volseg.transforms.load_em_volume import check_one_shape, to_ids

__all__ = [
    "LABEL_NAME",
    "PHANTOM_BINNING",
    "check_training_cases",
    "datalist",
    "dataset_voxel_size",
    "find_em_volumes",
    "inference_list",
    "varied_datalist",
]

LABEL_NAME = "mitochondria"
"""Of the label inside an OME-Zarr image."""

PHANTOM_BINNING = 4
"""Phantoms have pixels of 32 nm: blocks that two CPU cores can learn from in minutes hold more tissue then."""

VARIED_BINNING = 3  # pixels of 24 nm

# Not sections: in a folder each of these is a volume.
_VOLUME_SUFFIXES = (".zarr", *HDF5_SUFFIXES, *NIFTI_SUFFIXES, *MRC_SUFFIXES)
logger = logging.getLogger(__name__)
_LOOKED_AT = (16, 1024, 1024)  # of a volume's middle
# lengths that differ by less are no other voxel size to a network
_SIMILAR = 1.3


def find_em_volumes(source: str) -> list[Path]:
    """The volumes that a path given by a user stands for.

    Args:
        source: a volume in any format of :func:`volseg.data.open_volume.open_chunked_volume`, a folder of sections
            among them; or a folder of Zarr, HDF5 or NIfTI volumes, of which hidden ones and own results are left out.

    Returns:
        one path a volume, sorted.

    Raises:
        UserError: no such file or folder, or more sections than volumes.
    """
    path = Path(source)
    # file.h5:dataset is no path itself
    if not path.exists() and not Path(source.rpartition(":")[0]).is_file():
        raise UserError(
            f"{source}: no such file or folder. --input takes a folder of sections, a volume or a folder of volumes."
        )
    if not path.is_dir() or any((path / name).is_file() for name in ZARR_METADATA_FILES):
        return [path]
    results = set(listed_labels(path))
    volumes = [p for p in path.iterdir() if p.name.lower().endswith(_VOLUME_SUFFIXES) and not p.name.startswith(".")]
    volumes = sorted(set(volumes) - results)
    if volumes and (sections := sorted(set(find_sections(path)) - results)):
        if len(sections) > len(volumes):
            raise UserError(
                f"{source}: must hold sections or volumes, got {len(sections)} sections ({sections[0].name}, ...) "
                f"beside {volumes[0].name}; give the one or the other a folder of its own"
            )
        logger.warning("%s: %d image(s) beside volumes left out, such as %s", source, len(sections), sections[0].name)
    return volumes or [path]


_PHANTOMS = PhantomSet(
    "electron microscopy phantoms",
    partial(electron_microscopy, binning=PHANTOM_BINNING),
    GENERATION,
    OmeZarrVolumes(LABEL_NAME),
    find_em_volumes,
)
datalist = _PHANTOMS.datalist
inference_list = _PHANTOMS.inference_list
varied_datalist = PhantomSet(
    "varied electron microscopy phantoms",
    partial(electron_microscopy, binning=VARIED_BINNING, varied=True),
    VARIED_GENERATION,
    OmeZarrVolumes(LABEL_NAME),
).datalist


def dataset_voxel_size(dataset_dir: str | Path) -> list[float] | None:
    """The voxel size (z, y, x) in nm of the volumes of a dataset folder; None where none of them says it.

    Args:
        dataset_dir: with ``dataset.json``; empty for phantoms, whose recipe says it.

    Raises:
        UserError: two volumes, of whichever split, differ by more than a factor of 1.3 along an axis.
    """
    if not dataset_dir:
        return None
    sizes: dict[str, VoxelSize] = {}
    splits = [load_datalist(dataset_dir, split) for split in ("training", "validation")]
    if has_cases(dataset_dir, "test"):
        splits.append(load_datalist(dataset_dir, "test"))
    for cases in splits:
        for case in cases:
            if (size := open_chunked_volume(case["image"], cache_bytes=0).voxel_size_nm) is not None:
                sizes[str(case["image"])] = size
    if not sizes:
        logger.warning("%s: no image says its voxel size; give it as --voxel_size_nm [30,8,8]", dataset_dir)
        return None
    (first, size), *others = sizes.items()
    for path, other in others:
        if any(abs(math.log(a / b)) > math.log(_SIMILAR) for a, b in zip(size, other, strict=True)):
            texts = ["x".join(f"{edge:g}" for edge in edges) for edges in (other, size)]
            raise UserError(
                f"{path}: volumes of a dataset must have one voxel size, got {texts[0]} nm, and {texts[1]} nm in "
                f"{first}; resample it, or correct it with prepare_data.json --voxel_size_nm"
            )
    return list(size)


def check_image(image: ChunkedVolume) -> None:
    """Refuse a mask that is given as an image.

    Raises:
        UserError: the middle of the volume holds two values.
    """
    grey = _middle(image)
    low, high = grey.min(), grey.max()  # sorting 16 million values takes a second
    if low < high and ((grey == low) | (grey == high)).all():
        raise UserError(
            f"{image.path}: every voxel is {low:g} or {high:g}, a mask and not an image; see whether image "
            "and label are exchanged"
        )


def check_training_cases(cases: Sequence[Mapping[str, str]]) -> None:
    """Look at the middle of each volume before a training starts, which itself sees random crops alone.

    Blank images, and labels that are empty, a semantic mask or an image, draw a warning.

    Args:
        cases: ``image`` and ``label`` of each.

    Raises:
        UserError: there are no cases, an image is a mask, image and label differ in shape, or a label holds no ids.
    """
    check_not_empty(cases)
    for case in cases:
        image, label = (open_chunked_volume(case[key], cache_bytes=0) for key in ("image", "label"))
        check_one_shape({case["image"]: image.shape, case["label"]: label.shape})
        check_image(image)
        ids = _middle(label)
        to_ids(ids, case["label"])
        for warning in label_warnings(ids):
            logger.warning("%s: %s", case["label"], warning)
        if find_blank(_middle(image)).all():
            logger.warning("%s: %s", case["image"], *blank_warnings(1))


def _middle(volume: ChunkedVolume) -> NDArray[Any]:
    """The middle of a volume (D, H, W), or all of a small one."""
    starts = [max(0, n - size) // 2 for n, size in zip(volume.shape, _LOOKED_AT, strict=True)]
    z, y, x = (slice(start, start + size) for start, size in zip(starts, _LOOKED_AT, strict=True))
    return volume[z, y, x]
