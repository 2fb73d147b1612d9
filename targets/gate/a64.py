"""Instructions newer than ARMv8.0, by their 32-bit words: which one it is, and how many of each a library holds.

Encodings are those of the Arm Architecture Reference Manual (DDI 0487), section C4.1. An instruction set that a
board may lack is a `Feature`; words that are in every ARMv8.0 core have none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from targets.board import Board

# Feature -> what people call it.
FEATURES: Final = {
    "lse": "LSE atomics",
    "rdm": "rounding multiply-add",
    "fp16": "half-precision arithmetic",
    "dot": "dot product",
    "crypto": "AES and SHA",
    "rcpc": "release-consistent loads",
    "i8mm": "int8 matrix product",
    "bf16": "bfloat16",
    "fhm": "half-precision multiply-add into single",
    "complex": "complex arithmetic",
    "pauth": "pointer authentication",
    "sha3": "SHA-3, SHA-512 and SM",
    "sve": "SVE",
    "sme": "SME",
}
# qemu 7.2 gives every core it models the cryptographic extension; no Raspberry Pi before the 5 has it.
ALWAYS_EMULATED: Final = frozenset({"crypto"})
_CHUNK: Final = 1 << 18  # words looked at in one go: what fits a cache


@dataclass(frozen=True)
class Pattern:
    """The instructions whose word is `value` where `mask` has ones."""

    feature: str
    name: str
    mask: int
    value: int


def lacking(board: Board) -> frozenset[str]:
    """The features a board's core does not have.

    A board file names LSE, half precision and dot product. ARMv8.1 brought the rounding multiply-add together
    with LSE; of the cores a Raspberry Pi has had, those with dot product also have the newer loads and AES.
    """
    features = board.features
    has = {"lse": features.lse, "rdm": features.lse, "fp16": features.fp16}
    has |= dict.fromkeys(("dot", "rcpc", "crypto"), features.dot_product)
    return frozenset(name for name in FEATURES if not has.get(name, False))


def name_of(word: int) -> str:
    """What an illegal instruction is called: `sdot (dot product)`; an unknown one keeps its number."""
    for pattern in (*patterns(), *_REGIONS):
        if word & pattern.mask == pattern.value:
            return f"{pattern.name} ({FEATURES[pattern.feature]})"
    if word < 1 << 16:
        return "udf (a trap set on purpose)"
    return f"unknown instruction 0x{word:08x}"


def scan(code: bytes | memoryview) -> dict[tuple[str, str], int]:
    """How often each newer instruction stands in `code`, by (feature, name).

    Constants between instructions are counted where they look like one. LSE atomics inside the helpers that
    compilers call for them (`__aarch64_cas4_acq` and so on) are counted under the name `guarded`: these
    read a flag right before, `cbz w16`, and return right after.
    """
    words = np.frombuffer(code, "<u4", len(code) // 4)
    found: dict[tuple[str, str], int] = {}
    for start in range(0, len(words), _CHUNK):
        places = start + np.flatnonzero(_leads()[words[start : start + _CHUNK] >> np.uint32(16)])
        for pattern in patterns():
            if not len(places):
                break
            hit = (words[places] & np.uint32(pattern.mask)) == pattern.value
            count = int(np.count_nonzero(hit))
            if not count:
                continue
            guarded = _guarded(words, places[hit]) if pattern.feature == "lse" else 0
            for name, number in (("guarded", guarded), (pattern.name, count - guarded)):
                if number:
                    key = (pattern.feature, name)
                    found[key] = found.get(key, 0) + number
            places = places[~hit]
    return found


def _guarded(words: NDArray[np.uint32], places: NDArray[np.intp]) -> int:
    """How many of the atomics at `places` stand between `cbz w16, ...` and `ret`."""
    inner = places[(places > 0) & (places < len(words) - 1)]
    before, after = words[inner - 1], words[inner + 1]
    return int(np.count_nonzero(((before & np.uint32(0xFF00001F)) == 0x34000010) & (after == 0xD65F03C0)))


@cache
def _leads() -> NDArray[np.bool_]:
    """For every upper half of a word, whether any pattern could match: most words are ruled out by it."""
    upper = np.arange(1 << 16, dtype=np.uint32)
    rows = [(upper & np.uint32(item.mask >> 16)) == item.value >> 16 for item in patterns()]
    return np.asarray(np.logical_or.reduce(rows))


@cache
def patterns() -> tuple[Pattern, ...]:
    """Every instruction known by name, the particular before the general."""
    return (*_atomics(), *_vector_pairs(), *(Pattern(*row) for row in _TABLE))


def _atomics() -> Iterator[Pattern]:
    yield Pattern("rcpc", "ldapr", 0x3FFFFC00, 0x38BFC000)
    yield Pattern("rcpc", "ldapur", 0x3F200C00, 0x19000000)
    yield Pattern("lse", "cas", 0x3FA07C00, 0x08A07C00)
    yield Pattern("lse", "casp", 0xBFA07C00, 0x08207C00)
    yield Pattern("lse", "swp", 0x3F20FC00, 0x38208000)
    for code, name in enumerate(("ldadd", "ldclr", "ldeor", "ldset", "ldsmax", "ldsmin", "ldumax", "ldumin")):
        yield Pattern("lse", name, 0x3F20FC00, 0x38200000 | code << 12)


def _vector_pairs() -> Iterator[Pattern]:
    """Instructions with a vector form and one by element: (feature, name, vector, element), each 64 or 128 bit."""
    for feature, name, vector, element in (
        ("dot", "sdot", 0x0E809400, 0x0F80E000),
        ("dot", "udot", 0x2E809400, 0x2F80E000),
        ("i8mm", "usdot", 0x0E809C00, 0x0F80F000),
        ("bf16", "bfdot", 0x2E40FC00, 0x0F40F000),
        ("bf16", "bfmlal", 0x2EC0FC00, 0x0FC0F000),
        ("fhm", "fmlal", 0x0E20EC00, 0x0F800000),
        ("fhm", "fmlsl", 0x0EA0EC00, 0x0F804000),
        ("fhm", "fmlal2", 0x2E20CC00, 0x2F808000),
        ("fhm", "fmlsl2", 0x2EA0CC00, 0x2F80C000),
        ("fp16", "fmla of halves", 0x0E400C00, 0x0F001000),
        ("fp16", "fmls of halves", 0x0EC00C00, 0x0F005000),
        ("fp16", "fmul of halves", 0x2E401C00, 0x0F009000),
        ("fp16", "fmulx of halves", 0x0E401C00, 0x2F009000),
    ):
        yield Pattern(feature, name, 0xBFE0FC00, vector)
        yield Pattern(feature, name, 0xBFC0F400, element)


# Feature, name, mask, value.
_TABLE: Final = (
    ("i8mm", "sudot", 0xBFC0F400, 0x0F00F000),
    ("i8mm", "smmla", 0xFFE0FC00, 0x4E80A400),
    ("i8mm", "ummla", 0xFFE0FC00, 0x6E80A400),
    ("i8mm", "usmmla", 0xFFE0FC00, 0x4E80AC00),
    ("bf16", "bfmmla", 0xFFE0FC00, 0x6E40EC00),
    ("bf16", "bfcvtn", 0xBFFFFC00, 0x0EA16800),
    ("bf16", "bfcvt", 0xFFFFFC00, 0x1E634000),
    ("fp16", "fadd of halves", 0xBFE0FC00, 0x0E401400),
    ("fp16", "fsub of halves", 0xBFE0FC00, 0x0EC01400),
    ("fp16", "vector arithmetic of halves", 0x9F60C400, 0x0E400400),
    ("fp16", "vector arithmetic of halves", 0x9F7E0C00, 0x0E780800),
    ("fp16", "vector reduction of halves", 0xBF7FFC00, 0x0E30C800),
    ("fp16", "vector reduction of halves", 0xBF7FFC00, 0x0E30F800),
    ("fp16", "fmov of halves", 0xBFF8FC00, 0x0F00FC00),
    ("fp16", "conversion of halves", 0x9FF0FC00, 0x0F10E400),
    ("fp16", "conversion of halves", 0x9FF0FC00, 0x0F10FC00),
    ("fp16", "scalar arithmetic of halves", 0xDF60C400, 0x5E400400),
    ("fp16", "scalar arithmetic of halves", 0xDF7E0C00, 0x5E780800),
    ("fp16", "scalar arithmetic of halves", 0xFFC0F400, 0x5F001000),
    ("fp16", "scalar arithmetic of halves", 0xFFC0F400, 0x5F005000),
    ("fp16", "scalar arithmetic of halves", 0xDFC0F400, 0x5F009000),
    ("fp16", "scalar arithmetic of halves", 0xFF7FEC00, 0x5E30C800),
    ("fp16", "scalar arithmetic of halves", 0xFFFFFC00, 0x5E30D800),
    ("fp16", "conversion of halves", 0xDFF0FC00, 0x5F10E400),
    ("fp16", "conversion of halves", 0xDFF0FC00, 0x5F10FC00),
    ("fp16", "scalar arithmetic of halves", 0xFFC00000, 0x1FC00000),
    ("fp16", "scalar arithmetic of halves", 0xFFFE7C00, 0x1EE04000),
    ("fp16", "scalar arithmetic of halves", 0xFFFC7C00, 0x1EE44000),
    ("fp16", "scalar arithmetic of halves", 0xFFE00C00, 0x1EE00800),
    ("fp16", "comparison of halves", 0xFFE00C00, 0x1EE00400),
    ("fp16", "fcsel of halves", 0xFFE00C00, 0x1EE00C00),
    ("fp16", "comparison of halves", 0xFFE0FC07, 0x1EE02000),
    ("fp16", "fmov of halves", 0xFFE01FE0, 0x1EE01000),
    ("fp16", "conversion of halves", 0x7FE0FC00, 0x1EE00000),
    ("fp16", "conversion of halves", 0x7FE00000, 0x1EC00000),
    ("rdm", "sqrdmlah", 0xBF20FC00, 0x2E008400),
    ("rdm", "sqrdmlsh", 0xBF20FC00, 0x2E008C00),
    ("rdm", "sqrdmlah", 0xBF00F400, 0x2F00D000),
    ("rdm", "sqrdmlsh", 0xBF00F400, 0x2F00F000),
    ("rdm", "sqrdmlah", 0xFF20FC00, 0x7E008400),
    ("rdm", "sqrdmlsh", 0xFF20FC00, 0x7E008C00),
    ("rdm", "sqrdmlah", 0xFF00F400, 0x7F00D000),
    ("rdm", "sqrdmlsh", 0xFF00F400, 0x7F00F000),
    ("crypto", "aes", 0xFFFFCC00, 0x4E284800),
    ("crypto", "pmull of 64 bits", 0xBFE0FC00, 0x0EE0E000),
    ("crypto", "sha1 or sha256", 0xFFE08C00, 0x5E000000),
    ("crypto", "sha1 or sha256", 0xFFFFCC00, 0x5E280800),
    ("complex", "fcmla", 0xBF20E400, 0x2E00C400),
    ("complex", "fcadd", 0xBF20EC00, 0x2E00E400),
    ("complex", "fcmla", 0xBF009400, 0x2F001000),
    ("complex", "fjcvtzs", 0xFFFFFC00, 0x1E7E0000),
    ("pauth", "retaa", 0xFFFFFBFF, 0xD65F0BFF),
    ("pauth", "braa", 0xFEFFF800, 0xD61F0800),
    ("pauth", "pacga", 0xFFE0FC00, 0x9AC03000),
    ("pauth", "ldraa", 0xFF200400, 0xF8200400),
    ("sha3", "eor3", 0xFFE08000, 0xCE000000),
    ("sha3", "bcax", 0xFFE08000, 0xCE200000),
    ("sha3", "xar", 0xFFE00000, 0xCE800000),
    ("sha3", "rax1", 0xFFE0FC00, 0xCE608C00),
    ("sha3", "sha512", 0xFFE0F800, 0xCE608000),
    ("sha3", "sha512", 0xFFE0FC00, 0xCE608800),
    ("sha3", "sha512", 0xFFFFFC00, 0xCEC08000),
    ("sha3", "sm3", 0xFFE08000, 0xCE400000),
    ("sha3", "sm3", 0xFFE0C000, 0xCE408000),
    ("sha3", "sm3", 0xFFE0E000, 0xCE60C000),
    ("sha3", "sm4", 0xFFFFFC00, 0xCEC08400),
    # The whole of SVE has every 32nd number, so constants look like it: only what its loops begin with counts.
    ("sve", "ptrue", 0xFF3FFC10, 0x2518E000),
    ("sve", "while", 0xFF20E000, 0x25200000),
    ("sve", "rdvl", 0xFFFFF800, 0x04BF5000),
    ("sve", "cnt", 0xFF30FC00, 0x0420E000),
    ("sme", "smstart", 0xFFFFF8FF, 0xD503407F),
    ("sme", "rdsvl", 0xFFFFF800, 0x04BF5800),
    ("sme", "fmopa", 0xFFE0001C, 0x80800000),
)
# For the name of one illegal instruction: whole encoding groups (op0 of the manual's table C4.1).
_REGIONS: Final = (
    Pattern("sve", "an SVE instruction", 0x1E000000, 0x04000000),
    Pattern("sme", "an SME instruction", 0x9E000000, 0x80000000),
)
