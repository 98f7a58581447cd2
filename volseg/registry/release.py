# SPDX-License-Identifier: Apache-2.0
"""Names and versions of released bundles."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from volseg.errors import UserError

__all__ = ["Release", "is_version"]

# MONAI splits NAME_vVERSION at the first "_v" followed by a character: no name may contain one
NAME = re.compile(r"(?!.*_v.)[a-z][a-z0-9]*(_[a-z0-9]+)*")


def is_version(text: object) -> bool:
    """Whether a text is a bundle version: exactly three numbers in normal form."""
    try:
        version = Version(text if isinstance(text, str) else "")
    except (InvalidVersion, ValueError):  # ValueError: numbers of thousands of digits
        return False
    return len(version.release) == 3 and text == version.base_version and version.epoch == 0


@dataclass(frozen=True)
class Release:
    """One version of a bundle.

    Args:
        name: lower-case words joined by ``_``, as in ``vnet_prostate``; only the first may begin with ``v``.
        version: three numbers, as in ``0.10.2``.

    Raises:
        UserError: the format forbids the name or version.
    """

    name: str
    version: str

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and NAME.fullmatch(self.name)):
            raise UserError(
                f"bundle names are lower-case words joined by '_', only the first starts with 'v', got {self.name!r}"
            )
        if not is_version(self.version):
            raise UserError(f"the version of {self.name} must be three numbers, as in 0.10.2, got {self.version!r}")

    @classmethod
    def parse(cls, key: str) -> Release:
        """Read ``NAME_vVERSION``, the key of an index and the stem of a zip's name."""
        name, found, version = key.partition("_v")
        if not found:
            raise UserError(f"a release must be NAME_vX.Y.Z, as in vnet_prostate_v0.1.0, got {key!r}")
        return cls(name, version)

    @property
    def key(self) -> str:
        """``NAME_vVERSION``."""
        return f"{self.name}_v{self.version}"

    @property
    def zip_name(self) -> str:
        """``NAME_vVERSION.zip``."""
        return f"{self.key}.zip"

    @property
    def order(self) -> Version:
        """The version for sorting: 0.9.0 comes before 0.10.0."""
        return Version(self.version)
