# SPDX-License-Identifier: Apache-2.0
"""Label maps as segmentation objects in DICOM, on the frames of the series that was segmented."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.data import MetaTensor

import volseg
from volseg.data.dicom_header import is_slice
from volseg.data.volume_formats.base import optional_module
from volseg.errors import UserError
from volseg.label_maps.anatomy import Segment
from volseg.storage.files import atomic_path

if TYPE_CHECKING:  # a run that writes other formats does without the package
    from pydicom import Dataset

__all__ = ["DicomSegmentation"]

TO_LPS = np.diag([-1, -1, 1, 1])
IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# may be empty, and anonymizers leave them out
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime",
)  # fmt: skip
SERIES_NUMBER = 1000  # beyond those of scanners


class DicomSegmentation:
    """Where the segmentation of one image goes: known, and proven to work, before the image is segmented.

    Args:
        image: ``(1, X, Y, Z)`` as :func:`volseg.data.volume_reader.load_volume` returns it.
        segments: of the label map, numbered from 1 without a gap.
        algorithm: ``name`` and ``version``.

    Raises:
        UserError: the image was not read from DICOM, or its headers are of no use for a segmentation object.
    """

    def __init__(self, image: MetaTensor, segments: Sequence[Segment], algorithm: Mapping[str, str]) -> None:
        self.path = Path(image.meta["filename_or_obj"])
        self.segments = segments
        self.algorithm = algorithm
        slices = image.meta.get("slices")
        if slices is None and not is_slice(self.path):
            raise UserError(
                f"{self.path}: not DICOM, so no segmentation object can refer to it; "
                "use --output_format nifti or seg_nrrd for it"
            )
        pydicom = optional_module("pydicom")
        files = slices.split("\0") if slices else [self.path]
        self.headers = [self._usable(pydicom.dcmread(file, stop_before_pixels=True)) for file in files]
        self.indices = self._slice_of_each_frame(np.asarray(image.affine, dtype=np.float64), image.shape[-1])
        trial = np.zeros(image.shape[1:], np.uint8)
        trial[0, 0, 0] = 1
        try:
            self._object(trial)
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # what a header may lead to
            raise UserError(
                f"{self.path}: headers are of no use for a segmentation object ({' '.join(str(error).split())}); "
                "repair them, or use --output_format nifti or seg_nrrd"
            ) from error

    def write(self, path: str | Path, labels: np.ndarray) -> None:
        """Write the label map ``(X, Y, Z)``, whole or not at all; frames without a label are left out."""
        with atomic_path(path) as temporary:
            self._object(labels).save_as(temporary)

    def _usable(self, header: Dataset) -> Dataset:
        """A header with all that highdicom reads, or an error that says what it lacks."""
        for keyword in IDENTIFIERS:
            if not header.get(keyword):
                raise UserError(
                    f"{self.path}: no {keyword}, to which a segmentation object must refer; export the series with it, "
                    "or use --output_format nifti or seg_nrrd"
                )
        for keyword in MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, "")
        if "SharedFunctionalGroupsSequence" in header:
            shared, frame = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence[0]
            for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
                if keyword not in shared and keyword in frame:
                    setattr(shared, keyword, frame[keyword].value)
        return header

    def _slice_of_each_frame(self, affine: np.ndarray, count: int) -> np.ndarray:
        """Index along Z of each source frame (N,), from its own position."""
        first = self.headers[0]
        frames = first.get("PerFrameFunctionalGroupsSequence")
        for header in self.headers[1:]:  # they are equal but for their last digits, which highdicom minds
            header.ImageOrientationPatient = first.ImageOrientationPatient
        places = [frame.PlanePositionSequence[0] for frame in frames] if frames else self.headers
        positions = np.array([[*place.ImagePositionPatient, 1] for place in places], dtype=np.float64)  # (N, 4)
        indices = np.rint((np.linalg.inv(TO_LPS @ affine) @ positions.T)[2]).astype(int)
        if sorted(indices) != list(range(count)):
            raise UserError(
                f"{self.path}: frames must lie where the volume's slices do, got slices {indices.tolist()} "
                f"of {count}; export one volume, or use --output_format nifti or seg_nrrd"
            )
        return indices

    def _object(self, labels: np.ndarray) -> Any:
        hd: Any = optional_module("highdicom")
        logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of each module of attributes that it copies
        codes: Any = optional_module("pydicom.sr.codedict").codes
        name, version, series = self.algorithm["name"], self.algorithm["version"], self.headers[0].SeriesInstanceUID
        identification = hd.AlgorithmIdentificationSequence(
            name=name, family=codes.cid7162.ArtificialIntelligence, version=version, source=volseg.__name__
        )
        descriptions = []
        for segment in self.segments:
            description = hd.seg.SegmentDescription(
                segment_number=segment.number,
                segment_label=segment.name,
                segmented_property_category=segment.category,
                segmented_property_type=segment.structure,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=identification,
                tracking_uid=self._uid(series, segment.name),
                tracking_id=f"{name} {segment.name}",
                display_color=hd.color.CIELabColor.from_rgb(*segment.rgb),
            )
            if segment.side:
                side = hd.sr.CodedConcept.from_code(segment.side)
                description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
            descriptions.append(description)
        with warnings.catch_warnings():
            # a name without a family name is copied all the same
            warnings.filterwarnings("ignore", "The string .* is unlikely to represent the intended person name")
            return hd.seg.Segmentation(
                source_images=self.headers,
                pixel_array=labels.transpose(2, 1, 0)[self.indices],  # (N, rows, columns)
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,  # which all viewers read
                segment_descriptions=descriptions,
                series_instance_uid=self._uid(series),
                series_number=SERIES_NUMBER,
                series_description=f"{name} {version}",
                sop_instance_uid=hd.UID(),
                instance_number=1,
                omit_empty_frames=bool(labels.any()),
                manufacturer=volseg.__name__,
                manufacturer_model_name=name,
                software_versions=volseg.__version__,
                device_serial_number="1",
                content_label="SEGMENTATION",
                content_description=f"{name} {version}",
            )

    def _uid(self, *of: str) -> str:
        """A UID that is the same in all runs of one algorithm on one series."""
        pydicom = optional_module("pydicom")
        return pydicom.uid.generate_uid(entropy_srcs=[*of, *self.algorithm.values()])
