# SPDX-License-Identifier: Apache-2.0
"""``python -m tools federated``: federated learning of the bundles with NVFlare."""
