# SPDX-License-Identifier: Apache-2.0
"""Res-UNet-R and Res-UNet-H (arXiv 2104.07961) for mitochondria in electron microscopy: what is this bundle's own."""
