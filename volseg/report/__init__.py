# SPDX-License-Identifier: Apache-2.0
"""A page about the cases of an evaluation or a batch, for people."""
