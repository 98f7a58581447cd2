# SPDX-License-Identifier: Apache-2.0
"""Rows of the tables of users' files: how a file is made, and what a bundle must do with it.

Tables are in ``test_users_files.py``, here and in the folders of the bundles; each row becomes one test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest

__all__ = ["MEDICAL", "Files", "Situation", "check", "rows"]

MEDICAL = ("pdvnet_lung", "vnet_prostate")


@dataclass(frozen=True)
class Files:
    """What the file of a row is made from.

    Attributes:
        folder: empty; everything goes there.
        image: the bundle's phantom.
        voxels: of the phantom, ``(X, Y, Z)`` as stored; for electron microscopy ``(D, H, W)``.
        affine: of the phantom, voxel to RAS in mm; the identity for electron microscopy.
    """

    folder: Path
    image: Path
    voxels: np.ndarray
    affine: np.ndarray

    def nifti(self, name: str, voxels: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        """Write the phantom, or other voxels or another affine, as NIfTI."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(
            nib.Nifti1Image(
                self.voxels if voxels is None else voxels,
                self.affine if affine is None else affine,
            ),
            path,
        )
        return path


@dataclass(frozen=True)
class Situation:
    """One row.

    Attributes:
        title: what is special about the file.
        make: writes it and returns what ``--input`` is.
        outcome: ``right``: segmented as the phantom is, with the same warnings; ``warning``: segmented, with the words
            in one warning of the log and of ``statistics.json``; ``refused``: one line with the words, exit status 1,
            and no file is left.
        words: expected in that line or warning.
        bundles: that the row concerns.
        options: further arguments of the command.
    """

    title: str
    make: Callable[[Files], Path | str]
    outcome: Literal["right", "warning", "refused"]
    words: tuple[str, ...] = ()
    bundles: tuple[str, ...] = MEDICAL
    options: tuple[str, ...] = ()


def rows(situations: Iterable[Situation]) -> Any:
    """``parametrize`` with a test for each row and bundle, sorted by bundle."""
    pairs = [(bundle, situation) for situation in situations for bundle in situation.bundles]
    pairs.sort(key=lambda pair: pair[0])
    return pytest.mark.parametrize(
        ("bundle_name", "situation"),
        pairs,
        ids=[f"{bundle}-{situation.title}" for bundle, situation in pairs],
        scope="module",
    )


def check(situation: Situation, process: Any, out: Path, expected: Path) -> None:
    """See that a run ended as the row says.

    Args:
        situation: the row.
        process: completed.
        out: folder of its results.
        expected: folder of the phantom's results.
    """
    said = process.stderr + process.stdout
    assert "Traceback" not in said, said
    if situation.outcome == "refused":
        assert process.returncode == 1, said
        errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
        assert errors == process.stderr.rstrip().splitlines()[-1:], said
        assert [word for word in situation.words if word not in errors[0]] == [], errors[0]
        assert [p for p in out.rglob("*") if p.is_file()] == []
        return
    assert process.returncode == 0, said
    (case,) = json.loads((out / "statistics.json").read_text())
    if situation.outcome == "warning":
        (warning,) = [w for w in case["warnings"] if all(word in w for word in situation.words)]
        assert warning in said
        return
    (reference,) = json.loads((expected / "statistics.json").read_text())
    assert case["warnings"] == reference["warnings"]
    labels, wanted = nib.load(out / case["segmentation"]), nib.load(expected / reference["segmentation"])
    np.testing.assert_array_equal(np.asarray(labels.dataobj), np.asarray(wanted.dataobj))
    np.testing.assert_allclose(labels.affine, wanted.affine, atol=1e-3)
