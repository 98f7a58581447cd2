# SPDX-License-Identifier: Apache-2.0
"""Cached cases and files that change."""

from __future__ import annotations

from monai.data import PersistentDataset

from volseg.data.datasets import case_hash


def test_a_changed_file_is_read_again(tmp_path):
    (tmp_path / "label.txt").write_text("first")

    def cached() -> str:
        dataset = PersistentDataset(
            [{"label": str(tmp_path / "label.txt")}],
            lambda case: open(case["label"]).read(),  # noqa: PTH123, SIM115
            cache_dir=tmp_path / "cache",
            hash_func=case_hash,
        )
        return dataset[0]

    assert cached() == "first"
    (tmp_path / "label.txt").write_text("corrected")
    assert cached() == "corrected"
    assert cached() == "corrected"
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_folders_and_missing_files_have_a_hash(tmp_path):
    hashes = {case_hash({"image": str(tmp_path / name)}) for name in ("", "missing", "also_missing")}
    assert len(hashes) == 3
