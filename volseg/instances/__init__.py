# SPDX-License-Identifier: Apache-2.0
"""Instances: seeds and decoding, thresholds, table, picture, writer and metrics."""
