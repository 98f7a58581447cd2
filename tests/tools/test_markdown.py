# SPDX-License-Identifier: Apache-2.0
"""Links lead to the same files after a text has moved."""

from __future__ import annotations

from tools.markdown import linked_files, moved

CARD = "bundles/lung/docs/README.md"
TEXT = """![A lung](figures/a.png) and [`training`](../../../docs/training.md#more), [here](#use),
[elsewhere](https://example.org/a.md), [the
repository](../../../README.md).

```python
parts[0](case.md)
```
"""


def test_linked_files():
    found = ["bundles/lung/docs/figures/a.png", "docs/training.md", "README.md"]
    assert linked_files(TEXT, CARD) == found


def test_moved():
    places = {"bundles/lung/docs/figures/a.png": "docs/figures/a.png", "docs/training.md": "docs/training.md"}
    beside = TEXT.replace("../../../docs/training.md", "training.md").replace(
        "[the\nrepository](../../../README.md)", "the\nrepository"
    )
    assert moved(TEXT, CARD, "docs/README.md", places.get) == beside
    above = beside.replace("(figures/", "(docs/figures/").replace("(training.md", "(docs/training.md")
    assert moved(TEXT, CARD, "README.md", places.get) == above
    assert moved("![a](a.png)[b](b.md)", CARD, CARD, {}.get) == "b"
