# SPDX-License-Identifier: Apache-2.0
"""``python -m tools bench``: how fast networks, pipelines and transforms run on this machine, beside others' code.

Each benchmark writes one JSON file; the table and the plots are made from all JSON files of the folder. A file holds
what was measured (``title``, ``input``, ``weights``, where needed a ``note``), where and how (``machine``, ``command``,
``date``) and a list of ``rows``, one for each way to do the same thing, the first being what ``ratio`` refers to.

:mod:`tools.bench.command` lists the benchmarks. A benchmark is a function of the number of repetitions, the seed and
sizes that a test makes smaller; it returns what its file will hold.
"""
