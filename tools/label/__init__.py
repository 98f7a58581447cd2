# SPDX-License-Identifier: Apache-2.0
"""``python -m tools label``: the bundles in MONAI Label."""
