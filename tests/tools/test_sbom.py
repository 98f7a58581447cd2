# SPDX-License-Identifier: Apache-2.0
"""The lock, the bill of materials made from it, and the audit of it."""

from __future__ import annotations

import json
import re

import pytest
from packaging.utils import canonicalize_name

from tools import REPOSITORY
from tools.audit import audit
from tools.pack import bundle_names
from tools.sbom import LOCK, bill_of_materials, read_lock
from volseg.errors import UserError
from volseg.registry.manifest import Manifest
from volseg.registry.release import Release


def manifest(**required: str) -> Manifest:
    files = {"LICENSE": {"sha256": "ab" * 32, "size": 1}, "models/model.pt": {"sha256": "cd" * 32, "size": 2}}
    return Manifest(
        Release("tiny", "0.1.0"), "0" * 40, {"code": "Apache-2.0", "weights": "NOASSERTION"}, required, files
    )


def test_lock_is_that_of_the_requirements():
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    lock = read_lock()
    assert {name: lock[canonicalize_name(name)].version for name in pinned if name != "torch"} | {
        "torch": pinned["torch"]
    } == pinned
    assert "torch" not in lock
    assert [name for name, package in lock.items() if not package.hashes] == []
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for package in lock.values() for digest in package.hashes)


def test_lock_has_what_torch_needs_on_a_cpu():
    needed = {name for name, package in read_lock().items() if "torch" in package.required_by}
    assert {"filelock", "jinja2", "networkx", "sympy", "typing-extensions"} <= needed
    assert not [name for name in read_lock() if name.startswith(("nvidia", "triton"))]


def test_bill_lists_what_is_needed_and_what_that_needs():
    content = json.loads(bill_of_materials(manifest(torch="2.13.0", PyYAML="6.0.3")))
    names = {component["name"] for component in content["components"]}
    assert {"torch", "pyyaml", "sympy", "mpmath", "models/model.pt"} <= names  # sympy needs mpmath
    assert not {"monai", "pytest"} & names
    by_reference = {entry["ref"]: entry["dependsOn"] for entry in content["dependencies"]}
    assert by_reference["tiny@0.1.0"] == ["models/model.pt", "pkg:pypi/pyyaml@6.0.3", "pkg:pypi/torch@2.13.0"]
    lock = read_lock()
    assert by_reference[f"pkg:pypi/sympy@{lock['sympy'].version}"] == [f"pkg:pypi/mpmath@{lock['mpmath'].version}"]
    (weights,) = [component for component in content["components"] if component["type"] == "machine-learning-model"]
    assert weights["hashes"] == [{"alg": "SHA-256", "content": "cd" * 32}]
    assert content["metadata"]["component"]["properties"] == [{"name": "revision", "value": "0" * 40}]


@pytest.mark.parametrize("name", bundle_names())
def test_bill_of_every_bundle_is_valid_and_the_same_again(name):
    pytest.importorskip("cyclonedx", reason="in requirements.txt; install again")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    metadata = json.loads((REPOSITORY / "bundles" / name / "configs/metadata.json").read_text(encoding="utf-8"))
    made = manifest(torch=metadata["pytorch_version"], **metadata["required_packages_version"])
    text = bill_of_materials(made)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.decode()) is None
    assert bill_of_materials(made) == text
    references = [component["bom-ref"] for component in json.loads(text)["components"]]
    assert len(references) == len(set(references)) > len(made.required_packages)


FAULTY = {"name": "jinja2", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
SOUND = {"name": "numpy", "version": "2.4.6", "vulns": []}
SKIPPED = {"name": "numpy", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("packages", "printed", "error"),
    [
        ([SOUND], "1 packages, no known vulnerabilities", None),
        (
            [FAULTY, SOUND],
            "jinja2 2.0: PYSEC-1, fixed in 2.1",
            "1 of 2 packages have known vulnerabilities; update them",
        ),
        ([SKIPPED, SOUND], "", "1 of 2 packages could not be looked up, first numpy; the package index must offer"),
        ([], "", "0 of 0 packages could not be looked up, first none"),
        (None, "", "not audited: ConnectionError: no route; check the network and run the command again"),
    ],
)
def test_audit_says_what_was_found_and_what_could_not_be_looked_up(
    tmp_path, monkeypatch, capsys, packages, printed, error
):
    answer = tmp_path / "pip_audit.py"
    answer.write_text(
        f"import json; print(json.dumps({{'dependencies': {packages!r}}}))"
        if packages is not None
        else "raise SystemExit('Traceback\\nConnectionError: no route')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if error is None:
        audit(LOCK)
    else:
        with pytest.raises(UserError, match=f"{LOCK}: {re.escape(error)}"):
            audit(LOCK)
    assert printed in capsys.readouterr().out
