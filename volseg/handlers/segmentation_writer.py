# SPDX-License-Identifier: Apache-2.0
"""Write what inference found: label maps, statistics and pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from volseg.data.case_statistics import RESULT_KEYS, CaseStatistics
from volseg.handlers.case_log import CaseLog
from volseg.label_maps.anatomy import coded_segments
from volseg.label_maps.dicom_segmentation import DicomSegmentation
from volseg.label_maps.label_file import write_segmentation
from volseg.label_maps.nrrd_segmentation import write_nrrd_segmentation
from volseg.label_maps.picture import save_preview
from volseg.storage.files import check_folder

__all__ = ["SaveImageSegmentations"]

logger = logging.getLogger(__name__)

Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, Any]]


class SaveImageSegmentations:
    """After each case write ``NAME_SUFFIX.nii.gz`` and ``NAME_preview.png``, and a line for it in ``statistics.json``.

    Every file appears whole or not at all. Names tell the folders of a case below ``inputs``; of cases with the same
    name in different formats, later ones keep their suffix in it. ``statistics.json`` keeps the entries of earlier
    runs, and results of other images are never replaced.

    Args:
        output_dir: folder of the results.
        names: label to name.
        suffix: of the label map's file name.
        measure: takes image ``(X, Y, Z)``, label map ``(X, Y, Z)`` and affine; returns the statistics of a case, with
            a list of ``warnings`` and a ``legend`` of the picture, label to text.
        window: intensities drawn black and white in the picture; ``None``: the 1st and 99.5th percentile of each image.
        preview: ``False`` leaves the pictures out.
        inputs: folder of the images.
        output_format: ``nifti``, or what is written beside it: ``dicom_seg`` for ``NAME_SUFFIX.dcm``, ``seg_nrrd`` for
            ``NAME_SUFFIX.seg.nrrd``, or a list of these.
        anatomy: see :func:`volseg.label_maps.anatomy.coded_segments`; these two formats need it.
        algorithm: ``name`` and ``version`` of what segments, for ``dicom_seg``.
    """

    def __init__(
        self,
        output_dir: str,
        names: Mapping[str, str],
        suffix: str,
        measure: Measure,
        window: tuple[float, float] | None,
        preview: bool = True,
        inputs: str | None = None,
        output_format: str | Sequence[str] = "nifti",
        anatomy: Mapping[str, Sequence[str]] = MappingProxyType({}),
        algorithm: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.output_dir = Path(output_dir)
        self.names = {int(value): name for value, name in names.items()}
        self.suffix = suffix
        self.measure = measure
        self.window = window
        self.preview = preview
        self.formats = {output_format} if isinstance(output_format, str) else set(output_format)
        self.segments = coded_segments(self.names, anatomy) if self.formats - {"nifti"} else []
        self.algorithm = algorithm
        self.dicom: DicomSegmentation | None = None  # of the case at hand
        self.statistics = CaseStatistics(output_dir, f"_{suffix}.nii.gz", inputs)
        self.fingerprint: str | None = None  # of the case at hand
        self.image: Any = None
        self.count = 0
        self.log = CaseLog(logger)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._report)

    def __call__(self, engine: Any) -> None:
        output: Any = engine.state.output
        for item in output:
            labels = np.asarray(item["pred"])[0].astype(np.uint8)
            self.write(self.image, labels, engine.warnings, item["pred"].meta.get("quality", {}))

    def begin(self, path: str, fingerprint: str) -> None:
        """Take note of what the result of the next case depends on."""
        self.fingerprint = fingerprint

    def take(self, image: MetaTensor) -> None:
        """Keep the image: statistics and picture are made of its voxels.

        Raises:
            UserError: it cannot be written in DICOM.
        """
        self.image = image
        if "dicom_seg" in self.formats:
            self.dicom = DicomSegmentation(image, self.segments, self.algorithm)

    def settings(self) -> dict[str, Any]:
        """What results depend on."""
        return {
            "names": self.names,
            "measure": self.measure,
            "window": self.window,
            "preview": self.preview,
            "output_format": self.formats,
            "algorithm": self.algorithm,
        }

    def write(
        self,
        image: MetaTensor,
        labels: np.ndarray,
        warnings: Sequence[str] = (),
        quality: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Write the results of one case.

        Args:
            image: ``(1, X, Y, Z)`` as it was read.
            labels: label map ``(X, Y, Z)``.
            warnings: of the image, logged already.
            quality: further statistics, of the network's output.
        """
        path, affine = image.meta["filename_or_obj"], np.asarray(image.affine, dtype=np.float64)
        voxels = image.numpy()[0]
        segmentation = self.statistics.result_name(path)
        name = segmentation.removesuffix(self.statistics.ending)
        statistics = self.measure(voxels, labels, affine)
        legend = statistics.pop("legend")
        qform = json.loads(image.meta.get("qform", "null"))
        write_segmentation(self.output_dir / segmentation, labels, affine, self.names, qform)
        files = {"segmentation": segmentation, **self._write_other_formats(name, labels, affine)}
        for key in RESULT_KEYS:  # no file of an earlier run may be taken for this result
            if key not in files and (outdated := self.statistics.entries.get(path, {}).get(key)):
                (self.output_dir / outdated).unlink(missing_ok=True)
        if self.preview:
            low, high = np.percentile(voxels, (1, 99.5)) if self.window is None else self.window
            save_preview(
                self.output_dir / f"{name}_preview.png", voxels, labels, affine, legend, (low, high), title=name
            )
        for warning in statistics["warnings"]:
            logger.warning("%s: %s", path, warning)
        statistics["warnings"] = [*warnings, *statistics["warnings"]]
        fingerprint = {"fingerprint": self.fingerprint} if self.fingerprint else {}
        self.statistics.add(path, {**files, **statistics, **quality, **fingerprint})
        self.log.add(path, ", ".join(legend.values()))
        self.count += 1

    def _write_other_formats(self, name: str, labels: np.ndarray, affine: np.ndarray) -> dict[str, str]:
        """Write the label map in the other formats that are wanted, and return the names of the files by format."""
        files = {}
        if self.dicom:
            files["dicom_seg"] = f"{name}_{self.suffix}.dcm"
            self.dicom.write(self.output_dir / files["dicom_seg"], labels)
        if "seg_nrrd" in self.formats:
            files["seg_nrrd"] = f"{name}_{self.suffix}.seg.nrrd"
            write_nrrd_segmentation(self.output_dir / files["seg_nrrd"], labels, affine, self.segments)
        return files

    def _start(self, engine: Engine) -> None:
        check_folder(self.output_dir)
        self.statistics.read()
        self.count = 0
        self.log.start()

    def _report(self, engine: Engine) -> None:
        logger.info("%d case(s) segmented, results in %s", self.count, self.output_dir.resolve())
