# SPDX-License-Identifier: Apache-2.0
"""The log of a segmentation: one format for the lines of MONAI and of the bundles, and a line for every case."""

from __future__ import annotations

import re

import pytest

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - (INFO|WARNING) - (.*)")
# the value of MONAI's input summary may have several lines, and progress bars have none of their own
LOGGED = re.compile(r"^\d[\d:, -]*:\d\d.*", re.MULTILINE)


@pytest.fixture(scope="module", params=["pdvnet_lung", "vnet_prostate", "resunet_mitoem"])
def bundle_name(request) -> str:
    return request.param


def test_lines_have_one_format_and_every_case_has_one(monai_bundle, bundle, phantom, tmp_path):
    process = monai_bundle(
        "run", "--config_file", bundle.configs / "inference.json", "--input", phantom["image"],
        "--weights", bundle.weights, "--output_dir", tmp_path / "out", "--device", "cpu", *bundle.network_overrides,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = LOGGED.findall(process.stdout + process.stderr.replace("\r", "\n"))
    parsed = [LINE.fullmatch(line) for line in lines]
    assert None not in parsed, lines
    messages = [match[2] for match in parsed]
    assert any("input summary" in message for message in messages)  # MONAI's
    found = re.compile(rf"{re.escape(str(phantom['image']))}: .* (ml|instances?)( \(\d+\.\d s\))")
    assert sum(bool(found.fullmatch(message)) for message in messages) == 1, messages
