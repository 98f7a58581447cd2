# SPDX-License-Identifier: Apache-2.0
"""A bundle's folder, read once for all rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.check.finding import Finding, names
from tools.check.workflow import OVERLAY_RULE, Workflow, base_name, build_workflow

METADATA = "configs/metadata.json"
REQUIRED_CONFIGS = (METADATA, "configs/train.json", "configs/evaluate.json", "configs/inference.json")


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


def read_json(root: Path, path: str, problems: list[Finding]) -> Any:
    """A JSON object from ``root / path``; what is wrong with the file is added to ``problems``."""
    duplicates: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        duplicates.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(pairs)

    try:
        content = json.loads((root / path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        problems.append(Finding(path, "the file is missing", "nothing", "Write it, or check the bundle's folder."))
        return None
    except (OSError, ValueError) as error:
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
