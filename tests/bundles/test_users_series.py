# SPDX-License-Identifier: Apache-2.0
"""DICOM as scanners, archives and people leave it, on the command line: right, a warning, or one clear line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest

from tests.bundles.dicom_files import TO_LPS, enhanced, position, series
from tests.bundles.users_files import MEDICAL, Files, Situation, check, rows
from volseg.data.volume_reader import load_volume

LUNG, PROSTATE = ("pdvnet_lung",), ("vnet_prostate",)
SAGITTAL = [0, 1, 0, 0, 0, -1]


def file_of(folder: Path, k: int) -> Path:
    return sorted(folder.iterdir())[-1 - k]


def edited(files: Files, source: int = 5, name: str | None = None, **tags: Any) -> Path:
    """The series, with one slice changed, or a changed copy beside it."""
    folder = series(files)
    dataset = pydicom.dcmread(file_of(folder, source))
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(folder / name if name else file_of(folder, source))
    return folder


def without(files: Files, *missing: int) -> Path:
    folder = series(files)
    for path in [file_of(folder, k) for k in missing]:
        path.unlink()
    return folder


def truncated(files: Files, k: int, of: int = 2) -> Path:
    folder = series(files)
    content = file_of(folder, k).read_bytes()
    file_of(folder, k).write_bytes(content[: len(content) // of])
    return folder


def copied(files: Files) -> Path:
    folder = series(files)
    shutil.copy(file_of(folder, 5), folder / "copy of 5.dcm")
    return folder


def beside_text(files: Files) -> Path:
    folder = series(files)
    (folder / "readme.txt").write_text("exported on a Monday")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    return folder


def study(files: Files) -> Path:
    """PATIENT/STUDY/SERIES, and a scout beside the series."""
    series(files, "in/patient 1/$study/series")
    scout = files.folder / "in/patient 1/$study/scout"
    scout.mkdir()
    dataset = pydicom.dcmread(file_of(scout.parent / "series", 3))
    dataset.SeriesInstanceUID, dataset.ImageOrientationPatient = "7.8.9", SAGITTAL
    dataset.save_as(scout / "1.dcm")
    return files.folder / "in"


def changing(files: Files, place: Callable[[int], float], **changes: Callable[[int], Any]) -> Path:
    """The series with slice k where slice ``place(k)`` is."""
    return series(files, ImagePositionPatient=lambda k: position(files, place(k)), **changes)


def tilted(files: Files) -> Path:
    columns, slices = TO_LPS @ files.affine[:3, 1], files.affine[:3, 2]
    step = np.tan(np.radians(15)) * columns / np.linalg.norm(columns) * np.linalg.norm(slices)
    return series(files, ImagePositionPatient=lambda k: list(position(files, k) + k * step))


SITUATIONS = [
    Situation("plain series", series, "right"),
    Situation("micrometres of jitter", lambda f: changing(f, lambda k: k + 1e-4 * (k % 3)), "right", bundles=LUNG),
    Situation(
        "thickness written in two ways",
        lambda f: series(f, SliceThickness=lambda k: f"3.{'690'[: 2 + k % 2]}"),
        "right",
        bundles=PROSTATE,
    ),
    Situation("text and a DICOMDIR beside it", beside_text, "right", bundles=LUNG),
    Situation("a folder of patients and studies", study, "right", bundles=PROSTATE),
    Situation("times of slices differ", lambda f: series(f, AcquisitionTime=lambda k: f"1200{k:02}"), "right",
              bundles=PROSTATE),
    Situation("turns of the gantry", lambda f: series(f, AcquisitionNumber=lambda k: k // 4), "right", bundles=LUNG),
    Situation("a negative SpacingBetweenSlices", lambda f: series(f, SpacingBetweenSlices=lambda k: -1.0), "right",
              bundles=PROSTATE),
    Situation("an enhanced file", enhanced, "right", bundles=LUNG),
    Situation("an enhanced file in a folder", partial(enhanced, in_folder=True), "right", bundles=PROSTATE),
    Situation("a slice copied", copied, "warning", ("twice with the same content",)),
    Situation(
        "a localizer in the series",
        partial(edited, name="scout.dcm", ImageOrientationPatient=SAGITTAL),
        "warning",
        ("1 localizer(s) left out", "scout.dcm"),
        LUNG,
    ),
    Situation(
        "a localizer with a series of its own",
        partial(edited, name="scout.dcm", SeriesInstanceUID="7.8.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "warning",
        ("1 file(s) of no scan left out", "scout.dcm"),
        PROSTATE,
    ),
    Situation(
        "a screenshot of the doses",
        partial(edited, name="dose.dcm", SeriesInstanceUID="7.8.9", ImagePositionPatient=None),
        "warning",
        ("1 file(s) of no scan left out", "dose.dcm"),
        LUNG,
    ),
    Situation("a slice missing", lambda f: without(f, 9), "refused",
              ("series", "1 slice(s) missing between"), LUNG),
    Situation("several slices missing", lambda f: without(f, 4, 5, 6), "refused", ("3 slice(s) missing",), PROSTATE),
    Situation("the first file truncated", lambda f: truncated(f, 0), "refused", (".dcm", "truncated"), PROSTATE),
    Situation("the last file truncated", lambda f: truncated(f, f.voxels.shape[2] - 1), "refused",
              (".dcm", "truncated"), LUNG),
    Situation("the last file lost its content", lambda f: truncated(f, 0, of=10**9), "refused",
              (".dcm", "damaged, got 0 bytes"), PROSTATE),
    Situation("no distance of pixels", lambda f: series(f, PixelSpacing=lambda k: None), "refused",
              (".dcm: PixelSpacing must be two lengths > 0, got None",), LUNG),
    Situation("a screenshot in the series", partial(edited, ImagePositionPatient=None, name="x.dcm"), "refused",
              ("x.dcm", "no ImagePositionPatient"), LUNG),
    Situation("distances that change", lambda f: changing(f, lambda k: k + 3 * max(0, k - 8)), "refused",
              ("between", "mm"), LUNG),
    Situation("gantry tilt", tilted, "refused", ("gantry tilt", "15.0 degrees")),
    Situation("two echoes in one place", lambda f: changing(f, lambda k: k // 2, EchoTime=lambda k: k % 2), "refused",
              ("2 slices that differ in echo time",), PROSTATE),
    Situation("two contrasts in one place", lambda f: changing(f, lambda k: k // 2, AcquisitionNumber=lambda k: k % 2),
              "refused", ("2 slices that differ in acquisition",), LUNG),
    Situation("two b-values between one another",
              lambda f: series(f, DiffusionBValue=lambda k: 800.0 * (k % 2)), "refused",
              ("b-value (0.0, 800.0)", "between one another"), PROSTATE),
    Situation("no positions", lambda f: series(f, ImagePositionPatient=lambda k: None), "refused",
              ("no ImagePositionPatient",)),
    Situation("no orientations", lambda f: series(f, ImageOrientationPatient=lambda k: None), "refused",
              ("ImageOrientationPatient",), LUNG),
    Situation("a slice of another size", partial(edited, Rows=2, Columns=3), "refused", ("different sizes",), PROSTATE),
    Situation("two series in a folder", partial(edited, name="x.dcm", SeriesInstanceUID="7.8.9"), "refused",
              ("2 DICOM series",), LUNG),
    Situation("inverted grey values", lambda f: series(f, PhotometricInterpretation=lambda k: "MONOCHROME1"), "refused",
              ("MONOCHROME1",), PROSTATE),
    Situation("an enhanced file without positions", partial(enhanced, places=lambda k: None), "refused",
              ("1.dcm", "no ImagePositionPatient"), LUNG),
    Situation("an enhanced file with two time points", partial(enhanced, places=lambda k: k // 2), "refused",
              ("1.dcm", "several frames at one position"), PROSTATE),
]  # fmt: skip


@pytest.fixture(scope="module")
def expected(segment, bundle, tmp_path_factory) -> Path:
    """Results of the phantom as a plain series."""
    folder = tmp_path_factory.mktemp(bundle.name)
    process = segment(series(phantom(bundle, folder)), folder / "expected")
    assert process.returncode == 0, process.stderr
    return folder / "expected"


def phantom(bundle: Any, folder: Path) -> Files:
    image = nib.as_closest_canonical(nib.load(bundle.phantom["image"]))
    return Files(folder, bundle.phantom["image"], np.asarray(image.dataobj), image.affine)


@rows(SITUATIONS)
def test_users_series(situation, segment, bundle, expected, tmp_path):
    (tmp_path / "in").mkdir()
    files = phantom(bundle, tmp_path / "in")
    process = segment(situation.make(files), tmp_path / "out", *situation.options, cwd=files.folder)
    check(situation, process, tmp_path / "out", expected)


@pytest.mark.parametrize("bundle_name", MEDICAL, scope="module")
def test_dicom_in_dicom_out(segment, bundle, tmp_path):
    files = phantom(bundle, tmp_path / "in")
    source = series(files)
    files.nifti("b.nii.gz")
    out = files.folder / "out"
    processes = [segment(files.folder, out, "--output_format", "[dicom_seg,seg_nrrd]") for _ in range(2)]
    for process in processes:
        assert process.returncode == 1 and "Traceback" not in process.stderr
        assert "1 of 2 cases failed (b.nii.gz)" in process.stderr.splitlines()[-1]
        assert "b.nii.gz: not DICOM" in process.stderr
        assert "attributes" not in process.stderr  # highdicom's log
    assert "1 case(s) were done already" in processes[1].stderr  # and results are no inputs

    stem = f"series{bundle.small.segmentation.removesuffix('.nii.gz')}"
    labels = nib.load(out / f"{stem}.nii.gz")
    nrrd = load_volume(out / f"{stem}.seg.nrrd")
    np.testing.assert_array_equal(nrrd[0], labels.dataobj)
    np.testing.assert_allclose(nrrd.affine, labels.affine, atol=1e-3)
    seg = highdicom.seg.segread(out / f"{stem}.dcm")
    count = labels.shape[2]
    uids = [pydicom.dcmread(file_of(source, k)).SOPInstanceUID for k in range(count)]
    planes = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(planes.transpose(2, 1, 0), labels.dataobj)
    codes = [[code.CodeValue for code in seg.get_segment_description(n).SegmentedPropertyTypeCodeSequence]
             for n in seg.segment_numbers]  # fmt: skip
    assert (
        codes
        == {
            "pdvnet_lung": [["45653009"], ["90572001"], ["45653009"], ["72481006"], ["90572001"]],
            "vnet_prostate": [["41216001"]],
        }[bundle.name]
    )
    (algorithm,) = seg.get_segment_description(1).SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (bundle.name, "0.1.0")
