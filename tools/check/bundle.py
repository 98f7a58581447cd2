# SPDX-License-Identifier: Apache-2.0
"""A bundle's folder, read once for all rules: its configs, alone and merged on their bases; and what a rule finds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.utils import ID_SEP_KEY, MERGE_KEY, merge_kv

SHOWN_CHARACTERS = 160
DEEPEST = 50
ON_TRAIN = ("evaluate.json", "finetune.json", "tune.json")
OVERLAY_RULE = (
    f"multi_gpu_X.json -> X.json, {', '.join(ON_TRAIN)} and train_*.json -> train.json, "
    "inference_*.json -> inference.json"
)
METADATA = "configs/metadata.json"
REQUIRED_CONFIGS = (METADATA, "configs/train.json", "configs/evaluate.json", "configs/inference.json")


@dataclass(frozen=True)
class Finding:
    """What a rule has to say about one file; ``path`` is relative to the bundle's folder."""

    path: str
    what: str
    received: str
    advice: str

    def line(self, folder: str) -> str:
        """The finding as one line; ``folder`` is how the bundle's folder is called, e.g. ``bundles/pdvnet_lung``."""
        text = f"{folder}/{self.path}: {self.what}; found: {self.received}. {self.advice}"
        return " ".join(text.split())


def shown(value: Any) -> str:
    """A value as short one-line JSON (or its ``repr`` where JSON has no word for it)."""
    try:
        text = value if isinstance(value, str) and value.strip() else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def names(values: Any) -> str:
    """Names in a row, ``nothing`` for none."""
    return shown(", ".join(str(value) for value in values) or "nothing")


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
    """Every node of a config with its id, except descriptions (``_desc_``)."""
    yield item_id, node
    for key, child in _children(node):
        if key != "_desc_":
            yield from walk(child, join_id(item_id, key))


def walk_values(node: Any) -> Iterator[tuple[str, str]]:
    """Every string of a config that MONAI may evaluate, with its id: no description, no ``_target_``."""
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


@dataclass
class Bundle:
    """The configs of one bundle; ``problems`` is what kept a file from being read."""

    root: Path
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    workflows: list[Workflow] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> Bundle:
        """Read every JSON config below ``root``; what is missing or broken becomes a finding, never an error."""
        bundle = cls(root.resolve())
        paths = [f"configs/{file.name}" for file in sorted((bundle.root / "configs").glob("*.json"))]
        for path in dict.fromkeys((*REQUIRED_CONFIGS, *paths)):
            content = read_json(bundle.root, path, bundle.problems)
            if isinstance(content, dict):
                bundle.documents[path] = content
        bundle._build_workflows()
        return bundle

    @property
    def name(self) -> str:
        """The folder's name, which is the bundle's and its own package's name."""
        return self.root.name

    @property
    def checkout(self) -> Path:
        """The folder that holds ``bundles/NAME``; for a bundle that lies elsewhere, the folder that holds it."""
        return self.root.parent.parent if self.root.parent.name == "bundles" else self.root.parent

    @property
    def title(self) -> str:
        """How the folder is called in findings: ``bundles/NAME``."""
        return self.root.relative_to(self.checkout).as_posix()

    @property
    def metadata(self) -> dict[str, Any]:
        """``configs/metadata.json``, empty if it could not be read."""
        return self.documents.get(METADATA, {})

    def workflow(self, path: str) -> Workflow | None:
        """The workflow of a config file, ``None`` if it could not be read."""
        return next((workflow for workflow in self.workflows if workflow.path == path), None)

    def _build_workflows(self) -> None:
        """Merge and resolve every config, bases before their overlays."""
        waiting = [path for path in self.documents if path != METADATA]
        while waiting:
            ready = [path for path in waiting if _base_path(path) not in waiting]
            for path in ready:
                self._build_workflow(path)
            waiting = [path for path in waiting if path not in ready]

    def _build_workflow(self, path: str) -> None:
        base_path = _base_path(path)
        base = self.workflow(base_path) if base_path else None
        if base_path and base is None:
            if base_path not in REQUIRED_CONFIGS and not (self.root / base_path).exists():
                what = f"its name makes it an overlay of {base_path}, which does not exist"
                found = names(sorted(self.documents))
                self.problems.append(Finding(path, what, found, f"Rename it by the rule {OVERLAY_RULE}."))
            return
        self.workflows.append(build_workflow(path, self.documents[path], base))


def read_text(path: Path) -> str:
    """The text of a regular file: a pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")
    return path.read_text(encoding="utf-8")


def read_json(root: Path, path: str, problems: list[Finding]) -> Any:
    """A JSON object from ``root / path``; what is wrong with the file is added to ``problems``."""
    duplicates: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        duplicates.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(pairs)

    try:
        content = json.loads(read_text(root / path), object_pairs_hook=unique)
        _check_depth(content)
    except FileNotFoundError:
        problems.append(Finding(path, "the file is missing", "nothing", "Write it, or check the bundle's folder."))
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(Finding(path, "the file cannot be read as JSON", str(error), "Mend the file."))
        return None
    problems.extend(
        Finding(path, "a key stands twice in one object", key, "Keep one of the two; JSON readers drop the first.")
        for key in duplicates
    )
    if not isinstance(content, dict):
        problems.append(Finding(path, "the file is no JSON object", type(content).__name__, "Write one object, {...}."))
        return None
    return content


def _check_depth(content: Any) -> None:
    """Raise ``ValueError`` for nesting that recursion cannot follow."""
    nodes = [content]
    for _ in range(DEEPEST):
        nodes = [child for node in nodes for _, child in _children(node)]
    if nodes:
        raise ValueError(f"nested more than {DEEPEST} times")


def in_every_workflow(bundle: Bundle, look: Callable[[Workflow], Iterable[Finding]]) -> Iterator[Finding]:
    """What ``look`` finds in the workflows; an overlay does not repeat the findings of its base."""
    facts_of: dict[str, set[tuple[str, str]]] = {}
    for workflow in bundle.workflows:
        told = facts_of[workflow.base.path] if workflow.base else set()
        found = list(look(workflow))
        yield from (finding for finding in found if (finding.what, finding.received) not in told)
        facts_of[workflow.path] = told | {(finding.what, finding.received) for finding in found}


def _base_path(path: str) -> str | None:
    base = base_name(path.removeprefix("configs/"))
    return f"configs/{base}" if base else None
