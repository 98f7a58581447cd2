# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that MONAI lacks."""
