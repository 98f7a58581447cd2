# SPDX-License-Identifier: Apache-2.0
"""Rule on ids: what MONAI's applications look up in a workflow stands under exactly these ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from monai.bundle import ReferenceResolver
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.bundle.utils import EXPR_KEY, ID_REF_KEY, ID_SEP_KEY
from monai.utils import BundleProperty, BundlePropertyConfig

from tools.check.bundle import METADATA, Bundle
from tools.check.finding import Finding, names, shown
from tools.check.workflow import Workflow, look_up_or_none

PROPERTIES = {"configs/train.json": TrainProperties, "configs/inference.json": InferProperties}


def check_properties(bundle: Bundle) -> Iterator[Finding]:
    """Required ids exist and optional ones are referred to by their own id, without building anything."""
    for path, properties in PROPERTIES.items():
        workflow = bundle.workflow(path)
        if workflow is None:
            continue
        for name, described in properties.items():
            yield from _missing(workflow.path, workflow.config, described)
            yield from _misplaced(workflow, name, described)
    if METADATA in bundle.documents:
        for described in MetaProperties.values():
            # One level down is the schema's business; these are the names `image` and `pred` that MONAI reads.
            if str(described[BundlePropertyConfig.ID]).count(ID_SEP_KEY) > 1:
                yield from _missing(METADATA, {"_meta_": bundle.metadata}, described, required=True)


def _missing(path: str, config: dict[str, Any], described: dict, required: bool = False) -> Iterator[Finding]:
    item_id = described[BundlePropertyConfig.ID]
    if (required or described[BundleProperty.REQUIRED]) and look_up_or_none(config, item_id) is None:
        parent = look_up_or_none(config, item_id.rpartition(ID_SEP_KEY)[0]) if ID_SEP_KEY in item_id else config
        received = f"keys {names(parent)}" if isinstance(parent, dict) else "nothing"
        shown_id = item_id.removeprefix(f"_meta_{ID_SEP_KEY}")
        advice = f"Add it under exactly this id: {described[BundleProperty.DESC]}"
        yield Finding(path, f"the required id {shown_id} is missing", received, advice)


def _misplaced(workflow: Workflow, name: str, described: dict) -> Iterator[Finding]:
    """An optional property that is used, yet not through its own id, as ``check_properties`` of MONAI judges it."""
    item_id, reference_id = described[BundlePropertyConfig.ID], described.get(BundlePropertyConfig.REF_ID)
    if described[BundleProperty.REQUIRED] or reference_id is None:
        return
    if name in ("evaluator", "val_interval"):
        used = _validation_handler(workflow.config).get(reference_id)
        place = f"ValidationHandler{ID_SEP_KEY}{reference_id}"
    else:
        used, place = look_up_or_none(workflow.config, reference_id), reference_id
    used = ReferenceResolver.normalize_id(used) if isinstance(used, str) else used
    expression = isinstance(used, str) and used.startswith(EXPR_KEY)
    if used is not None and not expression and used != ID_REF_KEY + item_id:
        advice = f'Move the content to {item_id} and refer to it as "@{item_id}".'
        yield Finding(workflow.path, f"{place} does not refer to {item_id}", shown(used), advice)


def _validation_handler(config: dict[str, Any]) -> dict[str, Any]:
    handlers = look_up_or_none(config, f"train{ID_SEP_KEY}handlers")
    for handler in handlers if isinstance(handlers, list) else []:
        if isinstance(handler, dict) and str(handler.get("_target_")).rpartition(".")[2] == "ValidationHandler":
            return handler
    return {}
