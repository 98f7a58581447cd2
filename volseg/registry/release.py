# SPDX-License-Identifier: Apache-2.0
"""Names and versions of released bundles."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from volseg.errors import UserError

__all__ = ["Release", "is_version"]

# MONAI splits NAME_vVERSION at the first "_v" that is followed by a character: no name may hold one
NAME = re.compile(r"(?!.*_v.)[a-z][a-z0-9]*(_[a-z0-9]+)*")


def is_version(text: object) -> bool:
    """Whether a text is a version of a bundle: three numbers and no more, written in the one normal way."""
    try:
        version = Version(text if isinstance(text, str) else "")
    except (InvalidVersion, ValueError):  # the second: numbers of thousands of digits
        return False
    return len(version.release) == 3 and text == version.base_version and version.epoch == 0


@dataclass(frozen=True)
class Release:
    """One version of a bundle.

    Args:
        name: as in ``vnet_prostate``: lower case words joined by ``_``, no word but the first beginning with ``v``.
        version: three numbers, as in ``0.10.2``.

    Raises:
        UserError: a name or version that the format forbids.
    """

    name: str
    version: str

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and NAME.fullmatch(self.name)):
            raise UserError(
                f"{self.name!r}: no name of a bundle. Give lower case words joined by '_', none but the first "
                "beginning with 'v', as in vnet_prostate."
            )
        if not is_version(self.version):
            raise UserError(f"{self.version!r}: no version of {self.name}. Give three numbers, as in 0.10.2.")

    @classmethod
    def parse(cls, key: str) -> Release:
        """Read ``NAME_vVERSION``, as an index and the name of a zip without its ending write it."""
        name, found, version = key.partition("_v")
        if not found:
            raise UserError(f"{key!r}: no release. Give NAME_vX.Y.Z, as in vnet_prostate_v0.1.0.")
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
        """The version, to compare: 0.9.0 comes before 0.10.0."""
        return Version(self.version)
