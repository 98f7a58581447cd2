# SPDX-License-Identifier: Apache-2.0
"""What a dotted name stands for, read from sources: nothing of a bundle is imported."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.machinery import PathFinder
from inspect import isclass, ismodule, signature
from pathlib import Path
from typing import Any

from monai.bundle import ComponentLocator

from tools import REPOSITORY
from tools.check.allowed import (
    CLASS_ARGUMENTS,
    CLASSES_OF,
    EXCEPT,
    FILE_SUFFIXES,
    NAMES,
    PACKAGES,
    SAFE_ARGUMENTS,
    VOLSEG,
)
from tools.check.bundle import Bundle

Problem = tuple[str, str]
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
MOST_HOPS = 8

NO_NAME = "has a _target_ that is no name", "Write the dotted name of a class or function."
COMPUTED = "computes its _target_", "Write the dotted name of a class or function: what runs must be readable."
NO_COMPONENT = "has a _target_ that MONAI does not know", "Write a name that MONAI exports, or the full dotted name."
NOT_THERE = "has a _target_ that cannot be imported", "Mend the name: there is no such module, class or function."
NOT_CALLABLE = "has a _target_ that is no class or function", "Name what its module defines and can be called."
UNLISTED = (
    "has a _target_ that is not on the list of what configs may use",
    "Use what tools/check/allowed.py lists, or wrap it in the bundle's own package.",
)


def sources_of(bundle: Bundle) -> dict[str, Path]:
    """The folders of the bundle's own package and of ``volseg``, which a packed bundle has inside."""
    packed = bundle.root / "volseg"
    return {"volseg": packed if packed.is_dir() else REPOSITORY / "volseg", bundle.name: bundle.root / bundle.name}


def target_problem(target: str, sources: Mapping[str, Path]) -> Problem | None:
    """What is wrong with a target and what to do, ``None`` if a config may build it.

    Args:
        target: as in ``_target_``.
        sources: folders of packages that are read and not imported.
    """
    if target.startswith("$") or "@" in target:
        return COMPUTED
    if not DOTTED.fullmatch(target):
        return NO_NAME
    if "." in target:
        return _dotted_problem(target, sources, MOST_HOPS)
    modules = _monai_components().get(target)
    problems = [_installed_problem(f"{module}.{target}") for module in modules or ()]
    return next(filter(None, problems), None) if modules else NO_COMPONENT


def takes_code(target: str) -> bool:
    """Whether an installed class has arguments that the rules read by name, which a call could pass by position."""
    modules = _monai_components().get(target) or [""]
    found = (_look_up(f"{module}.{target}".removeprefix(".")) for module in modules)
    known = {*SAFE_ARGUMENTS, *CLASS_ARGUMENTS}
    public = [one for one in found if isclass(one) and not one.__name__.startswith("_")]
    listed = [one for one in public if _is_below(one.__module__, CLASSES_OF)]
    return any(not known.isdisjoint(signature(one).parameters) for one in listed)


def names_code(text: str, sources: Mapping[str, Path]) -> bool:
    """Whether a text is the dotted name of something in a module that a config may not use: it could be looked up."""
    if "." not in text or not DOTTED.fullmatch(text) or text.rpartition(".")[2].lower() in FILE_SUFFIXES:
        return False
    top = text.partition(".")[0]
    return (top in sources or is_importable(top)) and text not in NAMES and target_problem(text, sources) is not None


@lru_cache
def is_importable(top: str) -> bool:
    """Whether Python or an installed package has a module of this name; nothing is imported."""
    installed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return top in sys.stdlib_module_names or PathFinder.find_spec(top, installed) is not None


def _use(sources: Iterable[str]) -> str:
    return f"Use {', '.join(dict.fromkeys((*PACKAGES, *sources)))}; wrap anything else in the bundle's own package."


@lru_cache(maxsize=1)
def _monai_components() -> dict[str, list[str]]:
    locator = ComponentLocator()
    locator.get_component_module_name("Compose")  # fills the table
    return locator._components_table or {}


def _installed_problem(target: str) -> Problem | None:
    """Judge a name of an installed package by where it is defined: ``torch.os.system`` is not of ``torch``."""
    if target in NAMES:
        return None
    found = _look_up(target)
    if found is None:
        return NOT_THERE
    if not callable(found):
        return NOT_CALLABLE
    origin = str(getattr(found, "__module__", None) or "an unknown module")
    if origin.lstrip("_").partition(".")[0] not in PACKAGES:
        return f"has a _target_ that belongs to {origin}, outside the allowed packages", _use(())
    is_public = isclass(found) and not found.__name__.startswith("_")
    is_listed = _is_below(origin, CLASSES_OF) and not _is_below(origin, EXCEPT)
    return None if is_public and is_listed else UNLISTED


def _look_up(target: str) -> Any:
    """An object of an installed package; modules that are not on the list are not imported for it."""
    found: Any = None
    for index, part in enumerate(parts := target.split(".")):
        dotted = ".".join(parts[: index + 1])
        if dotted in CLASSES_OF or dotted in PACKAGES:
            importlib.import_module(dotted)
        if index and not ismodule(found):
            return None
        found = sys.modules.get(dotted) or (vars(found).get(part) if index else None)
    return found


def _is_below(name: str, parents: Iterable[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _dotted_problem(target: str, sources: Mapping[str, Path], hops: int) -> Problem | None:
    top = target.partition(".")[0]
    if top in sources and hops:
        is_listed = top != "volseg" or _is_below(target, VOLSEG)
        return _source_problem(target, sources, hops) if is_listed else UNLISTED
    if top in PACKAGES:
        return _installed_problem(target)
    what = "outside" if hops == MOST_HOPS else f"that belongs to {target}, outside"
    return f"has a _target_ {what} the allowed packages", _use(sources)


def _source_problem(target: str, sources: Mapping[str, Path], hops: int) -> Problem | None:
    """Judge a name of a package that is not imported, by the statement that defines it."""
    file, module, names = _split(target, sources)
    if file is None:
        return NOT_THERE
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return NOT_THERE[0], f"{type(error).__name__}: {error}. Mend the module."
    while len(names) > 1 and isinstance(holder := _definition(body, names[0]), ast.ClassDef):
        body, names = holder.body, names[1:]
    statement = _definition(body, names[0]) if names else None
    if names and statement is None:
        return NOT_THERE
    if isinstance(statement, ast.ImportFrom):
        origin = _imported(statement, names[0], module, is_package=file.name == "__init__.py")
        return _dotted_problem(".".join((origin, *names[1:])), sources, hops - 1)
    if len(names) == 1 and (root := _root(statement)) not in (None, names[0]):
        # an instance's method, as in datalist = PhantomSet(...).datalist
        return _dotted_problem(".".join((*module, str(root))), sources, hops - 1)
    is_defined = isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return None if is_defined and len(names) == 1 else NOT_CALLABLE


def _split(target: str, sources: Mapping[str, Path]) -> tuple[Path | None, list[str], list[str]]:
    """The file of the longest module that begins a dotted name, that module, and the names after it."""
    top, *rest = target.split(".")
    for count in range(len(rest), -1, -1):
        path = sources[top].joinpath(*rest[:count])
        for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if file.is_file() and (count or file.name == "__init__.py"):
                return file, [top, *rest[:count]], rest[count:]
    return None, [], []


def _definition(body: Iterable[ast.stmt], name: str) -> ast.stmt | None:
    """The last statement of a module or class that binds a name, those in branches included."""
    found: ast.stmt | None = None
    for statement in body:
        if isinstance(statement, ast.If | ast.Try | ast.With):
            inner = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
            handlers = [child for h in getattr(statement, "handlers", []) for child in h.body]
            found = _definition([*inner, *handlers], name) or found
        elif name in _bound_by(statement):
            found = statement
    return found


def _root(statement: ast.stmt | None) -> str | None:
    """The name from which an assignment takes its value, through attributes and calls."""
    node: ast.expr | None = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else None


def _bound_by(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _imported(statement: ast.ImportFrom, name: str, module: list[str], is_package: bool) -> str:
    """The dotted name that a ``from`` import binds to a name."""
    alias = next(alias for alias in statement.names if (alias.asname or alias.name) == name)
    base = module if is_package else module[:-1]
    parents = base[: len(base) - statement.level + 1] if statement.level else []
    return ".".join((*parents, *filter(None, (statement.module,)), alias.name))
