# SPDX-License-Identifier: Apache-2.0
"""``python -m tools check``: run every rule on bundles and say what was found; a new rule is one line in ``RULES``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tools import REPOSITORY
from tools.check.bundle import Bundle, Finding
from tools.check.configs import check_descriptions, check_expressions, check_paths, check_references, check_targets
from tools.check.files import check_files, check_readme
from tools.check.metadata import check_channels, check_properties, check_results, check_schema, check_version_and_name
from tools.check.preprocessing import check_preprocessing
from volseg.errors import UserError

BUNDLES = REPOSITORY / "bundles"


class Rule(NamedTuple):
    """A named rule."""

    name: str
    check: Callable[[Bundle], Iterable[Finding]]


RULES = (
    Rule("schema", check_schema),
    Rule("version", check_version_and_name),
    Rule("channels", check_channels),
    Rule("properties", check_properties),
    Rule("paths", check_paths),
    Rule("targets", check_targets),
    Rule("expressions", check_expressions),
    Rule("references", check_references),
    Rule("readme", check_readme),
    Rule("preprocessing", check_preprocessing),
    Rule("files", check_files),
    Rule("results", check_results),
    Rule("descriptions", check_descriptions),
)


def findings(bundle: Bundle) -> list[tuple[str, Finding]]:
    """What every rule finds in a bundle, with the rule's name."""
    return [(rule.name, finding) for rule in RULES for finding in rule.check(bundle)]


def check(*bundles: str) -> None:
    """Check bundles without running them: metadata, configs, model card, files, claims.

    Prints one line per finding and exits with status 1 if there is any. This catches accidents in configs. It does not
    judge Python code: running a bundle means trusting its publisher.

    Args:
        bundles: names of bundles of this checkout, or paths of bundle folders; all of this checkout if none is given.
    """
    found_any = False
    for root in bundle_folders(*(str(name) for name in bundles)):
        bundle = Bundle.read(root)
        found = findings(bundle)
        for _, finding in found:
            print(finding.line(bundle.title))
        if not found:
            print(f"{bundle.name} {bundle.metadata['version']}: {len(RULES)} rules, no findings")
        found_any = found_any or bool(found)
    if found_any:
        raise SystemExit(1)


def bundle_folders(*bundles: str) -> list[Path]:
    """The folders of the named bundles. A name of this checkout wins over a path; without names all of the checkout."""
    known = sorted(folder for folder in BUNDLES.glob("*") if folder.is_dir() and not folder.name.startswith((".", "_")))
    if not bundles and not known:
        raise UserError(f"{BUNDLES}: no bundle found. Check the checkout, or give the path of a bundle.")
    names = {folder.name: folder for folder in known}
    folders = [names.get(bundle, Path(bundle)) for bundle in bundles] or known
    for folder in folders:
        if not folder.is_dir():
            have = ", ".join(names) or "none"
            raise UserError(
                f"{folder}: no such bundle. Give the path of its folder or a name; this checkout has {have}."
            )
    return folders
