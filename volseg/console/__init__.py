# SPDX-License-Identifier: Apache-2.0
"""Command line: start commands, check options, print one-line errors."""
