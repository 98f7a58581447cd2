# SPDX-License-Identifier: Apache-2.0
"""Rule on ``$`` expressions: they compile, use only names that are there, and do nothing but compute."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator

from monai.bundle import ReferenceResolver
from monai.bundle.utils import EXPR_KEY

from tools.check.bundle import Bundle, in_every_workflow
from tools.check.finding import Finding, shown
from tools.check.statements import imported_names
from tools.check.workflow import Workflow, walk_values

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


_COMPUTE_ONLY = "Configs only compute; move it into the bundle's own package, or do without."
