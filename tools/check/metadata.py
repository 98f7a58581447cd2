# SPDX-License-Identifier: Apache-2.0
"""Rules on ids and claims: the metadata's schema, version, names and numbers, and what MONAI's applications look up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft201909Validator, ValidationError
from monai.bundle import ReferenceResolver
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.bundle.utils import EXPR_KEY, ID_REF_KEY, ID_SEP_KEY
from monai.utils import BundleProperty, BundlePropertyConfig

from tools import REPOSITORY
from tools.check.bundle import METADATA, Bundle, Finding, Workflow, look_up_or_none, names, read_json, shown
from tools.check.targets import is_importable
from volseg.registry.release import is_version

SCHEMA = json.loads((REPOSITORY / "tools" / "metadata_schema.json").read_text(encoding="utf-8"))
RESULTS = "docs/results"
PROPERTIES = {"configs/train.json": TrainProperties, "configs/inference.json": InferProperties}


def check_schema(bundle: Bundle) -> Iterator[Finding]:
    """The metadata keeps MONAI's schema, checked offline."""
    if METADATA not in bundle.documents:
        return
    for error in sorted(Draft201909Validator(SCHEMA).iter_errors(bundle.metadata), key=lambda error: error.json_path):
        yield _schema_finding(error)


def check_version_and_name(bundle: Bundle) -> Iterator[Finding]:
    """The version can be released and is in the changelog; folder and package have one name that MONAI can split."""
    version, changelog = bundle.metadata.get("version"), bundle.metadata.get("changelog")
    if isinstance(version, str):
        if not is_version(version):
            advice = "Write MAJOR.MINOR.PATCH, as in 0.10.2."
            yield Finding(METADATA, "version is not three numbers", shown(version), advice)
        if isinstance(changelog, dict) and version not in changelog:
            yield Finding(METADATA, f"version {version} is not in changelog", names(changelog), "Add a line for it.")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", bundle.name) or re.search(r"_v.", bundle.name):
        # MONAI splits NAME_vVERSION at the first "_v".
        advice = "Rename the folder: lower-case words joined by _, none after the first beginning with v."
        yield Finding(METADATA, "the bundle's name is no lower snake_case name without _v", bundle.name, advice)
    elif is_importable(bundle.name) and not (REPOSITORY / "bundles" / bundle.name).is_dir():
        advice = "Rename the folder and its package: Python could take one for the other."
        yield Finding(METADATA, "the bundle's name is that of an installed package", bundle.name, advice)
    if not (bundle.root / bundle.name / "__init__.py").is_file():
        packages = names(sorted(file.parent.name for file in bundle.root.glob("*/__init__.py")))
        advice = "Name the bundle's own package after its folder and give it an __init__.py."
        yield Finding(
            f"{bundle.name}/__init__.py", "the bundle's own package is missing", f"packages: {packages}", advice
        )


def check_channels(bundle: Bundle) -> Iterator[Finding]:
    """Every network block names every channel of ``outputs#pred``, the same before and after post-processing."""
    for block_name, block in bundle.metadata.items():
        if not block_name.endswith("_data_format"):
            continue
        prediction = _entry(block, "outputs", "pred")
        channels, count = prediction.get("channel_def"), prediction.get("num_channels")
        if not isinstance(channels, dict):
            continue  # that it is there is rule `properties`, that it is an object is rule `schema`
        where = f"{block_name}#outputs#pred#channel_def"
        if isinstance(count, int) and set(channels) != {str(index) for index in range(count)}:
            advice = f'Write the keys "0" to "{count - 1}", one per channel.'
            yield Finding(METADATA, f"{where} does not name the {count} channels", f"keys {names(channels)}", advice)
        if not all(isinstance(name, str) and name.strip() for name in channels.values()):
            yield Finding(METADATA, f"{where} has an empty name", shown(channels), "Name every channel.")
        after = _entry(block, "post_processed_outputs", "pred").get("channel_def", channels)
        if after != channels:
            what = f"{block_name}#post_processed_outputs#pred#channel_def differs from that of outputs"
            yield Finding(METADATA, what, shown(after), "Write the same names in both blocks.")


def _entry(block: Any, *keys: str) -> dict[str, Any]:
    """A nested object, empty if any step is missing or no object."""
    for key in keys:
        block = block.get(key) if isinstance(block, dict) else None
    return block if isinstance(block, dict) else {}


def _schema_finding(error: ValidationError) -> Finding:
    place = "#".join(str(key) for key in error.absolute_path)
    advice = (
        error.schema.get("description", "See tools/metadata_schema.json.") if isinstance(error.schema, dict) else ""
    )
    if error.validator == "required":
        missing = re.match(r"'(\w+)'", error.message)
        key = missing.group(1) if missing else error.message
        what = f"{place}#{key} is missing" if place else f"{key} is missing"
        return Finding(METADATA, what, f"keys {names(error.instance)}", "Add it: the metadata schema requires it.")
    return Finding(METADATA, f"{place or 'the metadata'} breaks the metadata schema", shown(error.instance), advice)


def check_results(bundle: Bundle) -> Iterator[Finding]:
    """Each number of the metadata's ``eval_metrics`` equals one under the same keys in ``docs/results/*.json``."""
    claims = dict(_numbers(bundle.metadata.get("eval_metrics")))
    evidence: dict[str, list[float]] = {}
    problems: list[Finding] = []
    for file in sorted((bundle.root / RESULTS).glob("*.json")):
        content = read_json(bundle.root, f"{RESULTS}/{file.name}", problems) or {}
        for key, value in _numbers(content.get("eval_metrics")):
            evidence.setdefault(key, []).append(value)
    yield from problems
    for key, value in claims.items():
        advice = f"Copy the number from the file that the evaluation wrote to {RESULTS}, or leave it out."
        if key not in evidence:
            received = f"{shown(value)}; results files have {names(evidence)}"
            yield Finding(METADATA, f"eval_metrics#{key} has no results file", received, advice)
        elif value not in evidence[key]:
            received = f"{shown(value)} against {names(evidence[key])}"
            yield Finding(METADATA, f"eval_metrics#{key} differs from its results file", received, advice)


def _numbers(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested dictionaries with their key paths."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _numbers(value, f"{path}#{key}" if path else str(key))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, float(node)


def check_properties(bundle: Bundle) -> Iterator[Finding]:
    """Required ids exist and optional ones are referred to by their own id, without building anything."""
    for path, properties in PROPERTIES.items():
        workflow = bundle.workflow(path)
        if workflow is None:
            continue
        for name, described in properties.items():
            yield from _missing(workflow.path, workflow.config, described)
            yield from _misplaced(workflow, name, described)
    if METADATA in bundle.documents:
        for described in MetaProperties.values():
            # One level down is the schema's business; these are the names `image` and `pred` that MONAI reads.
            if str(described[BundlePropertyConfig.ID]).count(ID_SEP_KEY) > 1:
                yield from _missing(METADATA, {"_meta_": bundle.metadata}, described, required=True)


def _missing(path: str, config: dict[str, Any], described: dict, required: bool = False) -> Iterator[Finding]:
    item_id = described[BundlePropertyConfig.ID]
    if (required or described[BundleProperty.REQUIRED]) and look_up_or_none(config, item_id) is None:
        parent = look_up_or_none(config, item_id.rpartition(ID_SEP_KEY)[0]) if ID_SEP_KEY in item_id else config
        received = f"keys {names(parent)}" if isinstance(parent, dict) else "nothing"
        shown_id = item_id.removeprefix(f"_meta_{ID_SEP_KEY}")
        advice = f"Add it under exactly this id: {described[BundleProperty.DESC]}"
        yield Finding(path, f"the required id {shown_id} is missing", received, advice)


def _misplaced(workflow: Workflow, name: str, described: dict) -> Iterator[Finding]:
    """An optional property that is used, yet not through its own id, as ``check_properties`` of MONAI judges it."""
    item_id, reference_id = described[BundlePropertyConfig.ID], described.get(BundlePropertyConfig.REF_ID)
    if described[BundleProperty.REQUIRED] or reference_id is None:
        return
    if name in ("evaluator", "val_interval"):
        used = _validation_handler(workflow.config).get(reference_id)
        place = f"ValidationHandler{ID_SEP_KEY}{reference_id}"
    else:
        used, place = look_up_or_none(workflow.config, reference_id), reference_id
    used = ReferenceResolver.normalize_id(used) if isinstance(used, str) else used
    expression = isinstance(used, str) and used.startswith(EXPR_KEY)
    if used is not None and not expression and used != ID_REF_KEY + item_id:
        advice = f'Move the content to {item_id} and refer to it as "@{item_id}".'
        yield Finding(workflow.path, f"{place} does not refer to {item_id}", shown(used), advice)


def _validation_handler(config: dict[str, Any]) -> dict[str, Any]:
    handlers = look_up_or_none(config, f"train{ID_SEP_KEY}handlers")
    for handler in handlers if isinstance(handlers, list) else []:
        if isinstance(handler, dict) and str(handler.get("_target_")).rpartition(".")[2] == "ValidationHandler":
            return handler
    return {}
