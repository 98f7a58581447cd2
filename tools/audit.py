# SPDX-License-Identifier: Apache-2.0
"""``python -m tools audit``: look up known vulnerabilities of the locked packages with pip-audit."""

from __future__ import annotations

import json
import subprocess
import sys

from tools import REPOSITORY
from tools.sbom import LOCK
from volseg.console.fire_commands import one_line
from volseg.errors import UserError

__all__ = ["audit"]


def audit(lock: str = str(REPOSITORY / LOCK)) -> None:
    """Look up known vulnerabilities of every package of requirements.lock; exit with status 1 if there are any.

    It asks the package index, so it needs the network. PyTorch is not in the lock.

    Args:
        lock: requirements file with versions and hashes.

    Raises:
        UserError: a package has a known vulnerability, or could not be looked up.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", lock, "--require-hashes", "--disable-pip"]
    done = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"], check=False, capture_output=True, text=True
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, TypeError, KeyError) as error:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(
            f"{lock}: not audited: {one_line(said[-1])[:300]}; check the network and run the command again"
        ) from error
    found = [package for package in packages if package.get("vulns")]
    for package in found:
        for fault in package["vulns"]:
            fixed = ", ".join(fault["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {fault['id']}, fixed in {fixed}")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if found:
        raise UserError(f"{lock}: {len(found)} of {len(packages)} packages have known vulnerabilities; update them")
    if skipped or not packages:
        raise UserError(
            f"{lock}: {len(skipped)} of {len(packages)} packages could not be looked up, first "
            f"{', '.join(skipped[:3]) or 'none'}; the package index must offer its list of vulnerabilities"
        )
    print(f"{lock}: {len(packages)} packages, no known vulnerabilities")
