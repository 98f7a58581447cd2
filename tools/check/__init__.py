# SPDX-License-Identifier: Apache-2.0
"""``python -m tools check``: what can be said about a bundle from its files, without building or running it.

A rule is a function from a :class:`~tools.check.bundle.Bundle` to findings; :mod:`tools.check.command` lists them.
Nothing of a bundle is imported or run: names are looked up in its sources and in installed packages. The rules catch
accidents in configs; they do not judge the Python code of a bundle. Running a bundle means trusting its publisher.
"""
