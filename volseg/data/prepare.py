# SPDX-License-Identifier: Apache-2.0
"""What the preparation of every data set needs: a download becomes a dataset folder.

Images stay where they are and are referenced. Labels land whole or not at all and ``dataset.json`` comes last, so a
run that was killed is started again and goes on where it was.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from volseg.data.datalist import DATALIST_NAME, write_datalist
from volseg.data.stored_volume import read_nifti
from volseg.data.voxel_grid import VoxelGrid
from volseg.errors import UserError

__all__ = [
    "Case",
    "Source",
    "check_arguments",
    "check_folders",
    "convert_labels",
    "describe_skipped",
    "is_up_to_date",
    "labelled_entries",
    "write_nifti",
    "write_prepared",
]


@dataclass(frozen=True)
class Source:
    """What a data set is, and how its download lies on disk.

    Attributes:
        key: what the user calls it: ``--source KEY``.
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
    """One case of a download: its image, and the files its label is made of."""

    case_id: str
    image: Path
    labels: tuple[Path, ...]


def check_arguments(
    sources: Mapping[str, Source], source: str | None, input_dir: str | Path | None, dataset_dir: str | Path | None
) -> None:
    """See that the source is known and both folders were given.

    Raises:
        UserError: one is not.
    """
    if source is None or source not in sources:
        raise UserError(f"source: unknown. Received: {source}. Expected: --source {' or '.join(sources)}")
    if input_dir in (None, ""):
        raise UserError(
            f"input_dir: not given. Received: nothing. Expected: --input_dir FOLDER with {sources[source].layout}"
        )
    if dataset_dir in (None, ""):
        raise UserError("dataset_dir: not given. Received: nothing. Expected: --dataset_dir FOLDER to write to")


def check_folders(source: Source, input_dir: str | Path, dataset_dir: str | Path) -> tuple[Path, Path]:
    """Absolute paths of the download and of the dataset folder, which may be the download itself.

    Raises:
        UserError: there is no download, or the dataset folder holds the data list of something else.
    """
    root, output = (Path(folder).expanduser().absolute() for folder in (input_dir, dataset_dir))
    if not root.is_dir():
        raise UserError(f"input_dir: no such folder. Received: {root}. Expected: {source.layout}")
    if output.exists() and not output.is_dir():
        raise UserError(f"dataset_dir: not a folder. Received: {output}. Expected: a folder, new or of an earlier run")
    existing = output / DATALIST_NAME
    if existing.is_file():
        try:
            found = json.loads(existing.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("source") != source.key:
            raise UserError(
                f"{existing}: would be overwritten. Received: a data list that was not made from {source.key}. "
                "Expected: another --dataset_dir, or remove that file"
            )
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
    """Write ``labels/<case>.nii.gz`` where it is not there yet.

    Args:
        cases: cases of the download.
        make_label: label map (x, y, z) of a case in the codes of the bundle, and its grid.
        reject: why a label map is of no use, in a few words; None if it is.
        output: dataset folder.
        skipped: reason to number of cases; cases that are rejected are added.
        expected: what the error says if no case is left.

    Returns:
        The cases kept.

    Raises:
        UserError: no case is left, or a file cannot be written.
    """
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
            f"input_dir: no case is left. Received: {len(cases)} cases{describe_skipped(skipped, ', ')}. "
            f"Expected: {expected}"
        )
    return kept


def is_up_to_date(target: Path, sources: Sequence[Path]) -> bool:
    """Whether a file is there and no older than what it is made of."""
    return target.is_file() and target.stat().st_mtime >= max(file.stat().st_mtime for file in sources)


def write_nifti(path: Path, image: nib.Nifti1Image) -> None:
    """Write a NIfTI file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    # Always the same name, so that what a killed run left is overwritten; nibabel goes by the ending.
    temporary = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, temporary)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written. Received: {error.strerror or error}. Expected: a folder with space and rights"
        ) from error
    finally:
        with suppress(OSError):  # a folder that is none: the error above says so
            temporary.unlink(missing_ok=True)


def labelled_entries(cases: Sequence[Case], splits: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, str]]]:
    """Entries of ``dataset.json`` for cases whose labels :func:`convert_labels` wrote.

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
    """``PREFIXskipped: 2 image without label``, or nothing."""
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
    """Write ``dataset.json`` and print one line: cases, split, what was skipped, licence and citation.

    Args:
        source: the data set.
        entries: split name to entries of the data list.
        output: dataset folder.
        skipped: reason to number of cases.
        split_rule: where the split comes from.
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
