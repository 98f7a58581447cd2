# SPDX-License-Identifier: Apache-2.0
"""Inferers: sliding windows, mixed precision, Monte Carlo dropout."""
