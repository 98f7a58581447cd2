# SPDX-License-Identifier: Apache-2.0
"""A config as ``monai.bundle run`` would see it: overlays merged on their base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.utils import ID_SEP_KEY, MERGE_KEY, merge_kv

from tools.check.finding import Finding, shown

ON_TRAIN = ("evaluate.json", "finetune.json", "tune.json")
OVERLAY_RULE = (
    f"multi_gpu_X.json -> X.json, {', '.join(ON_TRAIN)} and train_*.json -> train.json, "
    "inference_*.json -> inference.json"
)


@dataclass(frozen=True)
class Workflow:
    """One config file, alone (``own``) and merged on its base (``config``)."""

    path: str
    base: Workflow | None
    own: dict[str, Any]
    config: dict[str, Any]
    problems: tuple[Finding, ...]


def base_name(name: str) -> str | None:
    """The config that ``name`` is an overlay of, by its name alone; ``None`` for a complete workflow.

    ``multi_gpu_X`` lies on ``X``; ``evaluate.json``, ``finetune.json``, ``tune.json`` and ``train_*.json`` on
    ``train.json``; ``evaluate_*.json`` on ``evaluate.json``; ``inference_*.json`` on ``inference.json``.
    """
    if name.startswith("multi_gpu_"):
        return name.removeprefix("multi_gpu_")
    if name in ON_TRAIN or name.startswith("train_"):
        return "train.json"
    for stem in ("evaluate", "inference"):
        if name.startswith(f"{stem}_"):
            return f"{stem}.json"
    return None


def build_workflow(path: str, own: dict[str, Any], base: Workflow | None) -> Workflow:
    """Merge a config on its base, key by key as MONAI merges; what cannot be merged becomes a problem."""
    parser = ConfigParser(config=deepcopy(base.config) if base else {}, globals=False)
    problems = []
    for key, value in deepcopy(own).items():
        try:
            if key.startswith(MERGE_KEY) and key[1:] not in parser:
                raise KeyError(key[1:])
            merge_kv(parser, key, value)
        except (KeyError, IndexError, TypeError, ValueError):
            on = base.path if base else "an empty config"
            advice = f"Name an id of the base, or name the file as an overlay of the right config ({OVERLAY_RULE})."
            problems.append(Finding(path, f"the key {key} cannot be merged on {on}", shown(value), advice))
    config: dict[str, Any] = parser.config if isinstance(parser.config, dict) else {}
    return Workflow(path, base, own, config, tuple(problems))


def walk(node: Any, item_id: str = "") -> Iterator[tuple[str, Any]]:
    """Every node of a config with its id, except descriptions (``_desc_``) and metadata (``_meta_``)."""
    yield item_id, node
    for key, child in _children(node):
        if key not in ("_desc_", "_meta_"):
            yield from walk(child, join_id(item_id, key))


def walk_values(node: Any) -> Iterator[tuple[str, str]]:
    """Every string of a config that MONAI may evaluate, with its id: no descriptions, no ``_target_``."""
    for item_id, value in walk(node):
        if isinstance(value, str) and item_id.rpartition(ID_SEP_KEY)[2] != "_target_":
            yield item_id, value


def walk_items(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every item of a config that MONAI would build (a dictionary with ``_target_``), with its id."""
    for item_id, value in walk(node):
        if isinstance(value, dict) and "_target_" in value:
            yield item_id, value


def join_id(item_id: str, key: Any) -> str:
    """The id of a child."""
    return f"{item_id}{ID_SEP_KEY}{key}" if item_id else str(key)


def look_up(config: Any, item_id: str) -> Any:
    """The part of a config with this id. Raises ``KeyError`` where MONAI would not find it either."""
    for key in ReferenceResolver.split_id(item_id):
        if isinstance(config, Mapping) and key in config:
            config = config[key]
        elif isinstance(config, list) and key.isdecimal() and int(key) < len(config):
            config = config[int(key)]
        else:
            raise KeyError(item_id)
    return config


def look_up_or_none(config: Any, item_id: str) -> Any:
    """The part of a config with this id, ``None`` if there is none."""
    try:
        return look_up(config, item_id)
    except KeyError:
        return None


def _children(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []
