# SPDX-License-Identifier: Apache-2.0
"""Rules on ``configs/metadata.json``: the schema, the version and the name, the channels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft201909Validator, ValidationError

from tools import REPOSITORY
from tools.check.bundle import METADATA, Bundle
from tools.check.finding import Finding, names, shown
from volseg.registry.release import is_version

SCHEMA = json.loads((REPOSITORY / "tools" / "metadata_schema.json").read_text(encoding="utf-8"))


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
