# SPDX-License-Identifier: Apache-2.0
"""PDV-Net (arXiv 1902.06362) for lung lobes in CT: what is this bundle's own; the rest is in ``volseg``."""
