# SPDX-License-Identifier: Apache-2.0
"""The client of a bundle registry: find, download and verify bundles, with checksums and signatures."""

from volseg.registry.client import download, find, verify
from volseg.registry.index import Entry, read_index
from volseg.registry.location import locate
from volseg.registry.manifest import Change, Manifest
from volseg.registry.release import Release

__all__ = ["Change", "Entry", "Manifest", "Release", "download", "find", "locate", "read_index", "verify"]
