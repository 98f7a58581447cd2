# SPDX-License-Identifier: Apache-2.0
"""Rule on ``_target_``: every class and function exists and comes from an allowed package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pydoc import ErrorDuringImport, locate
from types import ModuleType
from typing import Any

from monai.bundle import ComponentLocator

from tools import REPOSITORY
from tools.check.bundle import Bundle, Finding, Workflow, in_every_workflow, shown, walk_items
from tools.check.configs import UNSAFE_ARGUMENTS

ALLOWED_PACKAGES = ("torch", "monai", "ignite", "numpy", "scipy", "skimage", "volseg")


def check_targets(bundle: Bundle) -> Iterator[Finding]:
    """Every ``_target_`` can be imported, lies in an allowed package and loads no pickles."""
    known: dict[str, tuple[str, str] | None] = {}

    def look(workflow: Workflow) -> Iterator[Finding]:
        for item_id, item in walk_items(workflow.config):
            target = item["_target_"]
            if not isinstance(target, str):
                advice = "Write the dotted name of a class or function as a string."
                yield Finding(workflow.path, f"{item_id} has a _target_ that is no name", shown(target), advice)
                continue
            if target not in known:
                known[target] = target_problem(target, bundle.name)
            problem = known[target]
            if problem:
                yield Finding(workflow.path, f"{item_id} {problem[0]}", shown(target), problem[1])
            yield from _pickles(workflow.path, item_id, item)

    with own_code(bundle):
        yield from in_every_workflow(bundle, look)


def target_problem(target: str, own_package: str) -> tuple[str, str] | None:
    """What is wrong with a target and what to do, ``None`` if it can be built."""
    if target.startswith("$") or "@" in target:
        return "computes its _target_", "Write the dotted name of a class or function: what runs must be readable."
    allowed = (*ALLOWED_PACKAGES, own_package)
    if "." not in target:
        advice = "Write a name that MONAI exports, or the full dotted name."
        return None if target in _monai_components() else ("has a _target_ that MONAI does not know", advice)
    if target.partition(".")[0] not in allowed:
        return "has a _target_ outside the allowed packages", _use(allowed)
    return _import_problem(target, allowed)


def _import_problem(target: str, allowed: tuple[str, ...]) -> tuple[str, str] | None:
    try:
        found = locate(target)
    except ErrorDuringImport as error:  # own code may raise anything while it is imported
        advice = f"{error.exc.__name__}: {error.value}. Mend the module."
        return "has a _target_ that cannot be imported", advice
    if found is None:
        return "has a _target_ that cannot be imported", "Mend the name: there is no such module, class or function."
    if not callable(found):
        return "has a _target_ that is no class or function", "Name something that can be called."
    origin = getattr(found, "__module__", None)
    # `torch.os.system` begins with an allowed package and is not of it.
    if isinstance(origin, str) and origin.lstrip("_").partition(".")[0] not in allowed:
        return f"has a _target_ that belongs to {origin}, outside the allowed packages", _use(allowed)
    return None


def _use(allowed: tuple[str, ...]) -> str:
    return f"Use {', '.join(allowed)}; wrap anything else in the bundle's own package."


@contextmanager
def own_code(bundle: Bundle) -> Iterator[None]:
    """Make the bundle's package and ``volseg`` importable, and leave ``sys.path`` and ``sys.modules`` as they were."""
    path, before = list(sys.path), _modules_of(bundle.name)
    _forget(before)
    sys.path[:0] = [str(bundle.root), str(REPOSITORY)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        _forget(_modules_of(bundle.name))
        sys.modules.update(before)


@lru_cache(maxsize=1)
def _monai_components() -> frozenset[str]:
    locator = ComponentLocator()
    locator.get_component_module_name("Compose")  # fills the table
    return frozenset(locator._components_table or {})


def _modules_of(package: str) -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}


def _forget(modules: dict[str, ModuleType]) -> None:
    for name in modules:
        del sys.modules[name]


def _pickles(path: str, item_id: str, item: dict[str, Any]) -> Iterator[Finding]:
    for argument, unsafe in UNSAFE_ARGUMENTS.items():
        if item.get(argument) is unsafe:
            what = f"{item_id} loads pickles, which can run any code"
            yield Finding(path, what, f"{argument}: {shown(unsafe)}", f"Leave {argument} at its safe value.")
