"""Tiny aarch64 shared libraries written by hand, so that no test needs a cross compiler."""

import struct

RET = 0xD65F03C0
_MACHINES = {"aarch64": 183, "x86_64": 62, "armv7l": 40}


def shared(
    *words: int,
    function: str = "kernel",
    init: bool = True,
    needed: tuple[str, ...] = (),
    glibc: str = "",
    machine: str = "aarch64",
    kind: int = 3,
    sections: bool = True,
) -> bytes:
    """A library whose exported `function` is `words` and a return; with `init` it is called when loaded.

    `needed` libraries and a needed version of glibc's symbols, `GLIBC_2.17`, are only named. Without `sections`
    it has no section headers, as after a thorough strip.
    """
    names = b"\0"
    at = {}
    for name in (function, *needed, "libc.so.6", glibc):
        at[name] = len(names)
        names += name.encode() + b"\0"
    code = struct.pack(f"<{len(words) + 1}I", *words, RET)
    head = 64 + 2 * 56
    text = head + 2 * 16 * 16  # room for sixteen dynamic entries
    symbols = text + len(code) + -len(code) % 8
    table = bytes(24) + struct.pack("<IBBHQQ", at[function], 0x12, 0, 1, text, len(code))
    hashes = symbols + len(table)
    buckets = struct.pack("<5I", 1, 2, 1, 0, 0)
    versions = hashes + len(buckets) + 4
    verneed = struct.pack("<2H3I", 1, 1, at["libc.so.6"], 16, 0) + struct.pack("<I2H2I", 0, 0, 2, at[glibc], 0)
    strings = versions + len(verneed)
    rows = [(1, at[name]) for name in needed]
    rows += [(4, hashes), (5, strings), (10, len(names)), (6, symbols), (11, 24)]
    rows += [(12, text)] if init else []
    rows += [(0x6FFFFFFE, versions), (0x6FFFFFFF, 1)] if glibc else []
    dynamic = b"".join(struct.pack("<2Q", *row) for row in (*rows, (0, 0))).ljust(2 * 16 * 16, b"\0")
    body = dynamic + code.ljust(symbols - text, b"\0") + table + buckets + bytes(4) + verneed + names
    body += bytes(-len(body) % 8)
    end = head + len(body)
    ident = b"\x7fELF" + bytes((1 if machine == "armv7l" else 2, 1, 1)) + bytes(9)
    fields = (kind, _MACHINES[machine], 1, 0, 64, end if sections else 0, 0, 64, 56, 2, 64, 4 if sections else 0, 0)
    header = ident + struct.pack("<2HI3QI6H", *fields)
    load = struct.pack("<2I6Q", 1, 7, 0, 0, 0, end, end, 0x10000)
    dynamic_row = struct.pack("<2I6Q", 2, 6, head, head, head, len(dynamic), len(dynamic), 8)
    return (
        header
        + load
        + dynamic_row
        + body
        + (_sections(text, code, symbols, table, strings, names) if sections else b"")
    )


def _sections(text: int, code: bytes, symbols: int, table: bytes, strings: int, names: bytes) -> bytes:
    """Headers of none, the code, the symbols and their names; the sections themselves stay nameless."""
    layout = struct.Struct("<2I4Q2I2Q")
    rows = (
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (0, 1, 6, text, text, len(code), 0, 0, 4, 0),
        (0, 11, 2, symbols, symbols, len(table), 3, 1, 8, 24),
        (0, 3, 2, strings, strings, len(names), 0, 0, 1, 0),
    )
    return b"".join(layout.pack(*row) for row in rows)
