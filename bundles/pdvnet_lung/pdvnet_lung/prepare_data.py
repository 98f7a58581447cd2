# SPDX-License-Identifier: Apache-2.0
"""Turn a download with lobe labels into a dataset folder; :mod:`volseg.data.prepare` holds the common steps."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pdvnet_lung.lobes import LOBES, TOTALSEGMENTATOR_MASKS, from_cip_codes, merge_lobe_masks, present_lobes
from volseg.data.datalist import SPLITS, split_cases
from volseg.data.image_file import VoxelGrid, check_same_grid, open_nifti, read_itk, read_metaimage_grid, read_nifti
from volseg.data.prepare import (
    Case,
    Source,
    check_arguments,
    check_folders,
    convert_labels,
    is_up_to_date,
    labelled_entries,
    write_nifti,
    write_prepared,
)
from volseg.errors import UserError

_LUNA16_SUFFIX = "_LobeSegmentation.nrrd"

# reported as wrongly labelled (wasserth/TotalSegmentator #245); a download does not show whether they were corrected
_TOTALSEGMENTATOR_BAD_LABELS = ("s0092", "s0605")
MINIMUM_LOBE_MM3 = 80_000.0
MINIMUM_MAIN_PART = 0.97
_TOTALSEGMENTATOR_SPLITS = {"train": "training", "val": "validation", "test": "test"}

SOURCES = {
    "luna16": Source(
        key="luna16",
        name="LUNA16 with the lobe labels of Tang et al.",
        layout=f"subset0-9/<uid>.mhd with .raw (or all in one folder) and annotations/<uid>{_LUNA16_SUFFIX}",
        licence="images CC BY 4.0 / 3.0, labels CC BY-NC-SA 4.0",
        citation="Setio et al. 2017, doi:10.1016/j.media.2017.06.015 (LUNA16, from LIDC-IDRI); "
        "Tang et al. 2019, arXiv:1903.09879 (labels)",
    ),
    "totalsegmentator": Source(
        key="totalsegmentator",
        name="TotalSegmentator CT data set, lung lobes",
        layout="sXXXX/ct.nii.gz, sXXXX/segmentations/lung_*_lobe_*.nii.gz and meta.csv",
        licence="CC BY 4.0",
        citation="Wasserthal et al. 2023, doi:10.1148/ryai.230024; doi:10.5281/zenodo.6802613",
    ),
}


def prepare_data(
    source: str | None,
    input_dir: str | Path | None,
    dataset_dir: str | Path | None,
    seed: int = 0,
    min_lobes: int = len(LOBES),
) -> Path:
    """Turn a downloaded data set into a dataset folder; called by ``configs/prepare_data.json``.

    Args:
        source: ``luna16`` or ``totalsegmentator``.
        input_dir: the unpacked download.
        dataset_dir: the folder to write; may be the download itself.
        seed: seed of the split if the data set has no official one.
        min_lobes: cases with fewer lobes are skipped.

    Returns:
        Path of ``dataset.json``.

    Raises:
        UserError: an argument is missing or invalid, or a file does not have the expected content.
    """
    check_arguments(SOURCES, source, input_dir, dataset_dir)
    prepare = prepare_luna16 if source == "luna16" else prepare_totalsegmentator
    return prepare(str(input_dir), str(dataset_dir), seed=seed, min_lobes=min_lobes)


def prepare_luna16(input_dir: str | Path, dataset_dir: str | Path, seed: int = 0, min_lobes: int = len(LOBES)) -> Path:
    """Prepare LUNA16 images with the lobe labels of Tang et al.; see :func:`prepare_data`.

    The hash of series UID and seed assigns about 70 % of the cases to training, 10 % to validation and 20 % to test.
    """
    source = SOURCES["luna16"]
    root, output = check_folders(source, input_dir, dataset_dir)
    images = _luna16_images(root)
    labels = _luna16_labels(root)
    paired = sorted(images.keys() & labels.keys())
    skipped = Counter(
        {"image without label": len(images) - len(paired), "label without image": len(labels) - len(paired)}
    )
    cases = [Case(uid, images[uid], (labels[uid],)) for uid in paired]
    reject, expected = partial(_too_few_lobes, min_lobes=min_lobes), f"{source.layout}, or lower --min_lobes"
    kept = convert_labels(cases, _luna16_label, reject, output, skipped, expected=expected)
    entries = labelled_entries(kept, split_cases([case.case_id for case in kept], seed))
    return write_prepared(source, entries, output, skipped, split_rule=f"hash of series UID, seed {seed}", labels=LOBES)


def prepare_totalsegmentator(
    input_dir: str | Path, dataset_dir: str | Path, seed: int = 0, min_lobes: int = len(LOBES)
) -> Path:
    """Prepare the TotalSegmentator data set with its five lobe masks per case; see :func:`prepare_data`.

    The split is the official one in ``meta.csv``. Without that file it is drawn with ``seed``, and the output says so.
    Lobe maps that show whole lungs are written to ``lobe_maps`` as well, for ``train_painted.json --label_maps``.
    """
    source = SOURCES["totalsegmentator"]
    root, output = check_folders(source, input_dir, dataset_dir)
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
    reject, expected = partial(_too_few_lobes, min_lobes=min_lobes), f"{source.layout}, or lower --min_lobes"
    kept = convert_labels(cases, _totalsegmentator_label, reject, output, skipped, expected=expected)
    _write_lobe_maps(kept, output)
    if official is None:
        splits, rule = split_cases([case.case_id for case in kept], seed), f"hash of case, seed {seed} (no meta.csv)"
    else:
        splits = {split: [case.case_id for case in kept if official[case.case_id] == split] for split in SPLITS}
        rule = "official, meta.csv"
    return write_prepared(source, labelled_entries(kept, splits), output, skipped, split_rule=rule, labels=LOBES)


def _luna16_images(root: Path) -> dict[str, Path]:
    # only the subsets and the folder itself, because seg-lungs-LUNA16/ holds lung masks of the same names
    files = [*root.glob("*.mhd"), *root.glob("subset*/**/*.mhd")]
    return {file.stem: file for file in sorted(files) if not file.name.startswith(".")}


def _luna16_labels(root: Path) -> dict[str, Path]:
    files = [*root.glob(f"*{_LUNA16_SUFFIX}"), *root.glob(f"annotations/*{_LUNA16_SUFFIX}")]
    return {file.name.removesuffix(_LUNA16_SUFFIX): file for file in files if not file.name.startswith(".")}


def _read_official_split(path: Path) -> dict[str, str] | None:
    """Return the split of each case in ``meta.csv``; None without that file."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    header = lines[0] if lines else ""
    # the published file uses semicolons; a spreadsheet may have saved it with commas
    rows = list(csv.DictReader(lines, delimiter=";" if ";" in header else ","))
    if not rows or not {"image_id", "split"} <= rows[0].keys():
        raise UserError(
            f"{path}: must be a table with columns image_id and split, got {header[:80] or 'none'}; download it again"
        )
    unknown = sorted({str(row["split"]) for row in rows} - _TOTALSEGMENTATOR_SPLITS.keys())
    if unknown:
        raise UserError(f"{path}: split must be train, val or test, got {', '.join(unknown)}")
    return {row["image_id"]: _TOTALSEGMENTATOR_SPLITS[row["split"]] for row in rows}


def _too_few_lobes(label: NDArray[np.uint8], min_lobes: int) -> str | None:
    """Return why a case is skipped, or None."""
    n_lobes = len(present_lobes(label))
    if n_lobes == 0:
        return "no lobe"
    return f"fewer than {min_lobes} lobes" if n_lobes < min_lobes else None


def _write_lobe_maps(cases: Sequence[Case], output: Path) -> None:
    """Write ``lobe_maps/<case>.nii.gz``, whole lungs alone, for paintings; see :func:`whole_lungs`."""
    count = 0
    for case in cases:
        label_file = output / "labels" / f"{case.case_id}.nii.gz"
        target = output / "lobe_maps" / label_file.name
        if not is_up_to_date(target, (label_file,)):
            label, grid = read_nifti(label_file)
            box = whole_lungs(label, abs(float(np.linalg.det(grid.affine[:3, :3]))))
            if box is None:
                continue
            affine = grid.affine.copy()
            affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
            write_nifti(target, nib.Nifti1Image(np.asarray(label[box], np.uint8), affine))
        count += 1
    if count:
        print(f"{output / 'lobe_maps'}: {count} lobe maps with whole lungs, for --label_maps")


def whole_lungs(label: NDArray[np.uint8], voxel_mm3: float) -> tuple[slice, ...] | None:
    """Box around the lungs of a map that is fit for paintings, with two voxels to spare; None for other maps.

    Fit are maps in which every lobe has over 80 ml, over 97 % of it in one piece, and no lobe touches the border.
    """
    border = np.ones(label.shape, bool)
    border[1:-1, 1:-1, 1:-1] = False
    if label[border].any():
        return None
    for lobe, box in zip(LOBES, ndimage.find_objects(label, max_label=len(LOBES)), strict=True):
        if box is None:
            return None
        pieces, _ = ndimage.label(label[box] == lobe)
        size = np.bincount(pieces.ravel())[1:]
        if size.sum() * voxel_mm3 < MINIMUM_LOBE_MM3 or size.max() < MINIMUM_MAIN_PART * size.sum():
            return None
    box = ndimage.find_objects((label > 0).astype(np.uint8))[0]
    return tuple(slice(max(0, s.start - 2), s.stop + 2) for s in box)


def _luna16_label(case: Case) -> tuple[NDArray[np.uint8], VoxelGrid]:
    image_grid = read_metaimage_grid(case.image)
    label_file = case.labels[0]
    voxels, grid = read_itk(label_file)
    check_same_grid(label_file, grid, case.image, image_grid)
    return from_cip_codes(voxels, str(label_file)), image_grid


def _totalsegmentator_label(case: Case) -> tuple[NDArray[np.uint8], VoxelGrid]:
    image = open_nifti(case.image)
    image_grid = VoxelGrid(image.shape, image.affine)
    masks = {}
    for file, code in zip(case.labels, TOTALSEGMENTATOR_MASKS.values(), strict=True):
        masks[code], grid = read_nifti(file)
        check_same_grid(file, grid, case.image, image_grid)
    return merge_lobe_masks(masks, str(case.labels[0].parent)), image_grid
