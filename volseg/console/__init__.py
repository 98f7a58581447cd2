# SPDX-License-Identifier: Apache-2.0
"""What a run and a command say, check and refuse."""
