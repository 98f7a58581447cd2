# SPDX-License-Identifier: Apache-2.0
"""Rules on every config: it says what it is for, finds itself and what it refers to, and does nothing but compute."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ReferenceResolver
from monai.bundle.utils import EXPR_KEY, ID_REF_KEY, MACRO_KEY

from tools.check.allowed import CLASS_ARGUMENTS, MODES, SAFE_ARGUMENTS, SPECIAL_KEYS
from tools.check.bundle import (
    METADATA,
    OVERLAY_RULE,
    Bundle,
    Finding,
    Workflow,
    in_every_workflow,
    look_up,
    look_up_or_none,
    shown,
    walk,
    walk_items,
    walk_values,
)
from tools.check.expressions import Names, expression_problem, imported_names, parse_import
from tools.check.targets import Problem, names_code, sources_of, takes_code, target_problem

CLASS_ADVICE = "Use _target_, and what tools/check/allowed.py lists."
PERSONAL = re.compile(r"(?<![\w.:/-])/(home|Users|root|mnt|media|workspace)/|(?<![A-Za-z])[A-Za-z]:(\\|/(?!/))")
ABSOLUTE = re.compile(r"^(/\w|~)")
# "@#a" and "%#a", also where they stand inside of a text; an overlay could turn "@::" into them
RELATIVE = re.compile(r"[@%](#|::)")


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
            if text.startswith(MACRO_KEY) or RELATIVE.search(text):
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


def check_expressions(bundle: Bundle) -> Iterator[Finding]:
    """Expressions compile, know every name they use, and only compute with what is listed; prose is none."""
    sources = sources_of(bundle)

    def look(workflow: Workflow) -> Iterator[Finding]:
        names = Names(imported_names(text for _, text in walk_values(workflow.config)), sources, bundle.name)
        for item_id, text in walk_values(workflow.config):
            if text.startswith(EXPR_KEY) and (problem := expression_problem(text, names)):
                yield Finding(workflow.path, f"{item_id} {problem[0]}", shown(text), problem[1])
            for reference in ReferenceResolver.match_refs_pattern(text):
                if _holds_import(workflow.config, reference):
                    what = f"{item_id} refers to the import @{reference}"
                    yield Finding(workflow.path, what, shown(text), "Use the name that it binds.")
        yield from _prose(workflow.path, workflow.config)

    yield from in_every_workflow(bundle, look)
    for item_id, value in walk(bundle.metadata):
        if isinstance(value, str) and value.startswith((EXPR_KEY, MACRO_KEY)):
            what = f"{item_id} would be evaluated by MONAI"
            yield Finding(METADATA, what, shown(value), "Metadata only describes; write plain text.")
        elif isinstance(value, dict) and "_target_" in value:
            what = f"{item_id} would be built by MONAI"
            yield Finding(METADATA, what, shown(value["_target_"]), "Metadata only describes; leave _target_ out.")
    yield from _prose(METADATA, bundle.metadata)


def _holds_import(config: Any, reference: str) -> bool:
    """Whether a reference yields a module, or a list of them."""
    try:
        return any(parse_import(text) for _, text in walk_values(look_up(config, reference)))
    except KeyError:  # rule `references` says so
        return False


def _prose(path: str, config: Any) -> Iterator[Finding]:
    """Descriptions are text and hold nothing that MONAI would evaluate, build or include."""
    for item_id, value in walk(config):
        if not isinstance(value, dict):
            continue
        description = value.get("_desc_", "")
        if not isinstance(description, str) or description.startswith((EXPR_KEY, ID_REF_KEY, MACRO_KEY)):
            what = f"{item_id or 'the config'} has a _desc_ that MONAI would evaluate"
            yield Finding(path, what, shown(description), "Describe it in plain text.")
        if "_meta_" in value:
            what = f"{item_id or 'the config'} has the key _meta_, where MONAI puts the metadata"
            yield Finding(path, what, shown(value["_meta_"]), f"Write it to {METADATA}.")


def check_targets(bundle: Bundle) -> Iterator[Finding]:
    """Every ``_target_`` exists and is listed, no text names other code, and nothing loads pickles."""
    sources = sources_of(bundle)
    known: dict[str, Problem | None] = {}

    def problem_of(target: Any) -> Problem | None:
        if not isinstance(target, str):
            return "has a _target_ that is no name", "Write the dotted name of a class or function as a string."
        if target not in known:
            known[target] = target_problem(target, sources)
        return known[target]

    def look(workflow: Workflow) -> Iterator[Finding]:
        for item_id, item in walk_items(workflow.config):
            yield from _class_arguments(workflow, item_id, item, sources)
            if problem := None if _unsafe_arguments(item) else problem_of(item["_target_"]):
                yield Finding(workflow.path, f"{item_id} {problem[0]}", shown(item["_target_"]), problem[1])
            yield from _special_keys(workflow.path, item_id, item)
        for item_id, value in walk(workflow.config):
            yield from _unsafe_findings(workflow.path, item_id, value)
        for item_id, text in walk_values(workflow.config):
            if names_code(text, sources):
                what = f"{item_id} names code that is not on the list of what configs may use"
                yield Finding(workflow.path, what, shown(text), CLASS_ADVICE)

    yield from in_every_workflow(bundle, look)


def _class_arguments(
    workflow: Workflow, item_id: str, item: dict[str, Any], sources: Mapping[str, Path]
) -> Iterator[Finding]:
    """Arguments by whose text MONAI looks up a class: the class is judged as a target is."""
    if str(item["_target_"]).partition(".")[0] in sources:
        return
    for argument, module in CLASS_ARGUMENTS.items():
        value = item.get(argument)
        for text in value if isinstance(value, list) else [value]:
            is_reference = isinstance(text, str) and text.startswith(ID_REF_KEY)
            name = look_up_or_none(workflow.config, str(text)[1:]) if is_reference else text
            if isinstance(name, str) and target_problem(name if "." in name else f"{module}.{name}", sources):
                what = f"{item_id}::{argument} names code that is not on the list of what configs may use"
                yield Finding(workflow.path, what, shown(text), CLASS_ADVICE)


def _special_keys(path: str, item_id: str, item: dict[str, Any]) -> Iterator[Finding]:
    """MONAI's own keys: ``_debug_`` and the mode ``debug`` stop in a debugger."""
    for key in item:
        if key.startswith("_") and key not in SPECIAL_KEYS and not (key.startswith("_desc_") and key.endswith("_")):
            advice = f"Use {', '.join(SPECIAL_KEYS)} or _desc_."
            yield Finding(path, f"{item_id} has a key that MONAI keeps for itself", shown(key), advice)
    if item.get("_mode_") == "callable" and isinstance(target := item["_target_"], str) and takes_code(target):
        what = f"{item_id} is a callable with arguments that must be seen"
        yield Finding(path, what, shown(target), "Leave _mode_ out, and build it where it is used.")
    if item.get("_mode_", "default") not in MODES:
        yield Finding(path, f"{item_id} has an unknown _mode_", shown(item["_mode_"]), f"Write {' or '.join(MODES)}.")


def _unsafe_arguments(node: Any) -> list[str]:
    """The arguments that make a loader accept pickles."""
    known = SAFE_ARGUMENTS.items() if isinstance(node, dict) else ()
    return [argument for argument, safe in known if argument in node and node[argument] is not safe]


def _unsafe_findings(path: str, item_id: str, node: Any) -> Iterator[Finding]:
    for argument in _unsafe_arguments(node):
        what = f"{item_id} loads pickles, which can run any code"
        received = f"{argument}: {shown(node[argument])}"
        yield Finding(path, what, received, f"Write {argument}: {shown(SAFE_ARGUMENTS[argument])}, or leave it out.")
