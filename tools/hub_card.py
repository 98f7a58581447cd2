# SPDX-License-Identifier: Apache-2.0
"""The model card as the Hugging Face Hub shows it: at the top of the repository, with its facts in a YAML header."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tools.markdown import moved
from volseg.errors import UserError
from volseg.registry.index import Entry
from volseg.registry.manifest import Manifest

__all__ = ["HUB_CARD", "flat_metrics", "hub_card"]

CARD, WEIGHTS = "docs/README.md", "models/model.pt"
HUB_CARD = "README.md"
TASK = "image-segmentation"
TAGS = re.compile(r"\*\*Tags:\*\*([^.]+)\.")
# the Hub's words for licences are SPDX identifiers in lower case, and this
UNKNOWN = {"noassertion": "unknown"}


def hub_card(folder: Path, entry: Entry) -> str:
    """The text of ``README.md`` for the Hub: header with licence, library, tags and metrics, and links that hold there.

    Args:
        folder: of an unpacked bundle.
        entry: what the index would say of it. A metric is named beside the results file that proves it, for the weights
            in the bundle; others are left out.

    Raises:
        UserError: the bundle has no model card.
    """
    manifest = Manifest.read(folder)
    files, licenses = manifest.files, manifest.licenses
    if CARD not in files:
        raise UserError(f"{entry.release.zip_name}: has no {CARD}; pack the bundle again")
    card = (folder / CARD).read_text(encoding="utf-8")
    license_id = licenses.get("weights", licenses["code"]).lower()
    found = TAGS.search(card)
    tags = [" ".join(tag.split()) for tag in found[1].split(",")] if found else []
    header = ModelCardData(
        license=UNKNOWN.get(license_id, license_id),
        library_name="monai",
        pipeline_tag=TASK,
        tags=["monai", *tags],
        model_name=entry.title,
        eval_results=list(_eval_results(folder, entry, files.get(WEIGHTS, {}).get("sha256"))),
    )
    text = moved(card, CARD, HUB_CARD, lambda path: path if path in files else None)
    return f"---\n{header.to_yaml()}\n---\n\n{text}"


def flat_metrics(metrics: Mapping[str, Any], parents: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Metrics, possibly grouped, by the names of group and metric."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat_metrics(value, (*parents, name))
        else:
            yield " ".join((*parents, name)), float(value)


def _eval_results(folder: Path, entry: Entry, weights: str | None) -> Iterator[EvalResult]:
    for path in sorted((folder / "docs" / "results").glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        scored = (results.get("weights_sha256"), results.get("evaluation", {}).get("weights_sha256"))
        claimed = dict(flat_metrics(results.get("eval_metrics", {})))
        for name, value in entry.metrics.items():
            if weights and weights in scored and claimed.get(name) == value:
                yield EvalResult(
                    task_type=TASK,
                    task_name=entry.task,
                    dataset_type=path.stem,
                    dataset_name=f"{path.stem}, see {path.relative_to(folder).as_posix()}",
                    metric_type=name.removeprefix(f"{path.stem}_"),
                    metric_value=value,
                )
