# SPDX-License-Identifier: Apache-2.0
"""Volumes larger than memory, and than one machine: block by block, resumable, with the result of the whole volume."""
