# SPDX-License-Identifier: Apache-2.0
"""PDV-Net for lung lobes in CT (arXiv 1902.06362)."""
