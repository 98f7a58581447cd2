# SPDX-License-Identifier: Apache-2.0
"""Write what inference found in volumes of electron microscopy: instances, a table of them and a picture."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from volseg.data.blank import blank_warnings
from volseg.data.case_statistics import CaseStatistics, short_name
from volseg.data.open_volume import ChunkedVolume, open_chunked_volume
from volseg.data.volume_formats.hdf5 import HDF5_SUFFIXES
from volseg.data.volume_formats.mrc import MRC_SUFFIXES
from volseg.data.volume_formats.nifti import NIFTI_SUFFIXES
from volseg.data.volume_formats.section_file import PNG_SUFFIX
from volseg.data.volume_formats.tiff_stack import TIFF_SUFFIXES
from volseg.data.volume_formats.voxel_size import VoxelSize, checked_voxel_size, chosen_voxel_size
from volseg.handlers.case_log import CaseLog
from volseg.instances.picture import save_instance_preview
from volseg.instances.table import instance_table, write_instance_table
from volseg.instances.writer import instances_path, write_instances
from volseg.storage.files import check_folder

__all__ = ["SaveImageInstances", "case_name", "free_case_name", "voxel_warnings"]

logger = logging.getLogger(__name__)

# the first that fits is taken off
_SUFFIXES = (".ome.zarr", ".zarr", ".ome.tif", ".ome.tiff", *TIFF_SUFFIXES, *HDF5_SUFFIXES, *NIFTI_SUFFIXES,
             *MRC_SUFFIXES, PNG_SUFFIX, ".json")  # fmt: skip
ENDING = "_instances"
_LARGE_FRACTION = 0.4
# lengths that differ by less are no other voxel size to a network
_SIMILAR = 1.3


class SaveImageInstances:
    """After each case write ``NAME_instances`` in the input's format, ``NAME_instances.csv`` and ``NAME_preview.png``.

    Every file appears whole or not at all. ``statistics.json`` holds an entry for each case, those of earlier runs
    included. Of cases with the same name, later ones are numbered.

    Memory beside the labels: some sections of them and of the image, below 0.5 GB for sections of 4096 x 4096, however
    many there are.

    Args:
        output_dir: folder of the results.
        voxel_size_nm: along z, y, x, in place of what inputs say; None: volumes in µm³ are left out for inputs that do
            not say theirs.
        preview: ``False`` leaves the pictures out.
        trained_voxel_size_nm: of the data that the weights learnt from, for warnings.
        resample: whether volumes were brought to that size for the network.

    Raises:
        UserError: ``voxel_size_nm`` is not three lengths; in a run, what
            :func:`volseg.instances.writer.write_instances` raises.
    """

    def __init__(
        self,
        output_dir: str,
        voxel_size_nm: Sequence[float] | None = None,
        preview: bool = True,
        trained_voxel_size_nm: Sequence[float] | None = None,
        resample: bool = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.voxel_size_nm = checked_voxel_size(voxel_size_nm)
        self.trained_voxel_size_nm = checked_voxel_size(trained_voxel_size_nm, "trained_voxel_size_nm")
        self.resample = resample
        self.preview = preview
        self.statistics = CaseStatistics(output_dir, ENDING, key="instances")
        self.fingerprint: str | None = None  # of the case at hand
        self.count = 0
        self.log = CaseLog(logger)
        self._opened: tuple[str, ChunkedVolume, VoxelSize | None, list[str]] | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._report)

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            image = item["image"]
            blank_fraction = float(image.isnan().double().mean())
            labels = np.asarray(item["pred"].cpu())[0]
            warnings, quality = getattr(engine, "warnings", ()), image.meta.get("quality", {})
            self.write(image.meta["filename_or_obj"], labels, blank_fraction, warnings, quality)

    def begin(self, path: str, fingerprint: str) -> None:
        """Take note of what the next case's result depends on, see that it can be written, and warn of its voxels."""
        self.fingerprint = fingerprint
        image, _, _ = self._open(path)
        instances_path(self.output_dir / f"{self._name(path)}{ENDING}", image)

    def take(self, image: MetaTensor) -> None:
        """Keep nothing: the picture reads its few planes from the file."""

    def settings(self) -> dict[str, Any]:
        """What results depend on."""
        names = ("voxel_size_nm", "trained_voxel_size_nm", "resample", "preview")
        return {name: getattr(self, name) for name in names}

    def write(
        self,
        path: str,
        labels: np.ndarray,
        blank_fraction: float = 0.0,
        logged: Sequence[str] = (),
        quality: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Write the results of one case.

        Args:
            path: of its image.
            labels: instance ids ``(D, H, W)``.
            blank_fraction: part of the image without tissue, which is NaN in the network's input.
            logged: warnings of the image, logged already.
            quality: further statistics, of the network's output.
        """
        image, voxel_size_nm, of_voxels = self._open(path)
        name = self._name(path)
        written = write_instances(self.output_dir / f"{name}{ENDING}", labels, image, voxel_size_nm)
        table = instance_table(labels, voxel_size_nm)
        write_instance_table(self.output_dir / f"{name}_instances.csv", table)
        shown = f"{len(table)} instance{'' if len(table) == 1 else 's'}"
        if self.preview:
            picture = self.output_dir / f"{name}_preview.png"
            save_instance_preview(picture, image, labels, voxel_size_nm, f"{name}: {shown}")
        fraction = sum(instance.voxels for instance in table) / labels.size
        found = [*blank_warnings(blank_fraction), *_warnings(len(table), fraction)]
        for warning in found:
            logger.warning("%s: %s", path, warning)
        self.statistics.add(
            path,
            {
                "instances": written.name,
                "count": len(table),
                "median_voxels": float(np.median([instance.voxels for instance in table])) if table else None,
                "foreground_fraction": round(fraction, 5),
                "voxel_size_nm": None if voxel_size_nm is None else list(voxel_size_nm),
                "warnings": [*(warning for warning in logged if warning not in of_voxels), *found, *of_voxels],
                **quality,
                **({"fingerprint": self.fingerprint} if self.fingerprint else {}),
            },
        )
        self.log.add(path, shown)
        self.count += 1

    def _start(self, engine: Engine) -> None:
        check_folder(self.output_dir)
        self.statistics.read()
        self.count = 0
        self.log.start()
        self._opened = None

    def _open(self, path: str) -> tuple[ChunkedVolume, VoxelSize | None, list[str]]:
        """A volume, its voxel size and the warnings of it, which are logged when it is first opened."""
        if self._opened is None or self._opened[0] != path:
            image = open_chunked_volume(path)
            voxel_size_nm = chosen_voxel_size(path, image.voxel_size_nm, self.voxel_size_nm)
            warnings = voxel_warnings(voxel_size_nm, self.trained_voxel_size_nm, self.resample)
            for warning in warnings:
                logger.warning("%s: %s", path, warning)
            self._opened = path, image, voxel_size_nm, warnings
        return self._opened[1:]

    def _name(self, path: str) -> str:
        """What the results of a volume are called already, or a name that no other volume's are called."""
        names = {
            image: entry["instances"].rpartition(ENDING)[0]
            for image, entry in self.statistics.entries.items()
            if "instances" in entry
        }
        return names.get(path) or free_case_name(path, set(names.values()))

    def _report(self, engine: Engine) -> None:
        logger.info("%d case(s) segmented, results in %s", self.count, self.output_dir.resolve())


def case_name(path: str) -> str:
    """What the results of a volume are called: ``a`` for ``a.ome.zarr``, ``a.nii.gz``, ``a.h5:main`` and a folder."""
    file, _, _ = path.rpartition(":")
    name = Path(file if file.lower().endswith(HDF5_SUFFIXES) else path).absolute().name
    suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
    return short_name(name[: len(name) - len(suffix)]) or "volume"


def free_case_name(path: str, used: Container[str]) -> str:
    """:func:`case_name` or, where that is used, the first of ``NAME_2``, ``NAME_3`` and so on that is not."""
    name = case_name(path)
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([name], numbered) if candidate not in used)


def _warnings(count: int, fraction: float) -> list[str]:
    """What a reader of the result should know before trusting it."""
    found = []
    if count == 0:
        found.append("no instance found.")
    elif fraction > _LARGE_FRACTION:
        found.append(f"{fraction:.0%} of the volume is foreground, far more than mitochondria take in most tissue.")
    return found


def voxel_warnings(
    voxel_size_nm: Sequence[float] | None, trained_nm: Sequence[float] | None, resample: bool = False
) -> list[str]:
    """What a reader of the result should know of a volume's voxel size.

    Args:
        voxel_size_nm: along z, y, x; None if unknown.
        trained_nm: of the data that the weights learnt from.
        resample: whether the network saw the volume at that size.
    """
    if voxel_size_nm is None:
        known = "" if trained_nm is None else f", may differ from the {_text(trained_nm)} nm that the weights learnt at"
        return [f"the voxel size is not known{known}, and volumes in µm³ are left out; give --voxel_size_nm."]
    found = []
    _, rows, columns = voxel_size_nm
    if abs(math.log(rows / columns)) > math.log(_SIMILAR):
        found.append(
            f"pixels of {rows:g}x{columns:g} nm are not square, as those of microscopes are; give the voxel size along "
            "z, y, x."
        )
    if trained_nm is None:
        return found
    ratios = [edge / learnt for edge, learnt in zip(voxel_size_nm, trained_nm, strict=True)]
    size, trained = _text(voxel_size_nm), _text(trained_nm)
    coarser = ", ".join(axis for axis, ratio in zip("zyx", ratios, strict=True) if ratio > _SIMILAR)
    if resample and coarser:
        found.append(
            f"voxels of {size} nm are coarser along {coarser} than the {trained} nm that the weights learnt at; "
            "results may suffer."
        )
    if not resample and any(abs(math.log(ratio)) > math.log(_SIMILAR) for ratio in ratios):
        found.append(
            f"voxels of {size} nm, but the weights learnt at {trained} nm, and resampling is off: use --resample True, "
            "or train again."
        )
    return found


def _text(lengths: Sequence[float]) -> str:
    return "x".join(f"{length:g}" for length in lengths)
