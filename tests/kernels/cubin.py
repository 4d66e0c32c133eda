"""What a cubin says of its kernels: registers and stack of a thread."""

from __future__ import annotations

import struct
from collections.abc import Iterator

REGISTERS, FRAME = 0x2F, 0x11
"""Attributes of section ``.nv.info``."""


def sections(cubin: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit ELF file by their names."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    headers = [struct.unpack_from("<2I4Q2I2Q", cubin, start + i * size) for i in range(count)]
    (text,) = (cubin[h[4] : h[4] + h[5]] for h in headers[names : names + 1])

    def name(at: int) -> str:
        return text[at : text.index(0, at)].decode()

    return {name(h[0]): cubin[h[4] : h[4] + h[5]] for h in headers}


def attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and value of each attribute: those of a format of their own size, or of two bytes."""
    at = 0
    while at < len(info):
        form, number, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:
            yield number, info[at : at + size]
            at += size


def usage(cubin: bytes, kernel: str) -> dict[str, int]:
    """Registers, bytes of stack frame and of code."""
    parts = sections(cubin)
    symbols, names = parts[".symtab"], parts[".strtab"]
    found = {"code": len(parts[f".text.{kernel}"])}
    for number, value in attributes(parts[".nv.info"]):
        if number not in (REGISTERS, FRAME):
            continue
        symbol, amount = struct.unpack("<2I", value)
        (at,) = struct.unpack_from("<I", symbols, symbol * 24)
        if names[at : names.index(0, at)].decode() == kernel:
            found["registers" if number == REGISTERS else "frame"] = amount
    return found
