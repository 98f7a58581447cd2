# SPDX-License-Identifier: Apache-2.0
"""Damage to the bytes of a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

__all__ = ["mutated"]

# where nearly every format has its header
HEADER_BYTES = 512
# borders of integers and floats: 0, -1, the largest and smallest of 16, 32 and 64 bits, infinity, NaN
EXTREMES = [
    value.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
] + [bytes.fromhex(text) for text in ("0000807f", "0000c07f", "000000000000f07f", "000000000000f87f")]
NUMBERS = [b"0", b"-1", b"1e999", b"NaN", b"4294967296", b"9223372036854775807", b"9" * 400, b"", b"x", b"0.5"]
VALUES = [b"null", b"true", b'""', b"[]", b"{}", b"[" * 100_000, b'{"a":' * 10_000, b'"\\u0000"', b'"/"', b'".."']
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?")
VALUE = re.compile(rb'"[^"\n]*"|-?\d+(?:\.\d+)?|true|false|null|\[[^\[\]]*\]')


def mutated(data: bytes, random: Random) -> bytes:
    """Damage a file in one to three ways.

    Args:
        data: its content.
        random: the same state gives the same damage.
    """
    for _ in range(random.choice((1, 1, 2, 3))):
        data = random.choice(MUTATIONS)(data, random)
    return data


def _bits(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 4, 32)) if data else 0):
        changed[_offset(data, random)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncated(data: bytes, random: Random) -> bytes:
    return data[: random.choice((0, 1, _offset(data, random), random.randrange(len(data) + 1), len(data) - 1))]


def _extreme(data: bytes, random: Random) -> bytes:
    value, offset = random.choice(EXTREMES), _offset(data, random)
    offset -= offset % random.choice((1, len(value)))  # fields are aligned
    return data[:offset] + value + data[offset + len(value) :]


def _repeated(data: bytes, random: Random) -> bytes:
    start = _offset(data, random)
    piece = data[start : start + random.choice((1, 8, 100))] * random.choice((1, 3, 1000))
    return data[:start] + piece + data[start:]


def _removed(data: bytes, random: Random) -> bytes:
    start = _offset(data, random)
    return data[:start] + data[start + random.choice((1, 8, 100)) :]


def _number(data: bytes, random: Random) -> bytes:
    return _replaced(data, NUMBER, NUMBERS, random)


def _value(data: bytes, random: Random) -> bytes:
    return _replaced(data, VALUE, VALUES, random)


def _replaced(data: bytes, pattern: re.Pattern[bytes], values: list[bytes], random: Random) -> bytes:
    places = list(pattern.finditer(data[: 64 * HEADER_BYTES]))
    if not places:
        return _extreme(data, random)
    place = random.choice(places)
    return data[: place.start()] + random.choice(values) + data[place.end() :]


def _offset(data: bytes, random: Random) -> int:
    return random.randrange(max(min(len(data), random.choice((HEADER_BYTES, len(data)))), 1))


MUTATIONS: tuple[Callable[[bytes, Random], bytes], ...] = (
    _bits,
    _truncated,
    _extreme,
    _extreme,
    _repeated,
    _removed,
    _number,
    _value,
)
