# SPDX-License-Identifier: Apache-2.0
"""The bill of materials of a packed bundle (CycloneDX 1.6), from its manifest and ``requirements.lock``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.utils import canonicalize_name

from tools import REPOSITORY
from volseg.registry.manifest import Manifest

__all__ = ["LOCK", "SBOM", "Locked", "bill_of_materials", "read_lock"]

SBOM = "sbom.cdx.json"
LOCK = "requirements.lock"
# what the lock's markers are evaluated for: the same bytes wherever a bundle is packed
ENVIRONMENT = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.0",
    "python_version": "3.11",
    "sys_platform": "linux",
}
PACKAGE = re.compile(r"([a-z0-9-]+)==(\S+)(?: ; (.+?))? \\")
REQUIRED_BY = re.compile(r"    # (?:via |  )([a-z0-9-]+)")


@dataclass(frozen=True)
class Locked:
    """A package of the lock.

    Args:
        version: the one that is installed.
        required_by: names of the packages that require it.
        hashes: SHA-256 of its files, in hexadecimal digits.
    """

    version: str
    required_by: set[str]
    hashes: set[str]


def read_lock(path: Path = REPOSITORY / LOCK) -> dict[str, Locked]:
    """The packages that ``make lock`` wrote, by name, as installed by Python 3.11 on Linux."""
    packages: dict[str, Locked] = {}
    package = Locked("", set(), set())
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := PACKAGE.fullmatch(line):
            package = Locked(found[2], set(), set())
            if found[3] is None or Marker(found[3]).evaluate(ENVIRONMENT):
                packages[found[1]] = package
        elif found := REQUIRED_BY.fullmatch(line):
            package.required_by.add(found[1])
        elif line.startswith("    --hash=sha256:"):
            package.hashes.add(line.removeprefix("    --hash=sha256:").removesuffix(" \\"))
    return packages


def bill_of_materials(manifest: Manifest) -> bytes:
    """The text of ``sbom.cdx.json``: the bundle, its weights, the packages it needs and those that these need.

    Versions are those of the manifest and of the lock. What a build of PyTorch for GPUs needs besides is not listed.
    """
    lock = read_lock()
    versions: dict[str, str] = {
        canonicalize_name(name): version for name, version in manifest.required_packages.items()
    }
    edges = {name: _required(name, lock) for name in versions}
    while reached := {name for names in edges.values() for name in names} - edges.keys():
        edges |= {name: _required(name, lock) for name in reached}
    versions |= {name: lock[name].version for name in edges.keys() - versions.keys()}
    references = {name: f"pkg:pypi/{name}@{version}" for name, version in versions.items()}
    release = manifest.release
    needed = [references[canonicalize_name(name)] for name in manifest.required_packages]
    bundle = f"{release.name}@{release.version}"
    weights = [path for path in manifest.files if path.endswith(".pt")]
    content: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": bundle,
                "name": release.name,
                "version": release.version,
                "licenses": [{"expression": manifest.licenses["code"]}],
                "properties": [{"name": "revision", "value": manifest.revision}],
            }
        },
        "components": [
            *[
                {
                    "type": "machine-learning-model",
                    "bom-ref": path,
                    "name": path,
                    "hashes": [{"alg": "SHA-256", "content": manifest.files[path]["sha256"]}],
                    "licenses": [{"expression": manifest.licenses["weights"]}],
                }
                for path in sorted(weights)
            ],
            *[
                {
                    "type": "library",
                    "bom-ref": references[name],
                    "name": name,
                    "version": versions[name],
                    "purl": references[name],
                }
                for name in sorted(versions)
            ],
        ],
        "dependencies": [
            {"ref": bundle, "dependsOn": sorted([*weights, *needed])},
            *[{"ref": references[n], "dependsOn": sorted(references[d] for d in edges[n])} for n in sorted(edges)],
        ],
    }
    return (json.dumps(content, indent=4) + "\n").encode()


def _required(name: str, lock: dict[str, Locked]) -> set[str]:
    return {required for required, package in lock.items() if name in package.required_by}
