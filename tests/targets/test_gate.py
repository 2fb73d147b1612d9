"""The instruction-set gate: what a board cannot run is named before it ships, and hostile files only get words."""

import json
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_elf import RET, shared

from targets.board import load_board
from targets.gate import a64, wheel
from targets.gate.check import check
from targets.gate.elf import read_elf
from targets.gate.loading import ALONE, Item, Outcome, load_all
from targets.runtime.errors import HighwallError

SDOT, LDADD, FMLA_HALF = 0x4E829420, 0xB8200041, 0x4E420C20
ONTO_STACK = 0x910003E2  # mov x2, sp
TAGS = "cp313-cp313-manylinux_2_28_aarch64"

# What llvm-mc 14 makes of these lines: word, feature, name.
NEWER = (
    (0xC8E1FC62, "lse", "cas"),  # casal x1, x2, [x3]
    (0x48207C82, "lse", "casp"),  # casp x0, x1, x2, x3, [x4]
    (0xB8200041, "lse", "ldadd"),  # ldadd w0, w1, [x2]
    (0xF86003FF, "lse", "ldadd"),  # staddl x0, [sp]
    (0x38A18062, "lse", "swp"),  # swpab w1, w2, [x3]
    (0x78BFC041, "rcpc", "ldapr"),  # ldaprh w1, [x2]
    (0x4E829420, "dot", "sdot"),  # sdot v0.4s, v1.16b, v2.16b
    (0x2FA2E020, "dot", "udot"),  # udot v0.2s, v1.8b, v2.4b[1]
    (0x4FA2F820, "i8mm", "usdot"),  # usdot v0.4s, v1.16b, v2.4b[3]
    (0x4E82A420, "i8mm", "smmla"),  # smmla v0.4s, v1.16b, v2.16b
    (0x6E42FC20, "bf16", "bfdot"),  # bfdot v0.4s, v1.8h, v2.8h
    (0x6E42EC20, "bf16", "bfmmla"),  # bfmmla v0.4s, v1.8h, v2.8h
    (0x4E420C20, "fp16", "fmla of halves"),  # fmla v0.8h, v1.8h, v2.8h
    (0x0F221020, "fp16", "fmla of halves"),  # fmla v0.4h, v1.4h, v2.h[2]
    (0x1EE22820, "fp16", "scalar arithmetic of halves"),  # fadd h0, h1, h2
    (0x4EF9B820, "fp16", "vector arithmetic of halves"),  # fcvtzs v0.8h, v1.8h
    (0x6E828420, "rdm", "sqrdmlah"),  # sqrdmlah v0.4s, v1.4s, v2.4s
    (0x4E284820, "crypto", "aes"),  # aese v0.16b, v1.16b
    (0x5E024020, "crypto", "sha1 or sha256"),  # sha256h q0, q1, v2.4s
    (0x0EE2E020, "crypto", "pmull of 64 bits"),  # pmull v0.1q, v1.1d, v2.1d
    (0x4E22EC20, "fhm", "fmlal"),  # fmlal v0.4s, v1.4h, v2.4h
    (0x6E82CC20, "complex", "fcmla"),  # fcmla v0.4s, v1.4s, v2.4s, #90
    (0xD65F0BFF, "pauth", "retaa"),  # retaa
    (0xCE020C20, "sha3", "eor3"),  # eor3 v0.16b, v1.16b, v2.16b, v3.16b
    (0x2598E3E0, "sve", "ptrue"),  # ptrue p0.s
    (0x25A11C00, "sve", "while"),  # whilelo p0.s, x0, x1
    (0xD503437F, "sme", "smstart"),  # smstart sm
)
# In every ARMv8.0 core, and one bit or so away from the above: exclusives, acquire loads, products of singles and
# of fixed point, conversions from and to half precision, pmull of bytes, crc32cx, movi, hints, loads, ret.
OLD = struct.unpack(
    "<25I",
    bytes.fromhex(
        "20fc5f8820fc028820fcdfc820cc224e2018c24f2020720f20b4a26e2078210e2040e21e20c0231e20e0220e205cc29a2084004f"
        "00102e1e3f2303d55f2403d52000407d200c021f0000221e2080524f201c064e2004024e2054134f0004c1acc0035fd6"
    ),
)


@pytest.fixture(scope="module")
def pi4():
    return load_board("rpi4b")


@pytest.fixture
def write(tmp_path):
    """Write a library of these words under a name, and give its path."""

    def put(name, *words, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shared(*words, **options))
        return path

    return put


def pack(path, members, tags=TAGS, name="thing"):
    """A wheel of these members: bytes, or a file to read them from."""
    path = path / f"{name}-1.0-{tags}.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data if isinstance(data, bytes) else data.read_bytes())
    return path


def by_library(report):
    return {finding.library: finding for finding in report.findings}


# --- instructions


@pytest.mark.parametrize(("word", "feature", "name"), NEWER)
def test_a_newer_instruction_is_known_by_its_word(word, feature, name):
    assert a64.name_of(word) == f"{name} ({a64.FEATURES[feature]})"
    assert a64.scan(struct.pack("<3I", RET, word, RET)) == {(feature, name): 1}


def test_what_every_core_has_is_not_counted():
    assert a64.scan(struct.pack(f"<{len(OLD)}I", *OLD)) == {}


def test_an_unknown_instruction_keeps_its_number():
    assert a64.name_of(0xFFFFFFFF) == "unknown instruction 0xffffffff"
    assert a64.name_of(0xA540A000) == "an SVE instruction (SVE)"  # ld1w {z0.s}, p0/z, [x0]
    assert "on purpose" in a64.name_of(0)


def test_every_instruction_is_counted_across_the_whole_of_a_large_library():
    words = 600_001
    code = bytearray(struct.pack("<I", RET) * words)
    for place in (0, 262_143, 262_144, 524_288, words - 1):
        struct.pack_into("<I", code, place * 4, SDOT)
    assert a64.scan(bytes(code) + b"\x20\x94") == {("dot", "sdot"): 5}


def test_atomics_of_a_helper_that_asks_first_are_told_apart():
    helper = struct.pack("<5I", 0x34000070, 0x88E07C41, RET, LDADD, RET)  # cbz w16, +12; casa; ret; ldadd; ret
    assert a64.scan(helper) == {("lse", "guarded"): 1, ("lse", "ldadd"): 1}


def test_a_board_lacks_what_its_core_is_too_old_for():
    old, new = a64.lacking(load_board("rpi4b")), a64.lacking(load_board("rpi5"))
    assert old == set(a64.FEATURES)
    assert old - new == {"lse", "rdm", "fp16", "dot", "crypto", "rcpc"}


@given(st.binary(max_size=200))
def test_any_bytes_can_be_searched_for_instructions(code):
    a64.scan(code)
    a64.name_of(int.from_bytes(code[:4], "little"))


# --- headers


def test_a_library_says_what_it_needs():
    elf = read_elf(shared(SDOT, needed=("libm.so.6", "libfoo.so.2"), glibc="GLIBC_2.34"))
    assert elf.needed == ("libm.so.6", "libfoo.so.2")
    assert elf.glibc == (2, 34)
    assert not elf.program
    assert elf.place(elf.code[0][0] + 4).endswith(" (kernel)")


def test_code_is_found_without_section_headers():
    elf = read_elf(shared(SDOT, sections=False))
    assert sum(a64.scan(elf.data[at : at + size]).get(("dot", "sdot"), 0) for at, size in elf.code) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no ELF file"),
        (b"GROUP ( libc.so.6 )", "no ELF file"),
        (shared(RET)[:40], "truncated"),
        (shared(RET)[:300], "truncated"),
        (shared(RET, machine="x86_64"), "for x86_64"),
        (shared(RET, machine="armv7l"), "for armv7l"),
        (shared(RET, kind=1), "object file"),
    ],
)
def test_what_is_no_library_for_the_board_is_one_finding(data, words, pi4, tmp_path):
    path = tmp_path / "libx.so"
    path.write_bytes(data)
    report = check(pi4, [path])
    (finding,) = report.findings
    assert not report.ok
    assert finding.verdict == "does not fit"
    assert words in finding.faults[0]


def test_a_newer_glibc_than_the_board_has_does_not_fit(pi4, write):
    report = check(pi4, [write("old.so", glibc="GLIBC_2.41"), write("new.so", glibc="GLIBC_2.99")])
    found = by_library(report)
    assert found["old.so"].verdict == "fits"
    assert found["new.so"].faults == ("uses glibc 2.99, the board has 2.41",)


def test_a_needed_library_that_is_nowhere_is_noted(pi4, write):
    first = write("liba.so", needed=("libb.so", "libc.so.6", "libnowhere.so.3"))
    found = by_library(check(pi4, [first, write("libb.so")]))
    (note,) = found["liba.so"].notes
    assert note.startswith("needs libnowhere.so.3, ")
    assert found["libb.so"].notes == ()


def read_whole(data):
    """Everything the gate asks of a file."""
    elf = read_elf(data)
    elf.asks_for_features()
    for offset in (0, 1, len(data) // 2, 1 << 63):
        elf.place(offset)
    for at, size in elf.code:
        a64.scan(data[at : at + size])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_library_is_refused_in_words_or_read(data):
    whole = bytearray(shared(SDOT, needed=("libm.so.6",), glibc="GLIBC_2.17"))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 8))
        value = data.draw(st.sampled_from((0, 1, 255, 1 << 31, (1 << 63) - 1, (1 << 64) - 1)) | st.integers(0, 1 << 16))
        size = data.draw(st.sampled_from((1, 2, 4, 8)))
        whole[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))]) if data.draw(st.booleans()) else bytes(whole)
    try:
        read_whole(cut)
    except HighwallError as error:
        assert str(error).startswith("is ")


@given(st.binary(max_size=300))
def test_any_bytes_after_an_elf_header_are_refused_in_words_or_read(tail):
    for start in (b"", b"\x7fELF", shared(RET)[:24], shared(RET)[:64]):
        try:
            read_whole(start + tail)
        except HighwallError as error:
            assert "\n" not in str(error)


# --- wheels


@pytest.mark.parametrize(
    "tags",
    [
        "cp313-cp313-manylinux_2_28_aarch64",
        "cp313-cp313-manylinux_2_41_aarch64",
        "cp313-cp313-manylinux_2_17_x86_64.manylinux2014_aarch64",
        "cp37-abi3-manylinux2014_aarch64",
        "cp313-none-linux_aarch64",
        "py3-none-manylinux_2_17_aarch64",
        "py2.py3-none-any",
        "py38-none-any",
    ],
)
def test_a_wheel_the_boards_pip_takes_is_taken(tags, pi4):
    assert wheel.misfits(f"thing-1.0-{tags}.whl", pi4) == []
    assert wheel.misfits(f"thing-1.0-2build-{tags}.whl", pi4) == []


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("cp312-cp312-manylinux_2_28_aarch64", "is for cp312-cp312, the board has Python 3.13"),
        ("cp313-cp313t-manylinux_2_28_aarch64", "is for cp313-cp313t"),
        ("cp314-abi3-manylinux_2_28_aarch64", "is for cp314-abi3"),
        ("py2-none-any", "is for py2-none"),
        ("py314-none-any", "is for py314-none"),
        ("pp311-pypy311_pp73-manylinux2014_aarch64", "is for pp311"),
        ("cp313-cp313-manylinux_2_42_aarch64", "asks for glibc 2.42; the board has 2.41"),
        ("cp313-cp313-manylinux_3_0_aarch64", "asks for glibc 3.0"),
        ("cp313-cp313-manylinux_2_28_x86_64", "is for x86_64"),
        ("cp313-cp313-linux_armv7l", "is for armv7l"),
        ("cp313-cp313-musllinux_1_2_aarch64", "for musl"),
        ("cp313-cp313-macosx_11_0_arm64", "no Linux"),
        ("cp313-cp313-win_arm64", "no Linux"),
    ],
)
def test_a_wheel_the_boards_pip_refuses_is_refused_with_the_reason(tags, words, pi4, tmp_path):
    report = check(pi4, [pack(tmp_path, {"thing/__init__.py": b""}, tags)])
    assert not report.ok
    (reason,) = report.findings[0].faults
    assert words in reason


def test_a_wheel_of_an_old_python_and_a_new_glibc_says_both(pi4):
    assert len(wheel.misfits("thing-1.0-cp39-cp39-manylinux_2_99_aarch64.whl", pi4)) == 2


def test_a_wheel_without_libraries_fits(pi4, tmp_path):
    report = check(pi4, [pack(tmp_path, {"thing/__init__.py": b"x = 1"}, "py3-none-any")])
    assert report.ok
    assert "no native library" in report.lines()[0]


@pytest.mark.parametrize("name", ["../out.py", "/etc/out.py", "a/../../out.py", "a\\..\\out.py"])
def test_a_wheel_that_would_write_outside_is_refused(name, pi4, tmp_path):
    with pytest.raises(HighwallError, match="leaves its folder"):
        check(pi4, [pack(tmp_path, {name: b"x"})])


def test_a_wheel_that_unpacks_to_too_much_is_refused(pi4, tmp_path, monkeypatch):
    monkeypatch.setattr(wheel, "MOST_BYTES", 1000)
    with pytest.raises(HighwallError, match="would unpack to more"):
        check(pi4, [pack(tmp_path, {"zeros": bytes(100_000)})])


def test_files_of_a_data_folder_lie_where_pip_puts_them(pi4, tmp_path):
    packed = pack(tmp_path, {"thing-1.0.data/platlib/thing/libx.so": shared(RET)})
    assert set(by_library(check(pi4, [packed]))) == {"", "thing/libx.so"}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_wheel_is_refused_in_words_or_read(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    packed = pack(folder, {"thing/__init__.py": b"x = 1\n" * 20, "thing/libx.so": shared(SDOT)})
    whole = bytearray(packed.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    packed.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        check(load_board("rpi4b"), [packed])
    except HighwallError as error:
        assert "\n" not in str(error)


def test_what_is_neither_wheel_nor_library_is_refused_by_name(pi4, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "thing.whl").write_text("hello")
    pack(tmp_path, {}).write_bytes(b"hello")
    for name, words in {
        "empty": "neither wheels nor libraries",
        "notes.txt": "neither a wheel",
        "gone.so": "does not exist",
        "thing.whl": "not named like a wheel",
        f"thing-1.0-{TAGS}.whl": "damaged or no wheel",
    }.items():
        with pytest.raises(HighwallError, match=words):
            check(pi4, [tmp_path / name])


def test_the_machine_at_hand_is_no_board_to_judge_for(write):
    with pytest.raises(HighwallError, match="this very machine"):
        check(load_board("host"), [write("plain.so")])


# --- without an emulator


def test_without_an_emulator_newer_instructions_are_not_proven(pi4, write):
    report = check(pi4, [write("plain.so", RET), write("dots.so", SDOT, SDOT)])
    found = by_library(report)
    assert found["plain.so"].verdict == "fits"
    assert found["dots.so"].verdict == "not proven"
    assert found["dots.so"].instructions == {"dot": 2}
    assert not report.ok
    assert by_library(check(load_board("rpi5"), [write("dots.so", SDOT)]))["dots.so"].verdict == "fits"


def test_a_report_is_text_and_json(pi4, write):
    report = check(pi4, [write("plain.so"), write("dots.so", SDOT)])
    assert json.loads(json.dumps(report.as_dict()))["findings"][1]["instructions"] == {"dot": 1}
    assert report.lines()[0].endswith("plain.so: fits, 1 library read")
    assert report.lines()[-1] == "rpi4b: 1 of 2 checks failed (only read: there is no emulator)"


# --- on an emulated board


def loading(monkeypatch, outcomes):
    """As if a board had loaded the libraries in turn, with these outcomes."""
    guest = SimpleNamespace(board=load_board("rpi4b"), root=Path("/nowhere"))
    left = iter(outcomes)
    monkeypatch.setattr("targets.gate.check.load_all", lambda guest, items, path: ([next(left) for _ in items], set()))
    return guest


def test_a_library_that_does_not_load_is_not_proven(pi4, write, monkeypatch):
    why = ("not imported: needs no_such_package", f"{ALONE}undefined symbol: PyArg_ParseTuplX")
    guest = loading(monkeypatch, [Outcome(ran=True), Outcome(reasons=why)])
    report = check(pi4, [write("libfine.so"), write("libsym.so")], guest)
    found = by_library(report)
    assert found["libsym.so"].doubts == ("did not load: undefined symbol: PyArg_ParseTuplX",)
    assert found["libsym.so"].notes == ("not imported: needs no_such_package",)
    assert not report.ok
    assert report.lines()[-1] == "rpi4b: 1 of 2 checks failed (1 of 2 libraries loaded on an emulated Cortex-A72)"


def test_a_side_library_that_does_not_load_is_excused_and_never_called_loaded(pi4, tmp_path, monkeypatch):
    members = {
        "side/__init__.py": b"",
        "side/core.cpython-313-aarch64-linux-gnu.so": shared(RET, function="PyInit_core", init=False),
        "side/libplugin.so": shared(RET),
    }
    wanting = Outcome(reasons=(f"{ALONE}libcuda.so.1: cannot open shared object file",))
    guest = loading(monkeypatch, [Outcome(imported=True, ran=True), wanting])
    report = check(pi4, [pack(tmp_path, members, name="side")], guest)
    assert by_library(report)["side/libplugin.so"].optional
    assert report.ok
    assert report.lines()[-1] == "rpi4b: everything fits (1 of 2 libraries loaded on an emulated Cortex-A72)"
    guest = loading(monkeypatch, [Outcome(imported=True, ran=True), Outcome(ran=True)])
    whole = check(pi4, [tmp_path / f"side-1.0-{TAGS}.whl"], guest)
    assert whole.lines()[-1] == "rpi4b: everything fits (loaded on an emulated Cortex-A72)"


@pytest.mark.arm
def test_an_illegal_instruction_is_named_with_its_library_and_function_and_costs_only_one(arm, pi4, write):
    paths = [
        write("libdot.so", SDOT, function="convolve"),
        write("libfine.so", RET, SDOT, SDOT),
        write("libatomic.so", ONTO_STACK, LDADD, sections=False),
        write("libhalf.so", FMLA_HALF),
        write("libodd.so", 0xFFFFFFFF),
    ]
    on_pi4 = by_library(check(pi4, paths, arm("rpi4b")))
    (fault,) = on_pi4["libdot.so"].faults
    assert fault.startswith("illegal instruction sdot (dot product) while loading, in libdot.so+0x")
    assert fault.endswith(" (convolve)")
    assert "ldadd (LSE atomics) while loading, in libatomic.so+0x" in on_pi4["libatomic.so"].faults[0]
    assert "fmla of halves (half-precision arithmetic)" in on_pi4["libhalf.so"].faults[0]
    assert "unknown instruction 0xffffffff" in on_pi4["libodd.so"].faults[0]
    assert on_pi4["libfine.so"].verdict == "fits"
    assert on_pi4["libfine.so"].ran
    assert on_pi4["libfine.so"].notes == ("contains 2 dot product, behind a run-time check that loading did not trip",)
    on_pi5 = by_library(check(load_board("rpi5"), paths, arm("rpi5")))
    assert [name for name, finding in on_pi5.items() if finding.verdict == "fits"] == [
        *("libdot.so", "libfine.so", "libatomic.so", "libhalf.so")
    ]


@pytest.mark.arm
def test_other_deaths_are_told_apart(arm, pi4, write):
    guest = arm("rpi4b")
    null = write("libnull.so", 0xD2800000, 0xF9400000)  # mov x0, #0; ldr x0, [x0]
    # kill(getpid(), SIGILL), as libraries do that looked at their CPU themselves
    quits = write("libquits.so", 0xD2801588, 0xD4000001, 0xD2800081, 0xD2801028, 0xD4000001)
    hangs = write("libhangs.so", 0x14000000)  # b .
    lost = write("liblost.so", RET, SDOT, needed=("libnowhere.so.3",))
    found = by_library(check(pi4, [null, quits, lost], guest))
    assert found["libnull.so"].faults == ("dies of a segmentation fault while loading",)
    assert found["libquits.so"].faults[0].startswith("stops itself while loading, as for an illegal instruction")
    assert found["liblost.so"].verdict == "not proven"
    assert "libnowhere.so.3" in found["liblost.so"].notes[-1]
    loads, contains = found["liblost.so"].doubts
    assert loads.startswith("did not load: libnowhere.so.3: cannot open shared object file")
    assert contains.startswith("contains 1 dot product")
    outcomes, _ = load_all(guest, [Item(hangs)], (), seconds=1)
    assert outcomes[0].fault == "hangs while loading: nothing in 1 s"


@pytest.mark.arm
def test_modules_are_imported_from_all_wheels_together(arm, pi4, tmp_path):
    guest = arm("rpi4b")
    suffix = "cpython-313-aarch64-linux-gnu.so"
    real = next((guest.root / "usr/lib/python3.13/lib-dynload").glob("_queue.*.so"))
    user = {
        "user/__init__.py": b"import base",  # from the other wheel
        f"user/_queue.{suffix}": real,
        f"user/fast.{suffix}": shared(SDOT, function="PyInit_fast", init=False),
        "user/libplugin.so": shared(SDOT),
    }
    lonely = {
        "lonely/__init__.py": b"import no_such_package",
        f"lonely/_queue.{suffix}": real,
        "lonely/libplugin.so": shared(SDOT),
    }
    wheels = tmp_path / "wheels"
    pack(wheels, user, name="user")
    pack(wheels, lonely, name="lonely")
    pack(wheels, {"base.py": b""}, "py3-none-any", name="base")
    said = []
    report = check(pi4, [wheels], guest, said.append)
    found = by_library(report)
    assert found[f"user/_queue.{suffix}"].verdict == "fits"
    assert "at its import" in found[f"user/fast.{suffix}"].faults[0]
    # Nobody loads this one: a package that was imported without it can live without it.
    assert found["user/libplugin.so"].verdict == "does not fit"
    assert found["user/libplugin.so"].optional
    # But here no import shows that.
    assert found[f"lonely/_queue.{suffix}"].notes == ("not imported: needs no_such_package",)
    assert found[f"lonely/_queue.{suffix}"].ran
    assert not found["lonely/libplugin.so"].optional
    assert not report.ok
    assert any("2 libraries on rpi4b" in line for line in said)


@pytest.mark.arm
def test_an_unpacked_package_is_imported_by_its_own_name(arm, pi4):
    guest = arm("rpi4b")
    (finding,) = [row for row in check(pi4, [guest.layout.site / "msgspec"], guest).findings if row.library]
    assert finding.library.startswith("msgspec/_core.")  # beside it lies a json.py, which is not Python's own
    assert finding.verdict == "fits"
    assert finding.ran
    assert finding.notes == ()


@pytest.mark.arm
def test_an_artifact_is_verified_through_the_libraries_under_test(arm, pi4, write, classifier, tmp_path):
    guest = arm("rpi4b")
    good = classifier.write(tmp_path / "good.highwall")
    other = tmp_path / "broken.highwall"
    other.write_bytes(good.read_bytes()[:-9])
    report = check(pi4, [write("libplain.so")], guest, artifact=good)
    assert report.ok
    assert "golden vectors pass" in report.lines()[-2]
    (outcome,), _ = load_all(guest, [Item(other, artifact=True)], ())
    assert not outcome.ran
    assert "truncated" in outcome.reasons[0]
