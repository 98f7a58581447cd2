# SPDX-License-Identifier: Apache-2.0
"""The data list of a dataset folder: which image has which label, and in which split.

A dataset folder holds ``dataset.json``::

    {"name": ..., "source": ..., "licence": ..., "citation": ...,
     "training": [{"image": path, "label": path}, ...], "validation": [...], "test": [...]}

Paths are relative to the folder, or absolute.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from volseg.errors import UserError
from volseg.storage.files import GZIP, write_json

logger = logging.getLogger(__name__)

DATALIST_NAME = "dataset.json"
SPLITS = ("training", "validation", "test")
# files whose voxels are elsewhere, so that those of two images may be equal
HEADERS = (".mhd", ".nhdr", ".hdr")
# bytes of a file, and files of a folder, by which copies are looked for
COMPARED_BYTES, COMPARED_FILES = 4096, 256
# the least that gzip takes
GZIP_BYTES = 18
REPORTED = 5  # cases that are listed twice

_EXPECTED = f"a folder with {DATALIST_NAME}, as written by the bundle's configs/prepare_data.json"


def load_datalist(dataset_dir: str | Path, split: str) -> list[dict[str, str]]:
    """Read one split of a dataset folder; all returned paths are absolute and exist.

    Args:
        dataset_dir: folder with ``dataset.json``; relative paths start from the working directory.
        split: ``training``, ``validation`` or ``test``. Only ``validation`` may be empty.

    Returns:
        One dictionary per case: ``image`` and ``label`` (absolute paths), and other text of the entry unchanged.

    Raises:
        UserError: the folder, the file, the split or a file of the split is missing or invalid.
    """
    folder = _absolute(dataset_dir)
    path = folder / DATALIST_NAME
    content = _read_json(folder)
    entries = _read_split(folder, content, split)
    _warn_of_repeated(path, tuple(_listed(path, content)))
    return [_read_entry(path, split, index, entry) for index, entry in enumerate(entries)]


def has_cases(dataset_dir: str | Path, split: str) -> bool:
    """Whether a split of a dataset folder lists cases; of phantoms (an empty folder's name) every split does."""
    return not dataset_dir or bool(_read_json(_absolute(dataset_dir)).get(split))


def write_datalist(folder: str | Path, splits: Mapping[str, Sequence[Mapping[str, str]]], **info: Any) -> Path:
    """Write ``dataset.json`` atomically and return its path.

    Args:
        folder: dataset folder, created if absent.
        splits: split name to entries. Absolute paths under ``folder`` become relative, so the folder can be moved.
        info: other content of the file: ``name``, ``source``, ``licence``, ``citation`` ...

    Raises:
        UserError: a split has an unknown name.
    """
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise UserError(f"splits must be named {', '.join(SPLITS)}, got {', '.join(unknown)}")
    root = _absolute(folder)
    root.mkdir(parents=True, exist_ok=True)
    content = dict(info)
    for split in SPLITS:
        content[split] = [
            {key: _relative(value, root) if key in ("image", "label") else value for key, value in entry.items()}
            for entry in splits.get(split, ())
        ]
    path = root / DATALIST_NAME
    write_json(path, content)
    return path


def check_not_empty(cases: Sequence[Mapping[str, str]]) -> None:
    """Check that a training has cases: an empty data loader would only report ``num_samples=0``.

    Raises:
        UserError: there are no cases.
    """
    if not cases:
        raise UserError(
            "train#dataset#data: nothing to train on, got 0 cases with image and label; label an image and submit its "
            "label in MONAI Label, or give a data set with --dataset_dir"
        )


def rank_cases(case_ids: Iterable[str], seed: int) -> list[str]:
    """Sort cases by the hash of seed and id, the same on every machine and in every order."""
    return sorted(case_ids, key=lambda case_id: hashlib.sha256(f"{seed}:{case_id}".encode()).hexdigest())


def split_cases(case_ids: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """Assign cases to the three splits in the order of :func:`rank_cases`: a tenth to validation, a fifth to test.

    With three or more cases no split is empty; one or two cases all go to training.
    """
    ranked = rank_cases(set(case_ids), seed)
    n_validation = n_test = 0
    if len(ranked) >= len(SPLITS):
        n_validation = max(1, round(len(ranked) / 10))
        n_test = max(1, round(len(ranked) / 5))
    n_held_out = n_validation + n_test
    return {
        "training": sorted(ranked[n_held_out:]),
        "validation": sorted(ranked[:n_validation]),
        "test": sorted(ranked[n_validation:n_held_out]),
    }


def _absolute(path: str | Path) -> Path:
    # Path.resolve would follow links, and a data set may be a folder of links.
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100


def _relative(path: str, root: Path) -> str:
    if not Path(path).is_absolute():
        return path
    absolute = _absolute(path)
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / DATALIST_NAME
    if not folder.exists():
        raise UserError(f"dataset_dir: no such folder: {folder}; give {_EXPECTED}")
    if not folder.is_dir():
        raise UserError(f"dataset_dir: not a folder: {folder}; give {_EXPECTED}")
    if not path.is_file():
        found = "an empty folder" if not any(folder.iterdir()) else f"a folder without {DATALIST_NAME}"
        raise UserError(f"dataset_dir: {folder} is {found}; give {_EXPECTED}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # broken JSON and broken UTF-8 alike
        raise UserError(f"{path}: not readable as JSON: {error}; repair the data list or write it again") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a data list must be an object with the lists {', '.join(SPLITS)}, "
            f"got a JSON {type(content).__name__}"
        )
    wrong = [split for split in SPLITS if not isinstance(content.get(split, []), list | None)]
    if wrong:
        raise UserError(f"{path}: '{wrong[0]}' must be a list of cases, got {json.dumps(content[wrong[0]])[:80]}")
    return content


def _read_split(folder: Path, content: dict[str, Any], split: str) -> list[Any]:
    path = folder / DATALIST_NAME
    if split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split}")
    if not isinstance(content.get(split), list):
        found = ", ".join(name for name in SPLITS if isinstance(content.get(name), list)) or "no list of cases"
        raise UserError(f"{path}: no split '{split}', got {found}; add a list under '{split}'")
    entries: list[Any] = content[split]
    if not entries and split != "validation":
        raise UserError(f"{path}: split '{split}' is empty; add at least one image with label")
    return entries


def _read_entry(path: Path, split: str, index: int, entry: Any) -> dict[str, str]:
    where = f"{path}: {split}[{index}]"
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise UserError(f'{where} must be {{"image": path, "label": path}}, got {json.dumps(entry)}')
    if not entry.get("image"):
        raise UserError(f'{where} has no image, got {json.dumps(entry)}; add "image": path')
    if not entry.get("label"):
        raise UserError(f'{where} has no label, got only image {entry["image"]}; add "label": path or drop the case')
    case = dict(entry)
    for key in ("image", "label"):
        file = _absolute(path.parent / case[key])
        if not file.exists():
            raise UserError(
                f"{where}: no such file: {key} {file}; give a path relative to {path.parent}, or an absolute one"
            )
        case[key] = str(file)
    if case["image"] == case["label"]:
        raise UserError(f"{where}: image and label are one file, {file}; give the label map of the image")
    return case


def _listed(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, Path, Path]]:
    """Split, image and label of all entries whose files are there."""
    for split in SPLITS:
        for entry in content.get(split) or ():
            names = [entry.get(key) for key in ("image", "label")] if isinstance(entry, dict) else []
            texts = [name for name in names if isinstance(name, str)]
            if len(texts) == 2:
                image, label = (_absolute(path.parent / text) for text in texts)
                if image.exists() and label.exists():
                    yield split, image, label


@cache  # all splits of a run are of one list
def _warn_of_repeated(path: Path, listed: tuple[tuple[str, Path, Path], ...]) -> None:
    """Warn of images that are listed twice, or of which a copy is listed: their scores are not those of new cases.

    Labels of two images, and label maps that are listed as images, are told too.
    """
    found = [*_repeated_images(listed), *_repeated_labels(listed)]
    for text in found[:REPORTED]:
        logger.warning("%s: %s", path, text)
    if found[REPORTED:]:
        logger.warning("%s: %d more files are listed twice", path, len(found) - REPORTED)


def _repeated_images(listed: Sequence[tuple[str, Path, Path]]) -> Iterator[str]:
    alike = defaultdict(list)
    for split, image, _ in listed:
        alike[_signature(image)].append((split, image))
    for group in alike.values():
        for number, (split, image) in enumerate(group):
            same = next((other for other in group[:number] if _is_same(other[1], image)), None)
            if same:
                first_split, first = same
                name = f"{image}" if first == image else f"{image}, a copy of {first},"
                where = f"twice in {split}" if split == first_split else f"in {first_split} and in {split}"
                yield f"image {name} is listed {where}; keep each case in one split, once"


def _repeated_labels(listed: Sequence[tuple[str, Path, Path]]) -> Iterator[str]:
    image_of: dict[Path, Path] = {}
    for _, image, label in listed:
        first = image_of.setdefault(label, image)
        if first != image and not (_signature(first) == _signature(image) and _is_same(first, image)):
            yield f"label {label} is listed for {image_of[label]} and for {image}; give each image its own"
    for label in sorted(image_of.keys() & {image for _, image, _ in listed}):
        yield f"{label} is listed as an image and as a label; list it as the one that it is"


def _signature(path: Path) -> tuple[Hashable, ...]:
    """What copies have in common, at the cost of a few reads."""
    if path.is_dir():
        return tuple((name, (path / name).stat().st_size) for name in _first_files(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(2) == GZIP and size >= GZIP_BYTES:
            # checksum and length of the content, which differs in its bytes if it is compressed anew
            file.seek(-8, os.SEEK_END)
            checksum, length = (int.from_bytes(file.read(4), "little") for _ in range(2))
            if length >= size:  # one member
                return "gzip", checksum, length
        file.seek(size // 2)
        return size, file.read(COMPARED_BYTES)


def _is_same(first: Path, copy: Path) -> bool:
    """Whether two paths of one signature hold the same image."""
    if first == copy:
        return True
    if first.is_dir():
        return all(filecmp.cmp(first / name, copy / name, shallow=False) for name in _first_files(first))
    if first.name.lower().endswith(HEADERS):
        return False
    return _signature(first)[0] == "gzip" or filecmp.cmp(first, copy, shallow=False)


def _first_files(folder: Path) -> list[str]:
    """The first files of an image in a folder, without its labels."""
    names = (
        str((Path(parent) / name).relative_to(folder))
        for parent, folders, files in _sorted_walk(folder)
        for name in files
    )
    return list(islice(names, COMPARED_FILES))


def _sorted_walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "labels")
        yield parent, folders, sorted(files)
