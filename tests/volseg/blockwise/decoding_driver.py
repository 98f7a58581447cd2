# SPDX-License-Identifier: Apache-2.0
"""A program that decodes ``mask.zarr`` and ``boundary.zarr`` of ``FOLDER`` into ``OUTPUT`` on two processes.

Usage: ``python decoding_driver.py FOLDER OUTPUT METHOD``
"""

from __future__ import annotations

import sys

import zarr
from distributed import Client, LocalCluster

from volseg.blockwise.decoding import decode_blockwise
from volseg.errors import UserError
from volseg.instances.decoding import Decoding

BLOCK_SHAPE = (5, 16, 16)
DECODING = {"mask_threshold": 0.9, "boundary_threshold": 0.7, "min_size": 20}


def main(folder: str, output: str, method: str) -> int:
    mask, boundary = (zarr.open_array(f"{folder}/{name}.zarr", mode="r") for name in ("mask", "boundary"))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=None, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        try:
            decoding = Decoding(method, **DECODING)
            decode_blockwise(mask, boundary, output, decoding, BLOCK_SHAPE, client=client)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
