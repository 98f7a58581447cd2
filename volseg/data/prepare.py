# SPDX-License-Identifier: Apache-2.0
"""Turn a download into a dataset folder: the steps common to all data sets.

Images are referenced where they are. Labels are written atomically and ``dataset.json`` last, so a killed run
continues where it stopped when it is started again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from volseg.data.datalist import DATALIST_NAME, write_datalist
from volseg.data.image_file import VoxelGrid, read_nifti
from volseg.errors import UserError
from volseg.storage.files import atomic_path, claim_folder, remove_leftovers


@dataclass(frozen=True)
class Source:
    """A data set and the layout of its download.

    Attributes:
        key: value of ``--source``.
        name: its name in words.
        layout: files of the download, for errors.
        licence: licence of images and labels.
        citation: what to cite.
    """

    key: str
    name: str
    layout: str
    licence: str
    citation: str


@dataclass(frozen=True)
class Case:
    """One case of a download: its image and the files that its label is made of."""

    case_id: str
    image: Path
    labels: tuple[Path, ...]


def check_arguments(
    sources: Mapping[str, Source], source: str | None, input_dir: str | Path | None, dataset_dir: str | Path | None
) -> None:
    """Check that the source is known and both folders are given.

    Raises:
        UserError: the source is unknown or a folder is missing.
    """
    if source is None or source not in sources:
        raise UserError(f"--source must be {' or '.join(sources)}, got {source or 'none'}")
    if input_dir in (None, ""):
        raise UserError(f"input_dir is missing; give --input_dir FOLDER with {sources[source].layout}")
    if dataset_dir in (None, ""):
        raise UserError("dataset_dir is missing; give --dataset_dir FOLDER to write to")


def check_folders(source: Source, input_dir: str | Path, dataset_dir: str | Path) -> tuple[Path, Path]:
    """Return absolute paths of the download and of the dataset folder, which may be the same.

    Raises:
        UserError: the download is missing, or the dataset folder holds the data list of another source, or another run
            writes to it.
    """
    root, output = (Path(folder).expanduser().absolute() for folder in (input_dir, dataset_dir))
    if not root.is_dir():
        raise UserError(f"input_dir: no such folder: {root}; give a folder with {source.layout}")
    if output.exists() and not output.is_dir():
        raise UserError(f"dataset_dir: not a folder: {output}; give a folder, new or from an earlier run")
    existing = output / DATALIST_NAME
    if existing.is_file():
        try:
            found = json.loads(existing.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("source") != source.key:
            raise UserError(
                f"{existing} would be overwritten, but was not made from {source.key}; "
                "give another --dataset_dir or remove that file"
            )
    claim_folder(output)
    return root, output


def convert_labels(
    cases: Sequence[Case],
    make_label: Callable[[Case], tuple[NDArray[np.uint8], VoxelGrid]],
    reject: Callable[[NDArray[np.uint8]], str | None],
    output: Path,
    skipped: Counter[str],
    *,
    expected: str,
) -> list[Case]:
    """Write each ``labels/<case>.nii.gz`` that does not exist yet.

    Args:
        cases: cases of the download.
        make_label: returns the label map (x, y, z) of a case in the bundle's codes, and its grid.
        reject: returns in a few words why a label map is unusable; None if it is usable.
        output: dataset folder.
        skipped: reason to number of cases; rejected cases are added.
        expected: requirement named in the error if no case is left.

    Returns:
        The cases kept.

    Raises:
        UserError: no case is left, or a file cannot be written.
    """
    remove_leftovers(output)
    kept = []
    for case in tqdm(cases, desc="labels", unit="case"):
        target = output / "labels" / f"{case.case_id}.nii.gz"
        done = is_up_to_date(target, case.labels)
        if done:
            label, _ = read_nifti(target)
        else:
            label, grid = make_label(case)
        reason = reject(label)
        if reason:
            skipped[reason] += 1
            continue
        if not done:
            image = nib.Nifti1Image(label, grid.affine)
            image.header.set_xyzt_units("mm")
            write_nifti(target, image)
        kept.append(case)
    if not kept:
        raise UserError(
            f"input_dir: no case is left of {len(cases)} cases{describe_skipped(skipped, ', ')}; give {expected}"
        )
    return kept


def is_up_to_date(target: Path, sources: Sequence[Path]) -> bool:
    """Return whether a file exists and is no older than its sources."""
    return target.is_file() and target.stat().st_mtime >= max(file.stat().st_mtime for file in sources)


def write_nifti(path: Path, image: nib.Nifti1Image) -> None:
    """Write a NIfTI file atomically.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def labelled_entries(cases: Sequence[Case], splits: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, str]]]:
    """Return the entries of ``dataset.json`` for cases whose labels :func:`convert_labels` wrote.

    Args:
        cases: cases with their images.
        splits: split name to case ids.
    """
    images = {case.case_id: str(case.image) for case in cases}
    return {
        split: [{"image": images[case_id], "label": f"labels/{case_id}.nii.gz"} for case_id in case_ids]
        for split, case_ids in splits.items()
    }


def describe_skipped(skipped: Mapping[str, int], prefix: str) -> str:
    """Return ``PREFIXskipped: 2 image without label``, or an empty string."""
    parts = [f"{count} {reason}" for reason, count in skipped.items() if count]
    return f"{prefix}skipped: {', '.join(parts)}" if parts else ""


def write_prepared(
    source: Source,
    entries: Mapping[str, Sequence[Mapping[str, str]]],
    output: Path,
    skipped: Mapping[str, int],
    *,
    split_rule: str,
    labels: Mapping[int, str],
) -> Path:
    """Write ``dataset.json`` and print one line: cases, split, skipped cases, licence and citation.

    Args:
        source: the data set.
        entries: split name to entries of the data list.
        output: dataset folder.
        skipped: reason to number of cases.
        split_rule: origin of the split.
        labels: code to name, without the background.

    Returns:
        Path of ``dataset.json``.
    """
    info: dict[str, Any] = {
        "name": source.name,
        "source": source.key,
        "licence": source.licence,
        "citation": source.citation,
        "split_rule": split_rule,
        "labels": {"0": "background", **{str(code): name for code, name in labels.items()}},
    }
    path = write_datalist(output, entries, **info)
    counts = ", ".join(f"{split} {len(cases)}" for split, cases in entries.items())
    print(
        f"{path}: {sum(map(len, entries.values()))} cases ({counts}; split: {split_rule})"
        f"{describe_skipped(skipped, '; ')}; licence: {source.licence}; cite: {source.citation}"
    )
    return path
