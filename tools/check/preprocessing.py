# SPDX-License-Identifier: Apache-2.0
"""Rule on preprocessing: inference sees the image through the transforms that training saw it through."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any

from monai.bundle import ReferenceResolver
from monai.bundle.utils import EXPR_KEY, ID_REF_KEY

from tools.check.bundle import Bundle
from tools.check.finding import Finding, shown
from tools.check.workflow import Workflow, look_up, look_up_or_none

IMAGE = "image"
TRAIN, INFER = "train::preprocessing", "preprocessing"
# Random transforms without Rand in their names.
RANDOM_CHOICES = ("OneOf", "SomeOf", "RandomOrder")
# Transforms that change the container of an image, not the image.
CONTAINERS = ("EnsureTyped",)
# A reader of whole volumes and its random counterpart. Training cuts that one's crop smaller once it was turned.
CHUNKED_READER, CHUNKED_CROP, SMALLER_CROP = "LoadImageChunkedVolumed", "RandLoadImageCropd", "CenterSpatialCropd"
# How a config takes a value that training recorded beside its weights.
RECORDED = "$@recorded['"
# Arguments that say nothing about what happens to the image; blank only tells inference where there is no tissue.
SILENT_ARGUMENTS = ("_requires_", "_desc_", "_disabled_", "allow_missing_keys", "blank")
# Arguments that take one value per key: reduced to the image's value.
PER_KEY_ARGUMENTS = (
    "mode", "padding_mode", "align_corners", "dtype", "anti_aliasing", "anti_aliasing_sigma", "device"
)  # fmt: skip


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
    """What a preprocessing does to the image, as plain transforms that can be compared.

    A pure function of the text: nothing is built. References (``@id``) are replaced by what they refer to, sums and
    lists of lists (``$@a + @b``, ``$[*@a.transforms, @b]``) are concatenated, ``Compose`` is taken apart. Then

    - ``EnsureTyped``, which changes the container and not the image, is dropped;
    - ``LoadImageChunkedVolumed`` is dropped, as its counterpart in training, ``RandLoadImageCropd``, is random; beside
      that one ``CenterSpatialCropd`` is dropped, too;
    - random transforms (``Rand*``, ``OneOf``, ``SomeOf``, ``RandomOrder``) are dropped;
    - transforms whose ``keys`` leave the image out, and those disabled by a literal ``true``, are dropped;
    - ``keys`` is reduced to ``["image"]`` and the arguments that take a value per key to the image's value;
    - class names lose their module;
    - ``_requires_``, ``_desc_``, ``_disabled_``, ``allow_missing_keys`` and ``blank`` are dropped.

    References to the ids in ``kept`` stay as they are.
    """
    items = _flat(preprocessing, config, kept)
    if any(_is_a(CHUNKED_CROP, item) for item in items):
        items = [item for item in items if not _is_a(SMALLER_CROP, item)]
    return [simple for item in items for simple in _simplified(item)]


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
    """The transforms of a list, a ``Compose``, a reference or a sum of such, in order, their arguments resolved."""
    if isinstance(node, list):
        return [item for child in node for item in _flat(child, config, seen)]
    if isinstance(node, str):
        parts = _summands(node)
        if parts is None or any(part in seen for part in parts):
            return [node]
        return [item for part in parts for item in _referred(part, config, (*seen, part))]
    if isinstance(node, dict) and _class_name(node) == "Compose":
        return _flat(node.get("transforms", []), config, seen)
    return [_with_values(node, config, seen)] if node is not None else []


def _referred(item_id: str, config: Mapping[str, Any], seen: tuple[str, ...]) -> list[Any]:
    try:
        return _flat(look_up(config, item_id), config, seen)
    except KeyError:
        return [ID_REF_KEY + item_id]  # rule `references` reports it


def _summands(text: str) -> list[str] | None:
    """The ids in ``@a``, ``$@a + @b`` or ``$[*@a.transforms, @b]``, ``None`` for any other text."""
    if not text.startswith(EXPR_KEY):
        return list(ReferenceResolver.match_refs_pattern(text)) or None
    plain = ReferenceResolver.normalize_id(text[len(EXPR_KEY) :])
    try:
        tree = ast.parse(ReferenceResolver.id_matcher.sub("_", plain).strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if not all(_joins_references(node) for node in ast.walk(tree)):
        return None
    return [match.removeprefix(ID_REF_KEY) for match in ReferenceResolver.id_matcher.findall(plain)]


def _joins_references(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "transforms"
    if isinstance(node, ast.Name):
        return node.id == "_"
    return isinstance(node, ast.BinOp | ast.Add | ast.List | ast.Starred | ast.Load)


def _with_values(node: Any, config: Mapping[str, Any], seen: tuple[str, ...]) -> Any:
    """A copy with every reference replaced by what it refers to; expressions keep their text around the values."""
    if isinstance(node, dict):
        return {key: _with_values(value, config, seen) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_values(value, config, seen) for value in node]
    if not isinstance(node, str):
        return node
    alone = _summands(node)
    if alone and len(alone) == 1 and alone[0] not in seen:
        value = look_up_or_none(config, alone[0])
        return node if value is None else _with_values(value, config, (*seen, alone[0]))
    if not node.startswith(EXPR_KEY):
        return node
    return ReferenceResolver.id_matcher.sub(
        lambda match: _as_text(match.group(0), config, seen), ReferenceResolver.normalize_id(node)
    )


def _as_text(reference: str, config: Mapping[str, Any], seen: tuple[str, ...]) -> str:
    value = _with_values(reference, config, seen)
    return json.dumps(value, sort_keys=True) if value != reference else reference


def _simplified(item: Any) -> Iterator[dict[str, Any]]:
    """The transform as far as it concerns the image; nothing if it does not."""
    if not isinstance(item, dict) or "_target_" not in item:
        yield {"_target_": shown(item)}  # opaque: equal only to the same text
        return
    name = _class_name(item)
    keys = item.get("keys")
    keys = [keys] if isinstance(keys, str) else keys
    label_only = isinstance(keys, list) and IMAGE not in keys
    if (
        name.startswith("Rand")
        or name in (*RANDOM_CHOICES, *CONTAINERS, CHUNKED_READER)
        or label_only
        or item.get("_disabled_") in (True, "true", "True")
    ):
        return
    position, count = (keys.index(IMAGE), len(keys)) if isinstance(keys, list) else (0, 1)
    simple = {key: value for key, value in item.items() if key not in SILENT_ARGUMENTS}
    for key in PER_KEY_ARGUMENTS:
        if isinstance(simple.get(key), list) and len(simple[key]) in (1, count):
            simple[key] = simple[key][min(position, len(simple[key]) - 1)]
    yield {**simple, "_target_": name, **({"keys": [IMAGE]} if isinstance(keys, list) else {})}


def _is_a(name: str, item: Any) -> bool:
    return isinstance(item, dict) and _class_name(item) == name


def _class_name(item: dict[str, Any]) -> str:
    return str(item.get("_target_")).rpartition(".")[2]
