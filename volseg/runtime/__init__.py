# SPDX-License-Identifier: Apache-2.0
"""How a network runs fast on the device at hand."""
