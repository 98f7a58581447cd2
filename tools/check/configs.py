# SPDX-License-Identifier: Apache-2.0
"""Rules on every config: it says what it is for, finds itself and what it refers to, and does nothing but compute."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pydoc import ErrorDuringImport, locate
from types import ModuleType
from typing import Any

from monai.bundle import ComponentLocator, ReferenceResolver
from monai.bundle.utils import EXPR_KEY, ID_REF_KEY, MACRO_KEY

from tools import REPOSITORY
from tools.check.bundle import (
    METADATA,
    OVERLAY_RULE,
    Bundle,
    Finding,
    Workflow,
    in_every_workflow,
    look_up,
    shown,
    walk,
    walk_items,
    walk_values,
)

PERSONAL = re.compile(r"(?<![\w.:/-])/(home|Users|root|mnt|media|workspace)/|(?<![A-Za-z])[A-Za-z]:(\\|/(?!/))")
ABSOLUTE = re.compile(r"^(/\w|~)")
RELATIVE = f"{ID_REF_KEY}#"
# What MONAI puts into every expression's globals.
MONAI_DEFAULTS = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}
REFERENCE = "reference_"
FORBIDDEN_BUILTINS = frozenset(
    ("eval", "exec", "compile", "globals", "locals", "vars", "setattr", "delattr", "breakpoint", "input", "__import__")
)
FORBIDDEN_MODULES = frozenset(
    ("subprocess", "pickle", "dill", "cloudpickle", "marshal", "shelve", "ctypes", "builtins", "importlib", "runpy")
)
FORBIDDEN_CALLS = ("os.system", "os.popen", "shutil.rmtree")
FORBIDDEN_PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")
WRITING_METHODS = frozenset(("write_text", "write_bytes"))
UNSAFE_ARGUMENTS = {"weights_only": False, "allow_pickle": True}
# __file__ of a package tells where its bundle lies
DUNDER = re.compile(r"__(?!file__)\w+__")
_COMPUTE_ONLY = "Configs only compute; move it into the bundle's own package, or do without."
ALLOWED_PACKAGES = ("torch", "monai", "ignite", "numpy", "scipy", "skimage", "volseg")


def check_descriptions(bundle: Bundle) -> Iterator[Finding]:
    """The first key of every config is ``_desc_``, with at least one sentence."""
    for path, document in bundle.documents.items():
        if path == METADATA:
            continue
        advice = 'Begin with "_desc_": "What this config does, for whom, and its source."'
        if next(iter(document), None) != "_desc_":
            received = f"first key {next(iter(document), 'of none')}"
            yield Finding(path, "the config does not start with _desc_", received, advice)
        elif not isinstance(document["_desc_"], str) or not re.search(r"\w+ \w+.*\w\W*[.!?]", document["_desc_"], re.S):
            yield Finding(path, "_desc_ has no sentence", shown(document["_desc_"]), advice)


def check_paths(bundle: Bundle) -> Iterator[Finding]:
    """Complete configs import the bundle's package and take ``bundle_root`` from it; none names a machine's paths."""
    root = f"$os.path.dirname(os.path.dirname({bundle.name}.__file__))"
    advice = f'Begin with "imports": ["$import os", "$import {bundle.name}"] and "bundle_root": "{root}".'
    for workflow in bundle.workflows:
        if workflow.base is None:
            imports, given = workflow.own.get("imports"), workflow.own.get("bundle_root")
            if not isinstance(imports, list) or f"$import {bundle.name}" not in imports:
                yield Finding(workflow.path, "imports lacks the bundle's own package", shown(imports), advice)
            if given != root:
                yield Finding(workflow.path, "bundle_root is not taken from the package", shown(given), advice)
    for path, document in bundle.documents.items():
        for item_id, text in _texts(document):
            if PERSONAL.search(text) or ABSOLUTE.match(text):
                advice = "Build paths from @bundle_root, or leave them to an override on the command line."
                yield Finding(path, f"{item_id} is a path of one machine", shown(text), advice)


def _texts(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    return ((item_id, value) for item_id, value in walk(document) if isinstance(value, str))


def check_references(bundle: Bundle) -> Iterator[Finding]:
    """Every reference names, in full, an id of the merged config or of the metadata; includes are not used."""

    def look(workflow: Workflow) -> Iterator[Finding]:
        yield from workflow.problems
        config = {**workflow.config, "_meta_": bundle.metadata}
        for item_id, text in walk_values(workflow.config):
            if text.startswith(MACRO_KEY) or RELATIVE in text:
                advice = 'Refer to the full id, as in "@train#dataset".'
                yield Finding(workflow.path, f"{item_id} has an include or a relative id", shown(text), advice)
                continue
            for reference in ReferenceResolver.match_refs_pattern(text):
                try:
                    look_up(config, reference)
                except KeyError:
                    advice = f"Mend the id; an overlay sees its base by the rule {OVERLAY_RULE}."
                    what = f"{item_id} refers to @{reference}, which does not exist"
                    yield Finding(workflow.path, what, shown(text), advice)

    yield from in_every_workflow(bundle, look)


def parse_import(text: str) -> ast.Import | ast.ImportFrom | None:
    """The import statement in a config's string, ``None`` if it is none."""
    if not text.startswith(EXPR_KEY) or "import" not in text:
        return None
    try:
        body = ast.parse(text[len(EXPR_KEY) :]).body
    except (SyntaxError, ValueError):
        return None
    return body[0] if body and isinstance(body[0], ast.Import | ast.ImportFrom) else None


def imported_names(config: dict[str, Any]) -> dict[str, str]:
    """The names that expressions of a config can use, each with the dotted name it stands for.

    MONAI binds the first alias only, and ``import a.b`` under the name ``a.b``, which no expression can spell.
    """
    bound = dict(MONAI_DEFAULTS)
    for _, text in walk_values(config):
        statement = parse_import(text)
        if statement:
            alias = statement.names[0]
            prefix = f"{statement.module}." if isinstance(statement, ast.ImportFrom) else ""
            bound[alias.asname or alias.name] = f"{prefix}{alias.name}"
    return bound


def check_expressions(bundle: Bundle) -> Iterator[Finding]:
    """Expressions compile, know every name they use, and neither run other code nor write files."""

    def look(workflow: Workflow) -> Iterator[Finding]:
        imported = imported_names(workflow.config)
        for item_id, text in walk_values(workflow.config):
            if text.startswith(EXPR_KEY):
                for problem, advice in expression_problems(text, imported):
                    yield Finding(workflow.path, f"{item_id} {problem}", shown(text), advice)

    yield from in_every_workflow(bundle, look)


def expression_problems(text: str, imported: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What is wrong with one ``$`` expression and what to do; ``imported`` maps its names to dotted names."""
    code = ReferenceResolver.id_matcher.sub(REFERENCE, ReferenceResolver.normalize_id(text[len(EXPR_KEY) :]))
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError) as error:
        yield "does not compile", f"Mend the expression: {error}."
        return
    statement = body[0] if len(body) == 1 else None
    if isinstance(statement, ast.Import | ast.ImportFrom):
        yield from _import_problems(statement)
    elif isinstance(statement, ast.Expr):
        yield from dict.fromkeys(_forbidden(statement, imported))
        yield from _unknown_names(statement, imported)
    else:
        yield "is no expression", "Write one expression or one import; move anything longer into the bundle's package."


def _import_problems(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    module = statement.module if isinstance(statement, ast.ImportFrom) else statement.names[0].name
    dotted = f"{module}.{statement.names[0].name}" if isinstance(statement, ast.ImportFrom) else str(module)
    if _is_forbidden(dotted):
        yield f"imports {dotted}", _COMPUTE_ONLY
    if len(statement.names) > 1:
        yield "imports several names, of which MONAI binds the first only", "Write one import per entry."


def _forbidden(expression: ast.Expr, imported: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Names, attributes and calls that an expression must not contain, wherever in it they stand."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_BUILTINS:
            yield f"uses {node.id}", _COMPUTE_ONLY
        elif isinstance(node, ast.Name | ast.Attribute) and _is_forbidden(_dotted(node, imported)):
            yield f"uses {_dotted(node, imported)}", _COMPUTE_ONLY
        elif isinstance(node, ast.Attribute) and DUNDER.fullmatch(node.attr):
            yield f"reaches for the private attribute {node.attr}", _COMPUTE_ONLY
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DUNDER.fullmatch(node.value):
            yield f"reaches for the private attribute {node.value}", _COMPUTE_ONLY
        elif isinstance(node, ast.Call):
            yield from _call_problems(node)


def _call_problems(call: ast.Call) -> Iterator[tuple[str, str]]:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if name in WRITING_METHODS or (name == "open" and _opens_for_writing(call)):
        yield "writes a file", _COMPUTE_ONLY
    for keyword in call.keywords:
        unsafe = UNSAFE_ARGUMENTS.get(keyword.arg or "")
        if unsafe is not None and isinstance(keyword.value, ast.Constant) and keyword.value.value is unsafe:
            yield f"loads pickles ({keyword.arg}={unsafe})", _COMPUTE_ONLY


def _opens_for_writing(call: ast.Call) -> bool:
    """Whether a call of ``open`` names a writing mode, or one that cannot be read from the text."""
    by_keyword = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    if isinstance(call.func, ast.Attribute):  # Path.open(mode) or gzip.open(file, mode)
        constants = [node for node in (*call.args[:2], *by_keyword) if isinstance(node, ast.Constant)]
        modes = [str(node.value) for node in constants]
        return any(re.fullmatch(r"[rwaxbt+]{1,3}", mode) and set(mode) & set("wax+") for mode in modes)
    arguments = (*call.args[1:2], *by_keyword)
    return any(not isinstance(node, ast.Constant) or bool(set(str(node.value)) & set("wax+")) for node in arguments)


def _unknown_names(expression: ast.Expr, imported: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Names that nothing binds: no import, no builtin, no variable of the expression itself."""
    nodes = list(ast.walk(expression))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {REFERENCE, *imported, *dir(builtins)}
    for name in dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name) and node.id not in bound):
        yield f"uses the name {name}, which is not imported", f'Add "$import {name}" to imports, or mend the name.'


def _dotted(node: ast.Name | ast.Attribute, imported: dict[str, str]) -> str:
    """``os.path.join`` of nested attributes; what is no plain name at the root is left out."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, node.id)
    root = _dotted(node.value, imported) if isinstance(node.value, ast.Name | ast.Attribute) else ""
    return f"{root}.{node.attr}"


def _is_forbidden(dotted: str) -> bool:
    """Whether a dotted name runs other code, also when it is reached through a module (``torch.os.system``)."""
    tail = ".".join(dotted.split(".")[-2:])
    return (
        dotted.rpartition(".")[2] in FORBIDDEN_MODULES
        or dotted.partition(".")[0] in FORBIDDEN_MODULES
        or tail in FORBIDDEN_CALLS
        or tail.startswith(FORBIDDEN_PREFIXES)
    )


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
        advice = f"{type(error.value).__name__}: {error.value}. Mend the module."
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
