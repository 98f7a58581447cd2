# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written whole or not at all, on local paths and URLs."""
