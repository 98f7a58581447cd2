# SPDX-License-Identifier: Apache-2.0
"""The lines of Python in the model cards and in the README: an array goes in, labels on its grid come out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

# what follows the lines of a card, with the names that they use; the weights are the included ones
CHECKS = {
    "pdvnet_lung": """
assert lobes.shape == ct.shape == (96, 80, 64)
assert set(lobes.ravel()) == {0, 1, 2, 3, 4, 5}
assert (lobes == phantom.label).mean() > 0.97
""",
    "vnet_prostate": """
assert gland.shape == mri.shape and sorted(mri.shape) == [24, 144, 160]
assert set(gland.ravel()) == {0, 1}
assert 2 * (gland * phantom.label).sum() / (gland.sum() + phantom.label.sum()) > 0.7
""",
    "resunet_mitoem": """
assert instances.shape == sections.shape == (16, 96, 112)
assert len(set(instances.ravel())) > 5 and instances.min() == 0
assert phantom.label[instances > 0].astype(bool).mean() > 0.7
assert (instances > 0)[phantom.label > 0].mean() > 0.7
""",
}


def _lines(page: Path) -> str:
    (lines,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return lines


def test_lines_of_the_readme_are_those_of_the_first_card(root):
    assert _lines(root / "README.md") == _lines(root / "bundles" / "pdvnet_lung" / "docs" / "README.md")


@pytest.mark.parametrize("name", CHECKS)
def test_lines_of_the_card(name, runner, root):
    lines = _lines(root / "bundles" / name / "docs" / "README.md")
    process = runner.python(lines + CHECKS[name], cwd=root)
    assert process.returncode == 0, process.stderr
