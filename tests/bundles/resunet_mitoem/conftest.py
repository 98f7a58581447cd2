# SPDX-License-Identifier: Apache-2.0
"""The bundle that the tests of this folder are about."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def bundle_name() -> str:
    return "resunet_mitoem"
