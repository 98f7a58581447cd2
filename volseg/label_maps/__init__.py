# SPDX-License-Identifier: Apache-2.0
"""Label maps: writer, picture, overlap, surface distances and the report per case."""
