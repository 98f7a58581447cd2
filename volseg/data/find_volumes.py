# SPDX-License-Identifier: Apache-2.0
"""Find the volumes in a folder of patients, studies and series."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.data.case_statistics import RESULT_KEYS, STATISTICS_NAME
from volseg.data.datalist import DATALIST_NAME, SPLITS
from volseg.data.dicom_header import is_scout, is_slice, series_uid
from volseg.data.volume_reader import VOLUME_SUFFIXES, volume_name
from volseg.errors import UserError

__all__ = ["find_volumes", "listed_labels"]

logger = logging.getLogger(__name__)

# a localizer is one slice of each orientation
SCOUT_SLICES = 3
# what the name of a label map adds to that of its image
LABEL_ENDINGS = ("_segmentation", "_seg", "_mask", "_label", "_labels")


def find_volumes(source: str | Path) -> list[Path]:
    """Find the volumes that a user's path refers to.

    Label maps that ``statistics.json`` or ``dataset.json`` list are left out. So are label maps named after an image
    beside them, such as ``Case00_segmentation.mhd``, and scouts beside the series of a study; the log names these.

    Args:
        source: one file, or a folder that holds volume files and folders of DICOM series at any depth.

    Returns:
        one path per volume, sorted: files, or folders with one DICOM series each.

    Raises:
        UserError: the path does not exist or holds no volume.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(
            f"{source}: no such file or folder. --input takes a volume, a folder of them or a DICOM series."
        )
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source} must be a file or folder, got a device or pipe; copy its content to a file first")
    found: list[Path] = []
    series: dict[Path, list[Path]] = {}
    labels: set[Path] = set()
    count = 0
    for folder, files in _folders(source):
        labels.update(listed_labels(folder))
        count += len(files)
        found += [path for path in files if path.name.lower().endswith(VOLUME_SUFFIXES)]
        others = [path for path in files if not path.name.lower().endswith(VOLUME_SUFFIXES) and path.is_file()]
        if any(is_slice(path) for path in others):
            series[folder] = others
        else:
            for path in others:
                if not path.suffix and path.name != "DICOMDIR":
                    logger.info("%s: left out, it is not DICOM and no suffix says another format", path)
    _warn_of_parts(series)
    volumes = sorted([*_without_labels(path for path in found if path not in labels), *_without_scouts(series)])
    if not volumes:
        raise UserError(
            f"{source}: no volume found in a folder with {count} files; none is {', '.join(VOLUME_SUFFIXES)} or DICOM"
        )
    return volumes


def _folders(source: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder once, with its files; hidden ones are left out, links are followed.

    Links to nothing and pipes are among the files: reading them says what they are.
    """
    seen = set()
    for name, subfolders, names in os.walk(source, onerror=_warn_of_folder, followlinks=True):
        folder = Path(name)
        subfolders[:] = sorted(subfolder for subfolder in subfolders if not subfolder.startswith("."))
        if folder.resolve() in seen:
            subfolders.clear()
            continue
        seen.add(folder.resolve())
        files = [folder / file for file in sorted(names) if not file.startswith(".")]
        yield folder, files


def _warn_of_folder(error: OSError) -> None:
    logger.warning("%s: left out, cannot be listed (%s)", error.filename, error.strerror)


def listed_labels(folder: Path) -> Iterable[Path]:
    """Label maps in the folder's lists: results of a bundle, and labels of a data set."""
    results = _read_list(folder / STATISTICS_NAME)
    dataset = _read_list(folder / DATALIST_NAME)
    entries = results if isinstance(results, list) else []
    if isinstance(dataset, dict):
        entries = [*entries, *(entry for split in SPLITS for entry in dataset.get(split) or ())]
    for entry in entries:
        if isinstance(entry, dict):
            yield from (folder / str(entry[key]) for key in (*RESULT_KEYS, "label") if entry.get(key))


def _without_labels(paths: Iterable[Path]) -> Iterator[Path]:
    """Files, but not those named like another one and an ending of label maps."""
    stems = {path: path.with_name(volume_name(path)) for path in paths}
    known = set(stems.values())
    for path, stem in stems.items():
        owners = (stem.with_name(stem.name.removesuffix(end)) for end in LABEL_ENDINGS if stem.name.endswith(end))
        if owner := next((owner for owner in owners if owner in known), None):
            logger.warning("%s: left out, by its name a label map of %s", path, owner.name)
        else:
            yield path


def _read_list(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # absent, or somebody else's
        return None


def _warn_of_parts(series: Mapping[Path, Sequence[Path]]) -> None:
    """Warn of folders that share a series: each is segmented as a volume of its own."""
    first: dict[str, Path] = {}
    for folder, files in series.items() if len(series) > 1 else ():
        uid = series_uid(files)
        if uid and first.setdefault(uid, folder) != folder:
            logger.warning(
                "%s: slices of the series in %s, taken as another volume; put the parts of one volume into one folder",
                *(folder, first[uid]),
            )


def _without_scouts(series: Mapping[Path, Sequence[Path]]) -> Iterator[Path]:
    """Series folders, but not those of a scout beside a series with more slices."""
    studies = defaultdict(list)
    for folder, files in series.items():
        studies[folder.parent].append((folder, files))
    for study in studies.values():
        most = max(len(files) for _, files in study)
        for folder, files in study:
            if len(files) <= SCOUT_SLICES < most and is_scout(files):
                logger.warning("%s: left out, a scout of %d slice(s) beside a series", folder, len(files))
            else:
                yield folder
