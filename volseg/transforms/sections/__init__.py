# SPDX-License-Identifier: Apache-2.0
"""Augmentations of the sections of electron microscopy (arXiv 2104.07961)."""
