# SPDX-License-Identifier: Apache-2.0
"""``python -m tools check``: what can be said about a bundle from its files, without building or running it.

A rule is a function from a :class:`~tools.check.bundle.Bundle` to findings; :mod:`tools.check.command` lists them.
The rules guard against mistakes and careless code in a bundle under review. They are no sandbox: rule ``targets``
imports the bundle's own package.
"""
