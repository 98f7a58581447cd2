# SPDX-License-Identifier: Apache-2.0
"""Tests of which images of a folder are segmented."""

from __future__ import annotations

from vnet_prostate.data import inference_list


def test_the_axial_t2_of_a_case_is_picked(tmp_path, caplog):
    """The layout of PI-CAI; a sagittal image with no axial one beside it is segmented, with the warnings it draws."""
    folder = tmp_path / "images" / "10000"
    folder.mkdir(parents=True)
    for name in ("t2w", "adc", "cor"):
        (folder / f"10000_1000000_{name}.mha").touch()
    (folder / "10001_sag.mha").touch()
    images = [case["image"] for case in inference_list(str(tmp_path), str(tmp_path / "phantom"), (8, 9, 10))]
    assert images == [str(folder / f"{name}.mha") for name in ("10000_1000000_t2w", "10001_sag")]
    assert caplog.messages == [
        f"{folder}/10000_1000000_{name}.mha: left out, the axial T2 lies beside it" for name in ("adc", "cor")
    ]
