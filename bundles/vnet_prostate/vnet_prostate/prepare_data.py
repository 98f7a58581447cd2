# SPDX-License-Identifier: Apache-2.0
"""A download with prostate labels becomes a dataset folder with ``dataset.json``.

Archives are checked against their published checksum and unpacked into the dataset folder; what is unpacked already
stays where it is. See :mod:`volseg.data.prepare` for what holds for every data set.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from volseg.data.datalist import DATALIST_NAME, split_cases
from volseg.data.image_file import nifti_channel, open_nifti, read_itk, read_metaimage_grid, read_nifti, unreadable
from volseg.data.prepare import (
    Case,
    Source,
    check_arguments,
    check_folders,
    convert_labels,
    describe_skipped,
    is_up_to_date,
    labelled_entries,
    write_nifti,
    write_prepared,
)
from volseg.data.published_archive import check_md5, unpack
from volseg.data.volume_reader import volume_name
from volseg.data.voxel_grid import VoxelGrid, check_same_grid
from volseg.errors import UserError
from volseg.label_maps.codes import round_labels

LABELS = {1: "prostate"}

SOURCES = {
    "promise12": Source(
        key="promise12",
        name="PROMISE12, prostate in T2-weighted MRI",
        layout="training_data.zip and test_data.zip, or folders training_data/ and test_data/ with CaseXX.mhd, "
        "CaseXX_segmentation.mhd and their .raw",
        licence="research use, citing is mandatory, no redistribution; the terms are in LICENSE.TXT of the record",
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

# md5 of the published archives: record 8026660 of Zenodo, and medicaldecathlon.com as MONAI's DecathlonDataset has it.
ARCHIVE_MD5 = {
    "training_data.zip": "f6d23994117c989daf07e5291edd0aea",
    "test_data.zip": "823ef560f4a54083348e58d67403e4bb",
    "Task05_Prostate.tar": "35138f08b1efaef89d7424d2bcc928db",
}
# The largest volume of either set is 512 x 512 x 54 voxels of two bytes, 27 MiB.
_MAX_FILE_BYTES = 64 * 2**20

N_FOLDS = 5
# Hospitals of the 50 training cases of PROMISE12; those of the test cases are not published.
PROMISE12_SITES = {
    "BIDMC": ("Case00", *(f"Case{number:02}" for number in range(2, 13))),
    "RUNMC": tuple(f"Case{number:02}" for number in range(13, 26)),
    "UCL": ("Case01", *(f"Case{number:02}" for number in range(26, 38))),
    "HK": tuple(f"Case{number:02}" for number in range(38, 50)),
}


@dataclass(frozen=True)
class _Part:
    """One archive of PROMISE12, or the folder of that name; it holds Case00 to Case<n_cases - 1>."""

    name: str
    folder: str
    n_cases: int

    @property
    def case_names(self) -> tuple[str, ...]:
        return tuple(f"Case{number:02}" for number in range(self.n_cases))


_TRAINING = _Part("training", "training_data", 50)
_TEST = _Part("test", "test_data", 30)
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
    """Turn the download of a data set into a dataset folder; this is what ``configs/prepare_data.json`` calls.

    Args:
        source: ``promise12`` or ``msd_task05``.
        input_dir: the download, archives or unpacked.
        dataset_dir: where the dataset folder is written; it may be the download itself.
        seed: of the folds or the split.
        fold: of PROMISE12: the training cases that are the validation split, 0 to 4.

    Returns:
        Path of ``dataset.json``.

    Raises:
        UserError: an argument is missing or wrong, or a file is not what it should be.
    """
    check_arguments(SOURCES, source, input_dir, dataset_dir)
    if source == "promise12":
        return prepare_promise12(str(input_dir), str(dataset_dir), seed=seed, fold=fold)
    return prepare_msd_task05(str(input_dir), str(dataset_dir), seed=seed)


def prepare_promise12(input_dir: str | Path, dataset_dir: str | Path, seed: int = 0, fold: int = 0) -> Path:
    """PROMISE12: 50 training cases and 30 test cases with their masks; see :func:`prepare_data`.

    The test cases are the ``test`` split, as in the paper. The training cases are ``training``, and one of five
    folds of them ``validation``; their entries carry ``site`` and ``fold`` as text. Images are referenced.
    Segmentations are written again as NIfTI, a few kilobytes each: in the download they may be of signed bytes, which
    readers built on ITK for Python, MONAI's among them, do not take.

    Cases are looked for in the folders ``training_data`` and ``test_data`` and one level deeper, then in the archives,
    then, training cases only, in ``input_dir`` itself. Both archives hold a Case00: unpacked into one folder, the
    second replaces files of the first.
    """
    source = SOURCES["promise12"]
    root, output = check_folders(source, input_dir, dataset_dir)
    if fold not in range(N_FOLDS):
        raise UserError(f"fold: unknown. Received: {fold}. Expected: 0 to {N_FOLDS - 1}")
    skipped: Counter[str] = Counter()
    cases = [case for part in (_TRAINING, _TEST) for case in _promise12_cases(part, root, output, skipped)]
    kept = convert_labels(
        cases, _promise12_label, _without_prostate, output, skipped, expected=f"prostates, in {source.layout}"
    )
    folds = {f"{_TRAINING.name}_{name}": number for name, number in site_stratified_folds(seed).items()}
    sites = {f"{_TRAINING.name}_{name}": site for site, names in PROMISE12_SITES.items() for name in names}
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
    """Fold, 0 to 4, of each of the 50 training cases of PROMISE12.

    Ten cases a fold, and of every site two or three. Cases are ranked by the hash of seed and id: the same on every
    machine, whichever cases are there.
    """
    ranked = [
        case_id
        for case_ids in PROMISE12_SITES.values()
        for case_id in sorted(case_ids, key=lambda case_id: hashlib.sha256(f"{seed}:{case_id}".encode()).hexdigest())
    ]
    return {case_id: position % N_FOLDS for position, case_id in enumerate(ranked)}


def prepare_msd_task05(input_dir: str | Path, dataset_dir: str | Path, seed: int = 0) -> Path:
    """Task05_Prostate of the Medical Segmentation Decathlon; see :func:`prepare_data`.

    The T2 channel of an image (T2, ADC) is written to ``images/``, the whole gland (peripheral and transition zone) to
    ``labels/``. The split is drawn: about 70 % training, 10 % validation, 20 % test, by hash of case and seed; the 16
    cases in ``imagesTs`` have no labels.

    Headers are taken as they are, and image and label are compared with each other. That cannot show a header whose
    orientation is wrong in both, which is reported of this data set (Project-MONAI/model-zoo #766): look at a few cases
    before flips or anatomical directions are relied upon.
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
    if not cases:
        raise UserError(
            f"input_dir: no complete case. Received: {folder}{describe_skipped(skipped, ', ')}. "
            f"Expected: {source.layout}"
        )
    kept = convert_labels(
        cases, _whole_gland, _without_prostate, output, skipped, expected="label maps with at least one prostate"
    )
    kept = [_with_t2_image(case, output) for case in tqdm(kept, desc="images", unit="case")]
    entries = labelled_entries(kept, split_cases([case.case_id for case in kept], seed))
    return write_prepared(source, entries, output, skipped, split_rule=f"hash of case, seed {seed}", labels=LABELS)


def _promise12_cases(part: _Part, root: Path, output: Path, skipped: Counter[str]) -> list[Case]:
    files = _promise12_files(part, root, output)
    cases = []
    for name in part.case_names:
        image, label = files.pop(name, None), files.pop(f"{name}_segmentation", None)
        if image and label:
            cases.append(Case(f"{part.name}_{name}", image, (label,)))  # both parts have a Case00
        elif image:
            skipped[f"{part.name} image without segmentation"] += 1
        elif label:
            skipped[f"{part.name} segmentation without image"] += 1
        else:
            skipped[f"{part.name} case not found"] += 1
    skipped[f"{part.name} case beyond {part.case_names[-1]}"] += len({name[: len("CaseXX")] for name in files})
    return cases


def _promise12_files(part: _Part, root: Path, output: Path) -> dict[str, Path]:
    """``CaseXX`` and ``CaseXX_segmentation`` to file; archives are unpacked if need be."""
    archive = root / f"{part.folder}.zip"
    if archive.is_file():
        check_md5(archive, ARCHIVE_MD5[archive.name])
    for folder in (root / part.folder, output / part.folder):
        files = _metaimages([*folder.glob("*.mhd"), *folder.glob("*/*.mhd")])
        if files:
            return files
    if archive.is_file():
        folder = unpack(archive, output / part.folder, _PROMISE12_MEMBER, _MAX_FILE_BYTES)
        return _metaimages(list(folder.glob("*.mhd")))
    if part is not _TRAINING:
        return {}
    files = _metaimages(list(root.glob("*.mhd")))
    if files and all(name[: len("CaseXX")] in _TEST.case_names for name in files):
        raise UserError(
            f"input_dir: training or test cases? Received: {', '.join(sorted(files))[:80]} in {root}, names that both "
            f"have. Expected: folders {_TRAINING.folder}/ and {_TEST.folder}/, as their archives are called"
        )
    return files


def _metaimages(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        if not _PROMISE12_STEM.fullmatch(file.stem):
            continue
        if file.stem in found:
            raise UserError(
                f"{file}: there twice. Received: {found[file.stem]} too. Expected: one of them; take the other away"
            )
        found[file.stem] = file
    return found


def _promise12_label(case: Case) -> tuple[NDArray[np.uint8], VoxelGrid]:
    label_file = case.labels[0]
    image_grid = read_metaimage_grid(case.image)
    read_metaimage_grid(label_file)  # missing voxels are told better than by ITK
    voxels, grid = read_itk(label_file)
    check_same_grid(label_file, grid, case.image, image_grid)
    return _codes_up_to(1, voxels, label_file).astype(np.uint8), image_grid


def _codes_up_to(greatest: int, voxels: NDArray[Any], file: Path) -> NDArray[Any]:
    codes = round_labels(voxels, str(file))
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high > greatest:
        raise UserError(f"{file}: unknown label codes. Received: {low} to {high}. Expected: 0 to {greatest}")
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
    raise UserError(f"input_dir: not the data set. Received: {root}. Expected: {SOURCES['msd_task05'].layout}")


def _read_msd_pairs(path: Path) -> dict[str, tuple[str, str]]:
    """Case to image and label, relative to the folder of the data set's own ``dataset.json``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise unreadable(path, error) from error
    pairs: dict[str, tuple[str, str]] = {}
    try:
        channel = content["modality"]["0"]
        for entry in content["training"]:
            image, label = (PurePosixPath(entry[key]) for key in ("image", "label"))
            if any(name.is_absolute() or ".." in name.parts for name in (image, label)):
                raise ValueError(f"{image} and {label}, which lie elsewhere")
            pairs[volume_name(image.name)] = (str(image), str(label))
        if channel != "T2":
            raise ValueError(f"{channel} as channel 0")
    except (KeyError, TypeError, ValueError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path}: not the list of {_MSD_FOLDER}. Received: {said}. "
            "Expected: modality 0 T2, and pairs image and label under training; download it again"
        ) from error
    return pairs


def _whole_gland(case: Case) -> tuple[NDArray[np.uint8], VoxelGrid]:
    image = open_nifti(case.image)
    if len(image.shape) != 4:
        raise UserError(
            f"{case.image}: not the channels T2 and ADC. Received: shape {image.shape}. Expected: four axes, x, y, z "
            "and channel; download it again"
        )
    image_grid = VoxelGrid(image.shape[:3], image.affine)
    zones, grid = read_nifti(case.labels[0])
    check_same_grid(case.labels[0], grid, case.image, image_grid)
    return (_codes_up_to(2, zones, case.labels[0]) > 0).astype(np.uint8), image_grid


def _without_prostate(label: NDArray[np.uint8]) -> str | None:
    """Why a case is left out, or None."""
    return None if label.any() else "empty segmentation"


def _with_t2_image(case: Case, output: Path) -> Case:
    """The case with its T2 channel as an image of its own, written if it is not there yet."""
    target = output / "images" / f"{case.case_id}.nii.gz"
    if not is_up_to_date(target, [case.image]):
        write_nifti(target, nifti_channel(case.image, 0))
    return replace(case, image=target)
