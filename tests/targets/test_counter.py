"""The instruction counter: every word is in the class the Arm manual puts it, and counts are exact."""

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

STRICT = ("-O2", "-Wall", "-Wextra", "-Werror")
NAMES = ("loads", "stores", "fma", "dot", "widening")  # bit by bit, as in classes.h

# Prints the classes of every word on stdin.
HOST = """
#include <stdio.h>
#include "classes.h"
int main(void)
{
    uint32_t word;
    while (fread(&word, sizeof word, 1, stdin) == 1)
        putchar('A' + (int)classes_of(word));
    return 0;
}
"""

# Words, as an assembler writes them, by the classes they are in; in the last none, though each has a near one above.
KNOWN = {
    "loads": """
        f9400041 ldr x1, [x2]
        b8404441 ldr w1, [x2], #4
        f85f8c41 ldr x1, [x2, #-8]!
        f85fd041 ldur x1, [x2, #-3]
        b8401841 ldtr w1, [x2, #1]
        f8637841 ldr x1, [x2, x3, lsl #3]
        39801441 ldrsb x1, [x2, #5]
        79c00041 ldrsh w1, [x2]
        b8a35841 ldrsw x1, [x2, w3, uxtw #2]
        3d401c41 ldr b1, [x2, #7]
        3dc00441 ldr q1, [x2, #16]
        3ce36841 ldr q1, [x2, x3]
        58000041 ldr x1, .+8
        98000041 ldrsw x1, .+8
        9c000081 ldr q1, .+16
        a9400c41 ldp x1, x3, [x2]
        68c10c41 ldpsw x1, x3, [x2], #8
        adff0c41 ldp q1, q3, [x2, #-32]!
        6c400c41 ldnp d1, d3, [x2]
        c85f7c41 ldxr x1, [x2]
        c87f8c41 ldaxp x1, x3, [x2]
        08dffc41 ldarb w1, [x2]
        f8bfc041 ldapr x1, [x2]
        99403041 ldapur w1, [x2, #3]
        99803041 ldapursw x1, [x2, #3]
        f8201441 ldraa x1, [x2, #8]
        4c407041 ld1 {v1.16b}, [x2]
        4cdf0841 ld4 {v1.4s-v4.4s}, [x2], #64
        4d409041 ld1 {v1.s}[3], [x2]
        4de38441 ld2 {v1.d, v2.d}[1], [x2], x3
        4d40c441 ld1r {v1.8h}, [x2]
        0dffe841 ld4r {v1.2s-v4.2s}, [x2], #16
        d9600041 ldg x1, [x2]
    """,
    "stores": """
        f9000441 str x1, [x2, #8]
        b8004441 str w1, [x2], #4
        3c1fd041 stur b1, [x2, #-3]
        78000841 sttrh w1, [x2]
        3823c841 strb w1, [x2, w3, sxtw]
        3c9f0c41 str q1, [x2, #-16]!
        3ca36841 str q1, [x2, x3]
        3d800841 str q1, [x2, #32]
        a9bf0fe1 stp x1, x3, [sp, #-16]!
        2d000c41 stp s1, s3, [x2]
        ac000c41 stnp q1, q3, [x2]
        c8017c43 stxr w1, x3, [x2]
        c8219043 stlxp w1, x3, x4, [x2]
        c89ffc41 stlr x1, [x2]
        59003041 stlurh w1, [x2, #3]
        0c832041 st1 {v1.8b-v4.8b}, [x2], x3
        4c004c41 st3 {v1.2d-v3.2d}, [x2]
        4d9f0441 st1 {v1.b}[9], [x2], #1
        4d206841 st4 {v1.h-v4.h}[5], [x2]
        d9200841 stg x1, [x2]
        69000c41 stgp x1, x3, [x2]
    """,
    "loads stores": """
        f8210043 ldadd x1, x3, [x2]
        78e16043 ldumaxalh w1, w3, [x2]
        b821005f stadd w1, [x2]
        3821105f stclrb w1, [x2]
        f8e18043 swpal x1, x3, [x2]
        38218043 swpb w1, w3, [x2]
        c8a17c43 cas x1, x3, [x2]
        48e1fc43 casalh w1, w3, [x2]
        08247c46 casp w4, w5, w6, w7, [x2]
        4864fc46 caspal x4, x5, x6, x7, [x2]
    """,
    "fma": """
        1f031041 fmadd s1, s2, s3, s4
        1f439041 fmsub d1, d2, d3, d4
        1fe31041 fnmadd h1, h2, h3, h4
        1f239041 fnmsub s1, s2, s3, s4
        4e23cc41 fmla v1.4s, v2.4s, v3.4s
        4ee3cc41 fmls v1.2d, v2.2d, v3.2d
        4e430c41 fmla v1.8h, v2.8h, v3.8h
        0ec30c41 fmls v1.4h, v2.4h, v3.4h
        4fa31841 fmla v1.4s, v2.4s, v3.s[3]
        4fc35841 fmls v1.2d, v2.2d, v3.d[1]
        4f331841 fmla v1.8h, v2.8h, v3.h[7]
        5f835841 fmls s1, s2, v3.s[2]
        5f131841 fmla h1, h2, v3.h[5]
        4e23ec41 fmlal v1.4s, v2.4h, v3.4h
        2ea3cc41 fmlsl2 v1.2s, v2.2h, v3.2h
        6fa38841 fmlal2 v1.4s, v2.4h, v3.h[6]
        4f934041 fmlsl v1.4s, v2.4h, v3.h[1]
    """,
    "dot": """
        4e839441 sdot v1.4s, v2.16b, v3.16b
        2e839441 udot v1.2s, v2.8b, v3.8b
        4e839c41 usdot v1.4s, v2.16b, v3.16b
        4fa3e841 sdot v1.4s, v2.16b, v3.4b[3]
        2fa3e041 udot v1.2s, v2.8b, v3.4b[1]
        4f83f841 usdot v1.4s, v2.16b, v3.4b[2]
        4f03f041 sudot v1.4s, v2.16b, v3.4b[0]
        4e83a441 smmla v1.4s, v2.16b, v3.16b
        6e83a441 ummla v1.4s, v2.16b, v3.16b
        4e83ac41 usmmla v1.4s, v2.16b, v3.16b
    """,
    "widening": """
        0e23c041 smull v1.8h, v2.8b, v3.8b
        6e63c041 umull2 v1.4s, v2.8h, v3.8h
        0e638041 smlal v1.4s, v2.4h, v3.4h
        6ea38041 umlal2 v1.2d, v2.4s, v3.4s
        4e23a041 smlsl2 v1.8h, v2.16b, v3.16b
        2ea3a041 umlsl v1.2d, v2.2s, v3.2s
        0e63d041 sqdmull v1.4s, v2.4h, v3.4h
        4ea39041 sqdmlal2 v1.2d, v2.4s, v3.4s
        0e63b041 sqdmlsl v1.4s, v2.4h, v3.4h
        5e63d041 sqdmull s1, h2, h3
        5ea39041 sqdmlal d1, s2, s3
        0f73a841 smull v1.4s, v2.4h, v3.h[7]
        6f632041 umlal2 v1.4s, v2.8h, v3.h[2]
        0fa36041 smlsl v1.2d, v2.2s, v3.s[1]
        4f73b041 sqdmull2 v1.4s, v2.8h, v3.h[3]
        0f833041 sqdmlal v1.2d, v2.2s, v3.s[0]
        5f437841 sqdmlsl s1, h2, v3.h[4]
    """,
    "": """
        f9800040 prfm pldl1keep, [x2]
        f8a36840 prfm pldl1keep, [x2, x3]
        d8000040 prfm pldl1keep, .+8
        f89ff040 prfum pldl1keep, [x2, #-1]
        8b030041 add x1, x2, x3
        9b031041 madd x1, x2, x3, x4
        9b231041 smaddl x1, w2, w3, x4
        9ba31041 umaddl x1, w2, w3, x4
        9b237c41 smull x1, w2, w3
        9bc37c41 umulh x1, x2, x3
        1e230841 fmul s1, s2, s3
        1e638841 fnmul d1, d2, d3
        1e632841 fadd d1, d2, d3
        6e23dc41 fmul v1.4s, v2.4s, v3.4s
        6fa39041 fmulx v1.4s, v2.4s, v3.s[1]
        4e431441 fadd v1.8h, v2.8h, v3.8h
        6e83cc41 fcmla v1.4s, v2.4s, v3.4s, #90
        4e639c41 mul v1.8h, v2.8h, v3.8h
        4e239441 mla v1.16b, v2.16b, v3.16b
        6fa30041 mla v1.4s, v2.4s, v3.s[1]
        4e63b441 sqdmulh v1.8h, v2.8h, v3.8h
        6f53d041 sqrdmlah v1.8h, v2.8h, v3.h[1]
        0e23e041 pmull v1.8h, v2.8b, v3.8b
        0e230041 saddl v1.8h, v2.8b, v3.8b
        0e235041 sabal v1.8h, v2.8b, v3.8b
        0f09a441 sshll v1.8h, v2.8b, #1
        6e43fc41 bfdot v1.4s, v2.8h, v3.8h
        2ec3fc41 bfmlalb v1.4s, v2.8h, v3.8h
        6e43ec41 bfmmla v1.4s, v2.8h, v3.8h
        65a30041 fmla z1.s, p0/m, z2.s, z3.s
        44830041 sdot z1.s, z2.b, z3.b
        a540a041 ld1w {z1.s}, p0/z, [x2]
        85804041 ldr z1, [x2]
        19c30441 setp [x1]!, x2!, x3
        d5033bbf dmb ish
        d4000001 svc #0
        d503201f nop
        14000002 b .+8
    """,
}

# Begins a region, goes seven times round a loop, ends it; then an empty region; then exit(0).
PROGRAM = """
    52800020 mov w0, #1
    72afcae0 movk w0, #0x7e57, lsl #16
    d2800728 mov x8, #57
    d4000001 svc #0
    528000e9 mov w9, #7
    d10103ff sub sp, sp, #64
    3dc003e0 ldr q0, [sp]
    ad408be1 ldp q1, q2, [sp, #16]
    4e22cc20 fmla v0.4s, v1.4s, v2.4s
    4e829420 sdot v0.4s, v1.16b, v2.16b
    4e829420 sdot v0.4s, v1.16b, v2.16b
    0e628020 smlal v0.4s, v1.4h, v2.4h
    3d8003e0 str q0, [sp]
    b82903ea ldadd w9, w10, [sp]
    71000529 subs w9, w9, #1
    54fffee1 b.ne ldr
    52800040 mov w0, #2
    72afcae0 movk w0, #0x7e57, lsl #16
    d4000001 svc #0
    4e829420 sdot v0.4s, v1.16b, v2.16b
    52800020 mov w0, #1
    72afcae0 movk w0, #0x7e57, lsl #16
    d4000001 svc #0
    52800040 mov w0, #2
    72afcae0 movk w0, #0x7e57, lsl #16
    d4000001 svc #0
    d2800ba8 mov x8, #93
    d2800000 mov x0, #0
    d4000001 svc #0
"""
REGIONS = [
    {"instructions": 2 + 7 * 10 + 3, "loads": 7 * 3, "stores": 7 * 2, "fma": 7, "dot": 7 * 2, "widening": 7},
    {"instructions": 3, "loads": 0, "stores": 0, "fma": 0, "dot": 0, "widening": 0},
]

# What objdump calls the arithmetic and the atomic ones.
FMA = frozenset("fmadd fmsub fnmadd fnmsub fmla fmls fmlal fmlal2 fmlsl fmlsl2".split())
DOT = frozenset("sdot udot usdot sudot smmla ummla usmmla".split())
WIDENING = re.compile(r"([su]ml[as]l|[su]mull|sqdml[as]l|sqdmull)2?")
ATOMIC = re.compile(r"((ld|st)(add|clr|eor|set|[su]max|[su]min)|swp|casp?)(a|l|al)?[bh]?")
# Instructions of later years, which no board and no qemu 7.2 has, but which an objdump may know.
LATER = re.compile(
    r"(ld|st)64b|rcw|ldiapp|stilp|ldap1|stl1|(ld|st)t(add|clr|set|n?p)|(ld|st)[al]?txr|ld(clr|set)p|"
    r"(ldapu|stlu)r [bhsdq]"
)


def run(*command: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, check=False, **options)


def words(listing: str) -> list[int]:
    return [int(line.split()[0], 16) for line in listing.split("\n") if line.strip()]


@pytest.fixture(scope="module")
def sources(root, ci_or_skip) -> Path:
    if shutil.which("gcc") is None:
        ci_or_skip("the counter is compiled by gcc, which is not here")
    return root / "targets" / "emulator"


@pytest.fixture(scope="module")
def classify(sources, tmp_path_factory):
    """classes_of() of an array of words, as the compiled header says."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.c").write_text(HOST, encoding="utf-8")
    done = run("gcc", *STRICT, "-I", sources, "-o", folder / "host", folder / "host.c")
    assert done.returncode == 0, done.stderr.decode()

    def classes(found: list[int] | np.ndarray) -> np.ndarray:
        said = run(folder / "host", input=np.array(found, "<u4").tobytes()).stdout
        return np.frombuffer(said, np.uint8) - ord("A")

    return classes


@pytest.fixture(scope="module")
def plugin(sources, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("plugin") / "counter.so"
    done = run("gcc", *STRICT, "-fPIC", "-shared", "-o", made, sources / "counter.c")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return made


@pytest.fixture(scope="module")
def emulator(ci_or_skip) -> str:
    found = shutil.which("qemu-aarch64")
    if found is None:
        ci_or_skip("qemu-aarch64 is not here (Debian: apt install qemu-user)")
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return executable(tmp_path_factory.mktemp("program") / "program", words(PROGRAM))


def executable(path: Path, code: list[int]) -> Path:
    """A static aarch64 ELF of one segment, which the file is whole."""
    start, size = 0x400000, 64 + 56 + 4 * len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)  # 64 bits, little-endian, System V
    header = struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, start + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 0x10000)  # readable, executable
    path.write_bytes(ident + header + segment + struct.pack(f"<{len(code)}I", *code))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("names", KNOWN)
def test_a_known_word_is_in_its_classes_and_in_no_other(classify, names):
    lines = [line.strip() for line in KNOWN[names].split("\n") if line.strip()]
    expected = sum(1 << NAMES.index(name) for name in names.split())
    found = classify(words(KNOWN[names]))
    assert [line for line, one in zip(lines, found, strict=True) if one != expected] == []


@given(st.integers(0, 2**32 - 4096), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_no_word_is_in_two_classes_of_arithmetic_or_in_memory_and_arithmetic(classify, first, scramble):
    found = classify(np.arange(first, first + 4096, dtype=np.uint64) ^ scramble)
    assert set(np.unique(found)) <= {0, 1, 2, 3, 4, 8, 16}


def test_objdump_names_random_words_as_they_are_counted(classify, tmp_path, ci_or_skip):
    objdump = shutil.which("aarch64-linux-gnu-objdump")
    if objdump is None:
        ci_or_skip("objdump for aarch64 is not here (Debian: apt install binutils-aarch64-linux-gnu)")
    random = np.random.default_rng(3).integers(0, 2**32, 600_000, np.uint32)
    random[::3] = random[::3] & ~np.uint32(0x0A000000) | np.uint32(0x08000000)  # loads and stores
    random[1::3] |= np.uint32(0x0E000000)  # scalar floating point and Advanced SIMD
    random.astype("<u4").tofile(tmp_path / "words")
    done = run(objdump, "-D", "-z", "-b", "binary", "-m", "aarch64", tmp_path / "words", text=True)
    lines = re.findall(r"^ *[0-9a-f]+:\t([0-9a-f]{8}) \t(\S+)\t?(.*)$", done.stdout, re.MULTILINE)
    known = [
        (int(word, 16), name, operands)
        for word, name, operands in lines
        if name not in ("undefined", ".inst") and not LATER.match(f"{name} {operands}")
    ]
    assert len(known) > 150_000
    found = classify([word for word, _, _ in known])
    wrong = {
        f"{word:08x} {name} {operands}: counted {one}"
        for (word, name, operands), one in zip(known, found, strict=True)
        if one != expected_of(word, name, operands)
    }
    assert sorted(wrong)[:20] == []


def expected_of(word: int, name: str, operands: str) -> int:
    """The classes of a word by the name objdump gives it."""
    group = word >> 25 & 15
    if group in (0, 2):  # SVE and SME
        return 0
    if ATOMIC.fullmatch(name):
        return 3
    if name.startswith(("ld", "st")):
        return 1 if name.startswith("ld") else 2
    if WIDENING.fullmatch(name):
        return 16 if operands[0] in "vsd" else 0  # not that of general registers
    return 4 * (name in FMA) + 8 * (name in DOT)


def test_counts_between_marks_are_exact_and_repeat(plugin, emulator, program, tmp_path):
    out = tmp_path / "counts"
    for _ in range(2):
        command = (emulator, "-cpu", "cortex-a76", "-plugin", f"{plugin},out={out}", program)
        done = run(*command, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [json.loads(line) for line in out.read_text().splitlines()] == REGIONS * 2


def test_counting_hides_no_illegal_instruction(plugin, emulator, program, tmp_path):
    out = tmp_path / "counts"
    done = run(emulator, "-cpu", "cortex-a72", "-plugin", f"{plugin},out={out}", program)
    assert done.returncode in (-4, 132)  # SIGILL: a Pi 4 has no dot product
    assert out.read_text() == ""


@pytest.mark.parametrize("arguments", ["", ",out=", ",outer=x", ",out=x,loud=on", ",out=x,out=y", ",x=out=y"])
def test_arguments_it_does_not_know_are_refused_in_one_line(plugin, emulator, program, tmp_path, arguments):
    done = run(emulator, "-plugin", f"{plugin}{arguments}", program, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert "counter: takes out=FILE and nothing else\n" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_it_cannot_write_is_refused_before_the_program_runs(plugin, emulator, program, tmp_path):
    missing = tmp_path / "missing" / "counts"
    done = run(emulator, "-plugin", f"{plugin},out={missing}", program, text=True)
    assert done.returncode not in (0, -4, 132)
    assert f"counter: cannot write {missing}: No such file or directory\n" in done.stderr


def test_counts_that_the_disk_does_not_take_are_told(plugin, emulator, program):
    done = run(emulator, "-cpu", "cortex-a76", "-plugin", f"{plugin},out=/dev/full", program, text=True)
    assert "cannot write the counts: No space left on device" in done.stderr
