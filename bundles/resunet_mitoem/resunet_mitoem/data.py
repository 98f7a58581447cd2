# SPDX-License-Identifier: Apache-2.0
"""Where the volumes of a training, an evaluation or an inference come from; see :class:`PhantomSet`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from volseg.data.volume_formats.hdf5 import HDF5_SUFFIXES
from volseg.data.volume_formats.mrc import MRC_SUFFIXES
from volseg.data.volume_formats.nifti import NIFTI_SUFFIXES
from volseg.data.volume_formats.zarr_volume import ZARR_METADATA_FILES
from volseg.errors import UserError
from volseg.phantoms.dataset import OmeZarrVolumes, PhantomSet
from volseg.phantoms.electron_microscopy import GENERATION, electron_microscopy

__all__ = ["LABEL_NAME", "PHANTOM_BINNING", "datalist", "find_em_volumes", "inference_list"]

LABEL_NAME = "mitochondria"
"""Of the label inside an OME-Zarr image."""

PHANTOM_BINNING = 4
"""Phantoms have pixels of 32 nm: blocks that two CPU cores can learn from in minutes hold more tissue then."""

# Not sections: in a folder each of these is a volume.
_VOLUME_SUFFIXES = (".zarr", *HDF5_SUFFIXES, *NIFTI_SUFFIXES, *MRC_SUFFIXES)


def find_em_volumes(source: str) -> list[Path]:
    """The volumes that a path given by a user stands for.

    Args:
        source: a volume in any format of :func:`volseg.data.open_volume.open_chunked_volume`, a folder of sections
            among them; or a folder of Zarr, HDF5 or NIfTI volumes, of which hidden ones are left out.

    Returns:
        one path a volume, sorted.

    Raises:
        UserError: no such file or folder.
    """
    path = Path(source)
    # file.h5:dataset is no path itself
    if not path.exists() and not Path(source.rpartition(":")[0]).is_file():
        raise UserError(
            f"{source}: no such file or folder. --input takes a folder of sections, a volume or a folder of volumes."
        )
    if not path.is_dir() or any((path / name).is_file() for name in ZARR_METADATA_FILES):
        return [path]
    volumes = [p for p in path.iterdir() if p.name.lower().endswith(_VOLUME_SUFFIXES) and not p.name.startswith(".")]
    return sorted(volumes) or [path]


_PHANTOMS = PhantomSet(
    "electron microscopy phantoms",
    partial(electron_microscopy, binning=PHANTOM_BINNING),
    GENERATION,
    OmeZarrVolumes(LABEL_NAME),
    find_em_volumes,
)
datalist = _PHANTOMS.datalist
inference_list = _PHANTOMS.inference_list
