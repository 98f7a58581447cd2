# SPDX-License-Identifier: Apache-2.0
"""A download with lobe labels becomes a dataset folder: ``labels/<case>.nii.gz`` and ``dataset.json``.

Images stay where they are and are referenced. Labels land whole or not at all and ``dataset.json`` comes last, so a
run that was killed is started again and goes on where it was.
"""

from __future__ import annotations

import csv
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from tqdm import tqdm

from pdvnet_lung.lobes import LOBES, TOTALSEGMENTATOR_MASKS, from_cip_codes, merge_lobe_masks, present_lobes
from volseg.data.datalist import DATALIST_NAME, SPLITS, split_cases, write_datalist
from volseg.errors import UserError

# Corners of the label's grid may miss those of the image's by this part of the smallest voxel edge: headers are
# rounded to about six digits, while a label that belongs elsewhere is off by whole voxels.
_GRID_TOLERANCE_VOXELS = 0.1

_LUNA16_SUFFIX = "_LobeSegmentation.nrrd"

# Reported by users of the data set as wrongly labelled (wasserth/TotalSegmentator #245). A download does not say
# whether it holds the mended files.
_TOTALSEGMENTATOR_BAD_LABELS = ("s0092", "s0605")
_TOTALSEGMENTATOR_SPLITS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Source:
    """What a data set is, and how its download lies on disk."""

    name: str
    layout: str
    licence: str
    citation: str


SOURCES = {
    "luna16": Source(
        name="LUNA16 with the lobe labels of Tang et al.",
        layout=f"subset0-9/<uid>.mhd with .raw (or all in one folder) and annotations/<uid>{_LUNA16_SUFFIX}",
        licence="images CC BY 4.0 / 3.0, labels CC BY-NC-SA 4.0",
        citation="Setio et al. 2017, doi:10.1016/j.media.2017.06.015 (LUNA16, from LIDC-IDRI); "
        "Tang et al. 2019, arXiv:1903.09879 (labels)",
    ),
    "totalsegmentator": Source(
        name="TotalSegmentator CT data set, lung lobes",
        layout="sXXXX/ct.nii.gz, sXXXX/segmentations/lung_*_lobe_*.nii.gz and meta.csv",
        licence="CC BY 4.0",
        citation="Wasserthal et al. 2023, doi:10.1148/ryai.230024; doi:10.5281/zenodo.6802613",
    ),
}


@dataclass(frozen=True)
class Case:
    """One case of a download: its image, and the files its label is made of."""

    case_id: str
    image: Path
    labels: tuple[Path, ...]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    Attributes:
        shape: voxels along x, y, z.
        affine: (4, 4), voxel index to millimetres in RAS+, as in NIfTI.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]


def prepare_data(
    source: str | None,
    input_dir: str | Path | None,
    dataset_dir: str | Path | None,
    seed: int = 0,
    min_lobes: int = len(LOBES),
) -> Path:
    """Turn the download of a data set into a dataset folder; this is what ``configs/prepare_data.json`` calls.

    Args:
        source: ``luna16`` or ``totalsegmentator``.
        input_dir: the unpacked download.
        dataset_dir: where the dataset folder is written; it may be the download itself.
        seed: of the split where the data set has none of its own.
        min_lobes: cases with fewer lobes are left out.

    Returns:
        Path of ``dataset.json``.

    Raises:
        UserError: an argument is missing or wrong, or a file is not what it should be.
    """
    prepare = {"luna16": prepare_luna16, "totalsegmentator": prepare_totalsegmentator}
    if source not in prepare:
        raise UserError(f"source: unknown. Received: {source}. Expected: --source {' or '.join(prepare)}")
    layout = SOURCES[source].layout
    if input_dir in (None, ""):
        raise UserError(f"input_dir: not given. Received: nothing. Expected: --input_dir FOLDER with {layout}")
    if dataset_dir in (None, ""):
        raise UserError("dataset_dir: not given. Received: nothing. Expected: --dataset_dir FOLDER to write to")
    return prepare[source](str(input_dir), str(dataset_dir), seed=seed, min_lobes=min_lobes)


def prepare_luna16(input_dir: str | Path, dataset_dir: str | Path, seed: int = 0, min_lobes: int = len(LOBES)) -> Path:
    """LUNA16 images with the lobe labels of Tang et al.; see :func:`prepare_data`.

    The split is drawn: about 70 % training, 10 % validation, 20 % test, by hash of series UID and seed.
    """
    root, output = _check_folders("luna16", input_dir, dataset_dir)
    images = _luna16_images(root)
    labels = _luna16_labels(root)
    paired = sorted(images.keys() & labels.keys())
    if not paired:
        raise UserError(
            f"input_dir: no image with a label. Received: {len(images)} images (.mhd) and {len(labels)} labels in "
            f"{root}. Expected: {SOURCES['luna16'].layout}"
        )
    skipped = Counter(
        {"image without label": len(images) - len(paired), "label without image": len(labels) - len(paired)}
    )
    cases = [Case(uid, images[uid], (labels[uid],)) for uid in paired]
    kept = _convert(cases, _luna16_label, output, min_lobes, skipped)
    splits = split_cases([case.case_id for case in kept], seed)
    return _finish("luna16", kept, splits, output, skipped, split_rule=f"hash of series UID, seed {seed}")


def prepare_totalsegmentator(
    input_dir: str | Path, dataset_dir: str | Path, seed: int = 0, min_lobes: int = len(LOBES)
) -> Path:
    """TotalSegmentator data set with its five lobe masks per case; see :func:`prepare_data`.

    The split is the official one of ``meta.csv``; only without that file it is drawn with ``seed``, and said so.
    """
    root, output = _check_folders("totalsegmentator", input_dir, dataset_dir)
    official = _read_official_split(root / "meta.csv")
    skipped: Counter[str] = Counter()
    cases = []
    for folder in sorted(path for path in root.iterdir() if re.fullmatch(r"s\d{4}", path.name) and path.is_dir()):
        masks = tuple(folder / "segmentations" / f"{name}.nii.gz" for name in TOTALSEGMENTATOR_MASKS)
        if folder.name in _TOTALSEGMENTATOR_BAD_LABELS:
            skipped["known wrong labels"] += 1
        elif not all(file.is_file() for file in (folder / "ct.nii.gz", *masks)):
            skipped["ct.nii.gz or a lobe mask missing"] += 1
        elif official is not None and folder.name not in official:
            skipped["not in meta.csv"] += 1
        else:
            cases.append(Case(folder.name, folder / "ct.nii.gz", masks))
    if not cases:
        raise UserError(
            f"input_dir: no complete case. Received: {root}{_describe(skipped, ', ')}. "
            f"Expected: {SOURCES['totalsegmentator'].layout}"
        )
    kept = _convert(cases, _totalsegmentator_label, output, min_lobes, skipped)
    if official is None:
        splits, rule = split_cases([case.case_id for case in kept], seed), f"hash of case, seed {seed} (no meta.csv)"
    else:
        splits = {split: [case.case_id for case in kept if official[case.case_id] == split] for split in SPLITS}
        rule = "official, meta.csv"
    return _finish("totalsegmentator", kept, splits, output, skipped, split_rule=rule)


def _check_folders(source: str, input_dir: str | Path, dataset_dir: str | Path) -> tuple[Path, Path]:
    root, output = (Path(folder).expanduser().absolute() for folder in (input_dir, dataset_dir))
    if not root.is_dir():
        raise UserError(f"input_dir: no such folder. Received: {root}. Expected: {SOURCES[source].layout}")
    if output.exists() and not output.is_dir():
        raise UserError(f"dataset_dir: not a folder. Received: {output}. Expected: a folder, new or of an earlier run")
    existing = output / DATALIST_NAME
    if existing.is_file():
        try:
            found = json.loads(existing.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("source") != source:
            raise UserError(
                f"{existing}: would be overwritten. Received: a data list that was not made from {source}. "
                "Expected: another --dataset_dir, or remove that file"
            )
    return root, output


def _luna16_images(root: Path) -> dict[str, Path]:
    # Only the subsets and the folder itself: seg-lungs-LUNA16/ holds lung masks under the same names.
    files = [*root.glob("*.mhd"), *root.glob("subset*/**/*.mhd")]
    return {file.stem: file for file in sorted(files) if not file.name.startswith(".")}


def _luna16_labels(root: Path) -> dict[str, Path]:
    files = [*root.glob(f"*{_LUNA16_SUFFIX}"), *root.glob(f"annotations/*{_LUNA16_SUFFIX}")]
    return {file.name.removesuffix(_LUNA16_SUFFIX): file for file in files if not file.name.startswith(".")}


def _read_official_split(path: Path) -> dict[str, str] | None:
    """Case to split, of ``meta.csv``; None without that file."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    header = lines[0] if lines else ""
    # The published file is separated by semicolons; a spreadsheet may have saved it with commas.
    rows = list(csv.DictReader(lines, delimiter=";" if ";" in header else ","))
    if not rows or not {"image_id", "split"} <= rows[0].keys():
        raise UserError(
            f"{path}: not the table of TotalSegmentator. Received: columns {header[:80] or 'none'}. "
            "Expected: columns image_id and split, with rows"
        )
    unknown = sorted({str(row["split"]) for row in rows} - _TOTALSEGMENTATOR_SPLITS.keys())
    if unknown:
        raise UserError(f"{path}: unknown split. Received: {', '.join(unknown)}. Expected: train, val or test")
    return {row["image_id"]: _TOTALSEGMENTATOR_SPLITS[row["split"]] for row in rows}


def _convert(
    cases: Sequence[Case],
    make_label: Callable[[Case], tuple[NDArray[np.uint8], Grid]],
    output: Path,
    min_lobes: int,
    skipped: Counter[str],
) -> list[Case]:
    """Write the labels that are not there yet; returns the cases kept and counts the others in ``skipped``."""
    folder = output / "labels"
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for case in tqdm(cases, desc="labels", unit="case"):
        target = folder / f"{case.case_id}.nii.gz"
        done = target.is_file() and target.stat().st_mtime >= max(file.stat().st_mtime for file in case.labels)
        if done:
            label, _ = _read_nifti(target)
        else:
            label, grid = make_label(case)
        n_lobes = len(present_lobes(label))
        if n_lobes < max(min_lobes, 1):
            skipped["no lobe" if n_lobes == 0 else f"fewer than {min_lobes} lobes"] += 1
            continue
        if not done:
            _write_label(target, label, grid.affine)
        kept.append(case)
    if not kept:
        raise UserError(
            f"input_dir: no case is left. Received: {len(cases)} cases{_describe(skipped, ', ')}. "
            f"Expected: label maps with at least {min_lobes} lobes; --min_lobes lowers the bar"
        )
    return kept


def _luna16_label(case: Case) -> tuple[NDArray[np.uint8], Grid]:
    image_grid = _read_mhd_grid(case.image)
    label_file = case.labels[0]
    try:
        image = itk.imread(label_file)
    except RuntimeError as error:  # what ITK's wrapping raises for every failure of reading
        raise _unreadable(label_file, error) from error
    axes, origin_mm = np.asarray(itk.array_from_matrix(image.GetDirection())), list(image.GetOrigin())
    voxels = itk.array_view_from_image(image).transpose()  # (z, y, x) to (x, y, z)
    _check_grid(label_file, _lps_grid(voxels.shape, axes, list(image.GetSpacing()), origin_mm), image_grid, case.image)
    return from_cip_codes(voxels, str(label_file)), image_grid


def _totalsegmentator_label(case: Case) -> tuple[NDArray[np.uint8], Grid]:
    image_grid = _read_nifti_grid(case.image)
    masks = {}
    for file, code in zip(case.labels, TOTALSEGMENTATOR_MASKS.values(), strict=True):
        masks[code], grid = _read_nifti(file)
        _check_grid(file, grid, image_grid, case.image)
    return merge_lobe_masks(masks, str(case.labels[0].parent)), image_grid


def _read_mhd_grid(path: Path) -> Grid:
    """Grid of a MetaImage from its header; the voxels are only checked to be there."""
    reader = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    try:
        if reader is None:
            raise RuntimeError("no header that ITK knows")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    header = path.read_text(encoding="latin-1")
    data_name = re.search(r"^ElementDataFile\s*=\s*(.+?)\s*$", header, re.MULTILINE)
    data = path.parent / data_name[1] if data_name else path
    compressed = re.search(r"^CompressedData\s*=\s*True", header, re.MULTILINE | re.IGNORECASE)
    n_bytes = data.stat().st_size if data.is_file() else 0
    n_expected = 1 if compressed else reader.GetImageSizeInBytes()
    if n_bytes < n_expected:
        raise UserError(
            f"{path}: voxels are missing. Received: {data.name} with {n_bytes} bytes. "
            f"Expected: {n_expected} bytes or more; unpack or download it again"
        )
    n_axes = range(reader.GetNumberOfDimensions())
    return _lps_grid(
        [reader.GetDimensions(axis) for axis in n_axes],
        np.array([list(reader.GetDirection(axis)) for axis in n_axes]).T,  # one call per axis gives one column
        [reader.GetSpacing(axis) for axis in n_axes],
        [reader.GetOrigin(axis) for axis in n_axes],
    )


def _lps_grid(
    shape: Sequence[int], direction: NDArray[np.float64], spacing_mm: Sequence[float], origin_mm: Sequence[float]
) -> Grid:
    """Grid of an ITK image: ITK counts millimetres to left and posterior, NIfTI to right and anterior."""
    affine = np.eye(len(shape) + 1)
    affine[:-1, :-1] = direction * np.asarray(spacing_mm)
    affine[:-1, -1] = origin_mm
    affine[:2] *= -1
    return Grid(tuple(int(size) for size in shape), affine)


def _read_nifti(path: Path) -> tuple[NDArray[Any], Grid]:
    try:
        image: Any = nib.load(path)
        voxels = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise _unreadable(path, error) from error
    return voxels, Grid(voxels.shape, image.affine)


def _read_nifti_grid(path: Path) -> Grid:
    try:
        image: Any = nib.load(path)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise _unreadable(path, error) from error
    return Grid(image.shape, image.affine)


def _write_label(path: Path, label: NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(label, affine)
    image.header.set_xyzt_units("mm")
    # Always the same name, so that what a killed run left is overwritten; nibabel goes by the ending.
    temporary = path.with_name(f".partial-{path.name}")
    try:
        nib.save(image, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_grid(label_file: Path, label: Grid, image: Grid, image_file: Path) -> None:
    difference = _grid_difference(label, image)
    if difference:
        raise UserError(
            f"{label_file}: not on the grid of its image. Received: {difference} of {image_file}. "
            "Expected: the same shape, spacing, origin and direction; take the case out or mend the header"
        )


def _grid_difference(label: Grid, image: Grid) -> str | None:
    """The first property that differs, as words, or None if both grids are one."""
    if label.shape != image.shape or len(image.shape) != 3:
        return f"shape {_row(label.shape)} against {_row(image.shape)}"
    spacings = [np.linalg.norm(grid.affine[:3, :3], axis=0) for grid in (label, image)]
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in image.shape), [1], indexing="ij"), -1).reshape(-1, 4)
    offsets_mm = np.linalg.norm(corners @ (label.affine - image.affine).T, axis=1)
    if math.isfinite(offsets_mm.max()) and offsets_mm.max() <= _GRID_TOLERANCE_VOXELS * spacings[1].min():
        return None
    if not np.allclose(spacings[0], spacings[1], rtol=1e-3, atol=0):
        return f"spacing {_row(spacings[0])} mm against {_row(spacings[1])} mm"
    directions = [grid.affine[:3, :3] / spacing for grid, spacing in zip((label, image), spacings, strict=True)]
    if not np.allclose(directions[0], directions[1], atol=1e-3):
        return f"direction {_row(directions[0])} against {_row(directions[1])}, in RAS,"
    origins = [_row(grid.affine[:3, 3]) for grid in (label, image)]
    return f"origin {origins[0]} mm against {origins[1]} mm, in RAS,"


def _row(values: Any) -> str:
    # Adding zero turns -0.0 into 0.
    return "(" + ", ".join(f"{value + 0.0:.6g}" for value in np.ravel(values)) + ")"


def _unreadable(path: Path, error: Exception) -> UserError:
    said = " ".join(str(error).split())[-160:]
    return UserError(f"{path}: cannot be read. Received: {said}. Expected: a whole file; unpack or download it again")


def _describe(skipped: Mapping[str, int], prefix: str) -> str:
    parts = [f"{count} {reason}" for reason, count in skipped.items() if count]
    return f"{prefix}skipped: {', '.join(parts)}" if parts else ""


def _finish(
    source: str,
    cases: Sequence[Case],
    splits: Mapping[str, Sequence[str]],
    output: Path,
    skipped: Counter[str],
    *,
    split_rule: str,
) -> Path:
    images = {case.case_id: str(case.image) for case in cases}
    about = SOURCES[source]
    path = write_datalist(
        output,
        {
            split: [{"image": images[case_id], "label": f"labels/{case_id}.nii.gz"} for case_id in case_ids]
            for split, case_ids in splits.items()
        },
        name=about.name,
        source=source,
        licence=about.licence,
        citation=about.citation,
        split_rule=split_rule,
        labels={"0": "background", **{str(code): name for code, name in LOBES.items()}},
    )
    counts = ", ".join(f"{split} {len(case_ids)}" for split, case_ids in splits.items())
    print(
        f"{path}: {len(cases)} cases ({counts}; split: {split_rule}){_describe(skipped, '; ')}; "
        f"licence: {about.licence}; cite: {about.citation}"
    )
    return path
