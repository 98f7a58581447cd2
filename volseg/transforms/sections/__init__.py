# SPDX-License-Identifier: Apache-2.0
"""Augmentations for sections of electron microscopy (arXiv 2104.07961)."""
