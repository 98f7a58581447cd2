# SPDX-License-Identifier: Apache-2.0
"""``python -m tools fuzz``: what readers do with damaged files."""
