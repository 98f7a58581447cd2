# SPDX-License-Identifier: Apache-2.0
"""Rule on preprocessing: inference sees the image through the transforms that training saw it through."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from monai.bundle import ReferenceResolver
from monai.bundle.utils import EXPR_KEY, ID_REF_KEY

from tools.check.bundle import Bundle, Finding, Workflow, look_up_or_none, shown

IMAGE = "image"
TRAIN, INFER = "train::preprocessing", "preprocessing"
# random without Rand in the name; a change of container only; the reader whose counterpart in training is random
SILENT = ("OneOf", "SomeOf", "RandomOrder", "EnsureTyped", "LoadImageChunkedVolumed")
# Training reads a random crop, and makes it smaller after turning it.
CHUNKED_CROP, SMALLER_CROP = "RandLoadImageCropd", "CenterSpatialCropd"
# How a config takes a value that training recorded beside its weights.
RECORDED = "$@recorded['"
# Arguments that say nothing about what happens to the image; blank only tells inference where there is no tissue.
SILENT_ARGUMENTS = ("_desc_", "_disabled_", "allow_missing_keys", "blank")
# Arguments that take one value per key: reduced to the image's value.
PER_KEY_ARGUMENTS = (
    "mode", "padding_mode", "align_corners", "dtype", "anti_aliasing", "anti_aliasing_sigma", "device"
)  # fmt: skip
REFERENCE = rf"{ReferenceResolver.id_matcher.pattern}(\.transforms)?"
# "@a", "$@a + @b" or "$[*@a.transforms, @b]"
JOINED = re.compile(rf"\$?\[?\*?{REFERENCE}(\s*[+,]\s*\*?{REFERENCE})*\]?")


def check_preprocessing(bundle: Bundle) -> Iterator[Finding]:
    """The deterministic transforms of the image are the same in training and in inference.

    An inference config is compared with the training config of the same suffix (``inference_x.json`` with
    ``train_x.json``), or else with ``train.json``. Within a file a pipeline stands once and is referred to.
    """
    for workflow in bundle.workflows:
        if workflow.path.startswith("configs/inference"):
            suffix = workflow.path.removeprefix("configs/inference")
            reference = bundle.workflow(f"configs/train{suffix}") or bundle.workflow("configs/train.json")
            if reference:
                yield from _compare(workflow, reference)


def normalise(preprocessing: Any, config: Mapping[str, Any], kept: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What a preprocessing does to the image, as plain transforms that can be compared; nothing is built.

    References and lists of them (``$@a + @b``, ``$[*@a.transforms, @b]``) are replaced by what they refer to, except
    those to the ids in ``kept``. What is random, disabled, not for the image or a mere change of container is dropped,
    and so are the chunked reader, whose counterpart in training is random, and the crop that follows that one.
    Arguments with a value per key are reduced to the image's, and class names lose their module.
    """
    items = _flat(preprocessing, config, kept)
    smaller_crop = (SMALLER_CROP,) if any(_class_name(item) == CHUNKED_CROP for item in items) else ()
    return [_simplified(item) for item in items if not _is_silent(item, (*SILENT, *smaller_crop))]


def _compare(workflow: Workflow, reference: Workflow) -> Iterator[Finding]:
    mine, theirs = look_up_or_none(workflow.config, INFER), look_up_or_none(reference.config, TRAIN)
    if mine is None or theirs is None:
        return
    kept = (*_recorded(workflow.config), *_recorded(reference.config))
    left, right = normalise(mine, workflow.config, kept), normalise(theirs, reference.config, kept)
    for index in range(max(len(left), len(right))):
        here, there = (_brief(items[index]) if index < len(items) else "nothing" for items in (left, right))
        if here != there:
            what = f"{INFER} differs from {TRAIN} of {reference.path} at the image's transform {index + 1}"
            advice = "Give the image the same deterministic transforms in both files."
            yield Finding(workflow.path, what, f"{here} instead of {there}", advice)
            return


def _recorded(config: Mapping[str, Any]) -> list[str]:
    """Ids whose value training writes beside the weights and others read from there: the same by construction."""
    return [key for key, value in config.items() if isinstance(value, str) and value.startswith(RECORDED)]


def _brief(item: dict[str, Any]) -> str:
    arguments = ", ".join(
        f"{key}={shown(value)}" for key, value in sorted(item.items()) if key not in ("_target_", "keys")
    )
    return f"{item['_target_']}({arguments})"


def _flat(node: Any, config: Mapping[str, Any], seen: tuple[str, ...]) -> list[Any]:
    """The transforms of a list, a ``Compose`` or joined references, in order, their arguments resolved."""
    if isinstance(node, list):
        return [item for child in node for item in _flat(child, config, seen)]
    if isinstance(node, dict) and _class_name(node) == "Compose":
        return _flat(node.get("transforms", []), config, seen)
    if isinstance(node, str) and JOINED.fullmatch(text := ReferenceResolver.normalize_id(node)):
        ids = [match.removeprefix(ID_REF_KEY) for match in ReferenceResolver.id_matcher.findall(text)]
        if not any(item_id in seen or look_up_or_none(config, item_id) is None for item_id in ids):
            return [item for i in ids for item in _flat(look_up_or_none(config, i), config, (*seen, i))]
    return [] if node is None else [node if isinstance(node, str) else _with_values(node, config, seen)]


def _with_values(node: Any, config: Mapping[str, Any], seen: tuple[str, ...]) -> Any:
    """A copy with every reference replaced by what it refers to; expressions keep their text around the values."""
    if isinstance(node, dict):
        return {key: _with_values(value, config, seen) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_values(value, config, seen) for value in node]
    if not isinstance(node, str):
        return node
    text, matcher = ReferenceResolver.normalize_id(node), ReferenceResolver.id_matcher
    if text.startswith(EXPR_KEY):
        return matcher.sub(lambda match: _as_text(_with_values(match.group(0), config, seen)), text)
    item_id = text.removeprefix(ID_REF_KEY)
    value = look_up_or_none(config, item_id) if matcher.fullmatch(text) and item_id not in seen else None
    return node if value is None else _with_values(value, config, (*seen, item_id))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) and value.startswith(ID_REF_KEY) else json.dumps(value, sort_keys=True)


def _is_silent(item: Any, names: tuple[str, ...]) -> bool:
    """Whether a transform does nothing to the image, or what it does is left out of the comparison."""
    keys = item.get("keys") if isinstance(item, dict) else None
    return isinstance(item, dict) and (
        _class_name(item).startswith("Rand")
        or _class_name(item) in names
        or (isinstance(keys, list) and IMAGE not in keys)
        or (isinstance(keys, str) and keys != IMAGE)
        or item.get("_disabled_") in (True, "true", "True")
    )


def _simplified(item: Any) -> dict[str, Any]:
    """The transform as far as it concerns the image."""
    if not isinstance(item, dict) or "_target_" not in item:
        return {"_target_": shown(item)}  # opaque: equal only to the same text
    keys = item.get("keys")
    keys = [keys] if isinstance(keys, str) else keys
    position, count = (keys.index(IMAGE), len(keys)) if isinstance(keys, list) else (0, 1)
    simple = {key: value for key, value in item.items() if key not in SILENT_ARGUMENTS}
    for key in PER_KEY_ARGUMENTS:
        if isinstance(simple.get(key), list) and len(simple[key]) in (1, count):
            simple[key] = simple[key][min(position, len(simple[key]) - 1)]
    return {**simple, "_target_": _class_name(item), **({"keys": [IMAGE]} if isinstance(keys, list) else {})}


def _class_name(item: Any) -> str:
    return str(item.get("_target_")).rpartition(".")[2] if isinstance(item, dict) else ""
