# SPDX-License-Identifier: Apache-2.0
"""V-Net for the prostate in MRI (arXiv 1606.04797)."""
