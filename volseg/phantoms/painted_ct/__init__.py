# SPDX-License-Identifier: Apache-2.0
"""Chest CTs painted on given lobe maps: anatomy of patients, appearance from physics."""
