# SPDX-License-Identifier: Apache-2.0
"""Judge one ``$`` expression of a config by its syntax tree: what is not on the list is refused."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from monai.bundle import ReferenceResolver
from monai.bundle.utils import EXPR_KEY

from tools.check.allowed import (
    ATTRIBUTES,
    BUILTINS,
    CLASS_ARGUMENTS,
    IMPORTS,
    MONAI_DEFAULTS,
    NAMES,
    PURE_MODULES,
    SAFE_ARGUMENTS,
    SYNTAX,
)
from tools.check.targets import Problem, names_code, takes_code, target_problem

REFERENCES = ReferenceResolver._vars
# what a loop may bind: "[0 for os.environ['A'] in 'b']" would write
STORED = (ast.Name, ast.Tuple, ast.List, ast.Starred)
PRIVATE = re.compile(r"__\w+__")
FILE_METHODS = ("open", "write_text", "write_bytes", "tofile", "dump", "save")
COMPUTE_ONLY = (
    "Configs only compute, with what tools/check/allowed.py lists; move it into the bundle's own package, "
    "or do without."
)


@dataclass(frozen=True)
class Names:
    """What the names of an expression stand for.

    Args:
        imported: dotted names by the name that an import binds.
        sources: folders of packages that are read and not imported, the bundle's own among them.
        own: name of the bundle's own package.
    """

    imported: Mapping[str, str]
    sources: Mapping[str, Path]
    own: str


def as_evaluated(text: str) -> str:
    """The code that MONAI runs for an expression, its references replaced as MONAI replaces them."""
    references = dict.fromkeys(ReferenceResolver.match_refs_pattern(text), "")
    return ReferenceResolver.update_refs_pattern(text, references)[len(EXPR_KEY) :]


def parse_import(text: str) -> ast.Import | ast.ImportFrom | None:
    """The import statement in a config's string, ``None`` if it is none."""
    if not text.startswith(EXPR_KEY) or "import" not in text:
        return None
    try:
        body = ast.parse(text[len(EXPR_KEY) :]).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return body[0] if body and isinstance(body[0], ast.Import | ast.ImportFrom) else None


def imported_names(texts: Iterable[str]) -> dict[str, str]:
    """The names that expressions can use, each with the dotted name it stands for.

    MONAI binds the first alias only, and ``import a.b`` under the name ``a.b``, which no expression can spell.
    """
    bound = dict(MONAI_DEFAULTS)
    for text in texts:
        if statement := parse_import(text):
            alias = statement.names[0]
            bound[alias.asname or alias.name] = _dotted_import(statement)
    return bound


def expression_problem(text: str, names: Names) -> Problem | None:
    """What is wrong with one ``$`` expression and what to do, ``None`` if it only computes."""
    if REFERENCES in text:
        return f"uses {REFERENCES}", "Write @id to refer to an item."
    try:
        body = ast.parse(as_evaluated(text)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return "does not compile", f"Mend the expression: {error}."
    statement = body[0] if len(body) == 1 else None
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return _import_problem(statement, names)
    if isinstance(statement, ast.Expr):
        try:
            return next(_problems(statement.value, names), None)
        except RecursionError:
            return "is nested too deeply", COMPUTE_ONLY
    return "is no expression", "Write one expression or one import; move anything longer into the bundle's package."


def _dotted_import(statement: ast.Import | ast.ImportFrom) -> str:
    name = statement.names[0].name
    return f"{'.' * statement.level}{statement.module}.{name}" if isinstance(statement, ast.ImportFrom) else name


def _import_problem(statement: ast.Import | ast.ImportFrom, names: Names) -> Problem | None:
    if len(statement.names) > 1:
        return "imports several names, of which MONAI binds the first only", "Write one import per entry."
    dotted, alias = _dotted_import(statement), statement.names[0]
    name = alias.asname or alias.name
    is_module = dotted in (*IMPORTS, names.own)
    if not is_module and (isinstance(statement, ast.Import) or not _is_listed(dotted, names)):
        return f"imports {dotted}", COMPUTE_ONLY
    renamed = alias.asname is not None and MONAI_DEFAULTS.get(alias.asname) != dotted
    if renamed or name in dir(builtins) or {names.imported.get(name), MONAI_DEFAULTS.get(name, dotted)} != {dotted}:
        return f"imports {dotted} under the name {name}", "Import it under its own name, which nothing else has."
    return None


def _is_listed(dotted: str, names: Names) -> bool:
    """Whether an expression may use a dotted name."""
    module, _, last = dotted.rpartition(".")
    return (
        dotted in NAMES
        or dotted == f"{names.own}.__file__"
        or (module in PURE_MODULES and not last.startswith("_"))
        or ("." in dotted and target_problem(dotted, names.sources) is None and not takes_code(dotted))
    )


def _problems(expression: ast.expr, names: Names) -> Iterator[Problem]:
    """What is wrong with an expression, the worst first."""
    nodes = list(ast.walk(expression))
    if any(isinstance(getattr(node, "ctx", None), ast.Store) and not isinstance(node, STORED) for node in nodes):
        yield "writes to a value", COMPUTE_ONLY
    yield from _private(nodes)
    yield from _file_problems(nodes)
    local = {node.arg for node in nodes if isinstance(node, ast.arg)}
    local |= {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    for name in sorted(local):
        if name in names.imported or name in dir(builtins) or name.startswith("__"):
            yield f"gives the name {name} another meaning", "Rename the variable."
    yield from _Judge(names, frozenset(local)).problems(expression)


def _private(nodes: Iterable[ast.AST]) -> Iterator[Problem]:
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr != "__file__":
            yield f"reaches for the private attribute {node.attr}", COMPUTE_ONLY
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if found := PRIVATE.search(text):
                yield f"reaches for the private attribute {found.group()}", COMPUTE_ONLY


def _file_problems(nodes: Iterable[ast.AST]) -> Iterator[Problem]:
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in FILE_METHODS:
            yield "writes a file, or may do so", COMPUTE_ONLY
        for keyword in node.keywords:
            safe = SAFE_ARGUMENTS.get(keyword.arg or "")
            if safe is not None and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is safe):
                yield f"loads pickles ({keyword.arg}={ast.unparse(keyword.value)})", COMPUTE_ONLY


@dataclass(frozen=True)
class _Judge:
    """Goes through a syntax tree from its root; ``local`` are the expression's own variables."""

    names: Names
    local: frozenset[str]

    def problems(self, node: ast.AST) -> Iterator[Problem]:
        """What is wrong with a node and all below it."""
        if isinstance(node, ast.Attribute | ast.Name):
            yield from self._name(node)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and names_code(node.value, self.names.sources):
                yield f"names {node.value} in a text", COMPUTE_ONLY
        elif isinstance(node, ast.Subscript) and _is_reference(node):
            return
        elif isinstance(node, SYNTAX) and not (isinstance(node, ast.comprehension) and node.is_async):
            for child in ast.iter_child_nodes(node):
                yield from self.problems(child)
        else:
            yield f"contains {type(node).__name__}", COMPUTE_ONLY

    def _name(self, node: ast.Attribute | ast.Name) -> Iterator[Problem]:
        """A variable, a builtin, ``module.name``, or attributes of a value."""
        attributes: list[str] = []
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            attributes.insert(0, root.attr)
            root = root.value
        if not isinstance(root, ast.Name) or root.id in self.local:
            if not isinstance(root, ast.Name):
                yield from self.problems(root)
            yield from self._attributes("", attributes)
        elif root.id in self.names.imported:
            yield from self._dotted(self.names.imported[root.id], attributes)
        elif root.id in BUILTINS:
            yield from self._attributes(root.id, attributes)
        elif root.id in dir(builtins) or root.id.startswith("__"):
            yield f"uses {root.id}", COMPUTE_ONLY
        else:
            advice = f'Add "$import {root.id}" to imports, or mend the name.'
            yield f"uses the name {root.id}, which is not imported", advice

    def _dotted(self, module: str, attributes: list[str]) -> Iterator[Problem]:
        """A name that an import binds, with attributes: the shortest part that is listed, then those of its value."""
        for count in range(len(attributes) + 1):
            dotted = ".".join((module, *attributes[:count]))
            if _is_listed(dotted, self.names):
                yield from self._attributes(dotted, attributes[count:])
                return
        yield f"uses {'.'.join((module, *attributes))}", COMPUTE_ONLY

    def _attributes(self, value: str, attributes: list[str]) -> Iterator[Problem]:
        for attribute in attributes:
            if attribute not in ATTRIBUTES:
                dotted = ".".join(filter(None, (value, *attributes)))
                yield f"uses {dotted if value else f'the attribute {attribute}'}", COMPUTE_ONLY

    def _call(self, call: ast.Call) -> Iterator[Problem]:
        if not (isinstance(call.func, ast.Name | ast.Attribute) or _is_reference(call.func)):
            yield f"calls {type(call.func).__name__}, which has no name", COMPUTE_ONLY
        yield from self.problems(call.func)
        for argument in call.args:
            yield from self.problems(argument)
        for keyword in call.keywords:
            if keyword.arg is None:
                yield "passes arguments that it does not name", "Write each argument as name=value."
            elif keyword.arg in CLASS_ARGUMENTS:
                yield f"passes {keyword.arg}, which names code", COMPUTE_ONLY
            yield from self.problems(keyword.value)


def _is_reference(node: ast.expr) -> bool:
    """Whether MONAI wrote this for ``@id``."""
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == REFERENCES
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    )
