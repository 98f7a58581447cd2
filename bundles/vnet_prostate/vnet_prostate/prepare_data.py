# SPDX-License-Identifier: Apache-2.0
"""Turn a download with prostate labels into a dataset folder; :mod:`volseg.data.prepare` holds the common steps.

Archives are checked against their published checksums and unpacked into the dataset folder. A download that is already
unpacked stays where it is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from volseg.data.datalist import DATALIST_NAME, rank_cases, split_cases
from volseg.data.image_file import (
    VoxelGrid,
    check_same_grid,
    nifti_channel,
    open_nifti,
    read_itk,
    read_metaimage_grid,
    read_nifti,
    unreadable,
)
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
from volseg.data.published_archive import check_md5, unpack
from volseg.data.volume_reader import volume_name
from volseg.errors import UserError
from volseg.label_maps.label_file import round_labels

LABELS = {1: "prostate"}

SOURCES = {
    "promise12": Source(
        key="promise12",
        name="PROMISE12, prostate in T2-weighted MRI",
        layout="training_data.zip and test_data.zip, or folders training_data/ and test_data/ with CaseXX.mhd, "
        "CaseXX_segmentation.mhd and their .raw",
        licence="research use, citation mandatory, no redistribution; terms in LICENSE.TXT of the record",
        citation="Litjens et al. 2014, doi:10.1016/j.media.2013.12.002; doi:10.5281/zenodo.8026660",
    ),
    "msd_task05": Source(
        key="msd_task05",
        name="Medical Segmentation Decathlon, Task05_Prostate, whole gland in T2-weighted MRI",
        layout="Task05_Prostate.tar, or folder Task05_Prostate/ with dataset.json, imagesTr/ and labelsTr/",
        licence="CC BY-SA 4.0",
        citation="Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9",
    ),
}

# md5 of the published archives: Zenodo record 8026660, and medicaldecathlon.com as given in MONAI's DecathlonDataset
ARCHIVE_MD5 = {
    "training_data.zip": "f6d23994117c989daf07e5291edd0aea",
    "test_data.zip": "823ef560f4a54083348e58d67403e4bb",
    "Task05_Prostate.tar": "35138f08b1efaef89d7424d2bcc928db",
}
# the largest volume of either data set takes 27 MiB: 512 x 512 x 54 voxels of two bytes
_MAX_FILE_BYTES = 64 * 2**20

N_FOLDS = 5
# hospitals of the 50 training cases of PROMISE12; those of the test cases are not published
PROMISE12_SITES = {
    "BIDMC": ("Case00", *(f"Case{number:02}" for number in range(2, 13))),
    "RUNMC": tuple(f"Case{number:02}" for number in range(13, 26)),
    "UCL": ("Case01", *(f"Case{number:02}" for number in range(26, 38))),
    "HK": tuple(f"Case{number:02}" for number in range(38, 50)),
}


# both parts of PROMISE12 count their cases from Case00; the folder and the archive of a part are PART_data
_N_CASES = {"training": 50, "test": 30}
_FOLDER_START = {"training": "train", "test": "test"}
_PROMISE12_STEM = re.compile(r"Case\d\d(_segmentation)?")
_PROMISE12_MEMBER = re.compile(r"(?:[^/]+/)*(?P<path>Case\d\d(?:_segmentation)?\.(?:mhd|raw))")

_MSD_FOLDER = "Task05_Prostate"
_MSD_MEMBER = re.compile(rf"(?:\./)?{_MSD_FOLDER}/(?P<path>dataset\.json|(?:imagesTr|labelsTr)/prostate_\d\d\.nii\.gz)")


def prepare_data(
    source: str | None,
    input_dir: str | Path | None,
    dataset_dir: str | Path | None,
    seed: int = 0,
    fold: int = 0,
) -> Path:
    """Turn a downloaded data set into a dataset folder; called by ``configs/prepare_data.json``.

    Args:
        source: ``promise12`` or ``msd_task05``.
        input_dir: the download, as archives or unpacked.
        dataset_dir: the folder to write; may be the download itself.
        seed: seed of the folds or of the split.
        fold: for PROMISE12, the fold of training cases used for validation, 0 to 4.

    Returns:
        Path of ``dataset.json``.

    Raises:
        UserError: an argument is missing or invalid, or a file does not have the expected content.
    """
    check_arguments(SOURCES, source, input_dir, dataset_dir)
    if source == "promise12":
        return prepare_promise12(str(input_dir), str(dataset_dir), seed=seed, fold=fold)
    return prepare_msd_task05(str(input_dir), str(dataset_dir), seed=seed)


def prepare_promise12(input_dir: str | Path, dataset_dir: str | Path, seed: int = 0, fold: int = 0) -> Path:
    """Prepare PROMISE12, 50 training and 30 test cases with masks; see :func:`prepare_data`.

    The test cases form the ``test`` split, as in the paper. One of five folds of the training cases forms
    ``validation``, the others ``training``; their entries carry ``site`` and ``fold`` as text. Images are referenced.
    Segmentations are rewritten as NIfTI, a few kilobytes each: the download may store them as signed bytes, which
    readers based on ITK for Python, including MONAI's, cannot read.

    Cases are searched for in folders whose names begin with ``train`` and ``test``, such as ``training_data`` and
    ``TrainingData_Part1``, and one level deeper, then in the archives, and training cases finally in ``input_dir``
    itself. Both archives contain a Case00: when both are unpacked
    into one folder, the second overwrites files of the first.
    """
    source = SOURCES["promise12"]
    root, output = check_folders(source, input_dir, dataset_dir)
    if fold not in range(N_FOLDS):
        raise UserError(f"fold must be an integer from 0 to {N_FOLDS - 1}, got {fold}")
    skipped: Counter[str] = Counter()
    cases = [case for part in _N_CASES for case in _promise12_cases(part, root, output, skipped)]
    kept = convert_labels(cases, _promise12_label, _without_prostate, output, skipped, expected=source.layout)
    folds = {f"training_{name}": number for name, number in site_stratified_folds(seed).items()}
    sites = {f"training_{name}": site for site, names in PROMISE12_SITES.items() for name in names}
    ids = [case.case_id for case in kept]
    splits = {
        "training": [case_id for case_id in ids if folds.get(case_id, fold) != fold],
        "validation": [case_id for case_id in ids if folds.get(case_id) == fold],
        "test": [case_id for case_id in ids if case_id not in folds],
    }
    entries = labelled_entries(kept, splits)
    for split in ("training", "validation"):
        for case_id, entry in zip(splits[split], entries[split], strict=True):
            entry.update(site=sites[case_id], fold=str(folds[case_id]))
    licence_file = next((file for file in sorted(root.iterdir()) if file.name.lower() == "license.txt"), None)
    if licence_file:
        source = replace(source, licence=f"{source.licence}: {licence_file}")
    rule = f"fold {fold} of {N_FOLDS}, stratified by site, seed {seed}; test official"
    return write_prepared(source, entries, output, skipped, split_rule=rule, labels=LABELS)


def site_stratified_folds(seed: int = 0) -> dict[str, int]:
    """Return the fold, 0 to 4, of each of the 50 training cases of PROMISE12.

    A fold has ten cases, two or three per site. Cases are ranked by the hash of seed and id, so the folds are the same
    on every machine, whichever cases are present.
    """
    ranked = [case_id for case_ids in PROMISE12_SITES.values() for case_id in rank_cases(case_ids, seed)]
    return {case_id: position % N_FOLDS for position, case_id in enumerate(ranked)}


def prepare_msd_task05(input_dir: str | Path, dataset_dir: str | Path, seed: int = 0) -> Path:
    """Prepare Task05_Prostate of the Medical Segmentation Decathlon; see :func:`prepare_data`.

    The T2 channel of each image (T2, ADC) is written to ``images/``, the whole gland (peripheral and transition zone)
    to ``labels/``. The hash of case and seed assigns about 70 % of the cases to training, 10 % to validation and 20 %
    to test. The 16 cases in ``imagesTs`` have no labels and are ignored.

    Headers are used as stored, and the grids of image and label are compared. This cannot reveal an orientation that is
    wrong in both, as reported for this data set (Project-MONAI/model-zoo #766): look at a few cases before relying on
    flips or anatomical directions.
    """
    source = SOURCES["msd_task05"]
    root, output = check_folders(source, input_dir, dataset_dir)
    folder = _msd_folder(root, output)
    skipped: Counter[str] = Counter()
    cases = []
    for case_id, (image, label) in _read_msd_pairs(folder / DATALIST_NAME).items():
        if (folder / image).is_file() and (folder / label).is_file():
            cases.append(Case(case_id, folder / image, (folder / label,)))
        else:
            skipped["image or label missing"] += 1
    kept = convert_labels(cases, _whole_gland, _without_prostate, output, skipped, expected=source.layout)
    kept = [_with_t2_image(case, output) for case in tqdm(kept, desc="images", unit="case")]
    entries = labelled_entries(kept, split_cases([case.case_id for case in kept], seed))
    return write_prepared(source, entries, output, skipped, split_rule=f"hash of case, seed {seed}", labels=LABELS)


def _promise12_cases(part: str, root: Path, output: Path, skipped: Counter[str]) -> list[Case]:
    files = _promise12_files(part, root, output)
    cases = []
    for name in _case_names(part):
        image, label = files.pop(name, None), files.pop(f"{name}_segmentation", None)
        if image and label:
            cases.append(Case(f"{part}_{name}", image, (label,)))
        elif image:
            skipped[f"{part} image without segmentation"] += 1
        elif label:
            skipped[f"{part} segmentation without image"] += 1
        else:
            skipped[f"{part} case not found"] += 1
    skipped[f"{part} case beyond {_case_names(part)[-1]}"] += len({name[: len("CaseXX")] for name in files})
    return cases


def _case_names(part: str) -> list[str]:
    return [f"Case{number:02}" for number in range(_N_CASES[part])]


def _promise12_files(part: str, root: Path, output: Path) -> dict[str, Path]:
    """Map ``CaseXX`` and ``CaseXX_segmentation`` to files, unpacking the archive if necessary."""
    archive = root / f"{part}_data.zip"
    if archive.is_file():
        check_md5(archive, ARCHIVE_MD5[archive.name])
    for base in (root, output):
        # one folder, or several of the archives of before, such as TrainingData_Part1
        folders = [folder for folder in sorted(base.glob("*")) if folder.name.lower().startswith(_FOLDER_START[part])]
        files = _metaimages(
            [file for folder in folders for pattern in ("*.mhd", "*/*.mhd") for file in folder.glob(pattern)]
        )
        if files:
            return files
    if archive.is_file():
        folder = unpack(archive, output / archive.stem, _PROMISE12_MEMBER, _MAX_FILE_BYTES)
        return _metaimages(list(folder.glob("*.mhd")))
    if part != "training":
        return {}
    files = _metaimages(list(root.glob("*.mhd")))
    if files and all(name[: len("CaseXX")] in _case_names("test") for name in files):
        raise UserError(
            f"input_dir: cannot tell training from test cases, got {', '.join(sorted(files))[:80]} in {root}; put them "
            "into folders training_data/ and test_data/, as in the archives"
        )
    return files


def _metaimages(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        if not _PROMISE12_STEM.fullmatch(file.stem):
            continue
        if file.stem in found:
            raise UserError(f"{file}: two files for one case, also got {found[file.stem]}; remove one of them")
        found[file.stem] = file
    return found


def _promise12_label(case: Case) -> tuple[NDArray[np.uint8], VoxelGrid]:
    label_file = case.labels[0]
    image_grid = read_metaimage_grid(case.image)
    read_metaimage_grid(label_file)  # reports missing voxels better than ITK
    voxels, grid = read_itk(label_file)
    check_same_grid(label_file, grid, case.image, image_grid)
    return _codes_up_to(1, voxels, label_file).astype(np.uint8), image_grid


def _codes_up_to(greatest: int, voxels: NDArray[Any], file: Path) -> NDArray[Any]:
    codes = round_labels(voxels, str(file))
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high > greatest:
        raise UserError(f"{file}: label codes must be 0 to {greatest}, got {low} to {high}; download the file again")
    return codes


def _msd_folder(root: Path, output: Path) -> Path:
    archive = root / f"{_MSD_FOLDER}.tar"
    if archive.is_file():
        check_md5(archive, ARCHIVE_MD5[archive.name])
    for folder in (root / _MSD_FOLDER, root, output / _MSD_FOLDER):
        if (folder / DATALIST_NAME).is_file() and (folder / "imagesTr").is_dir():
            return folder
    if archive.is_file():
        return unpack(archive, output / _MSD_FOLDER, _MSD_MEMBER, _MAX_FILE_BYTES)
    raise UserError(f"input_dir: data set not found in {root}; give a folder with {SOURCES['msd_task05'].layout}")


def _read_msd_pairs(path: Path) -> dict[str, tuple[str, str]]:
    """Map each case to its image and label, relative to the folder of the data set's own ``dataset.json``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    pairs: dict[str, tuple[str, str]] = {}
    try:
        channel = content["modality"]["0"]
        for entry in content["training"]:
            image, label = (PurePosixPath(entry[key]) for key in ("image", "label"))
            if any(name.is_absolute() or ".." in name.parts for name in (image, label)):
                raise ValueError(f"{image} and {label}, which are outside its folder")
            pairs[volume_name(image.name)] = (str(image), str(label))
        if channel != "T2":
            raise ValueError(f"{channel} as channel 0")
    except (KeyError, TypeError, ValueError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path}: not the list of {_MSD_FOLDER}: modality 0 must be T2, and training a list of pairs of image and "
            f"label, got {found}; download it again"
        ) from error
    return pairs


def _whole_gland(case: Case) -> tuple[NDArray[np.uint8], VoxelGrid]:
    image = open_nifti(case.image)
    if len(image.shape) != 4:
        raise UserError(
            f"{case.image}: must have axes x, y, z and channel (T2, ADC), got shape {image.shape}; download it again"
        )
    image_grid = VoxelGrid(image.shape[:3], image.affine)
    zones, grid = read_nifti(case.labels[0])
    check_same_grid(case.labels[0], grid, case.image, image_grid)
    return (_codes_up_to(2, zones, case.labels[0]) > 0).astype(np.uint8), image_grid


def _without_prostate(label: NDArray[np.uint8]) -> str | None:
    """Return why a case is skipped, or None."""
    return None if label.any() else "empty segmentation"


def _with_t2_image(case: Case, output: Path) -> Case:
    """Return the case with its T2 channel as a separate image, written unless it is up to date."""
    target = output / "images" / f"{case.case_id}.nii.gz"
    if not is_up_to_date(target, [case.image]):
        write_nifti(target, nifti_channel(case.image, 0))
    return replace(case, image=target)
