"""highwall gateway as a person types it: what is wrong is said in one line, and nothing is half done."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import highwall
from targets.runtime.errors import HighwallError
from twin_client import drain
from twin_client.outbox import Outbox, Rows
from twin_client.pairing import Pairing, Tag
from twin_client.protocol.dialects.highwall import batch_in
from twin_client.protocol.records import ClockQuality, Measure, Reading, Stamp

AT = Stamp(1_763_884_800_000_000, 5_000_000, "boot", ClockQuality.NETWORK)


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = highwall.main(["gateway", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "gateway.toml"
    assert call(capsys, "init", "pit-7", "--folder", "data", "--config", path)[0] == 0
    (tmp_path / "data").mkdir()
    return path


def filled(folder: Path, count: int) -> None:
    outbox = Outbox.open(folder, "pit-7", stamp=lambda: AT)
    for first in range(0, count, 500):
        records = [Reading(AT, "t", 1, seq, {"x": Measure(1.0)}) for seq in range(first, min(count, first + 500))]
        outbox.write(lambda t, records=records: t.append(records))
    outbox.close()


def test_the_file_that_init_writes_is_a_good_one_and_never_replaces_another(config: Path, capsys) -> None:
    code, _, err = call(capsys, "init", "other", "--config", config)
    assert code == 1
    assert "is there already" in err
    assert 'gateway = "pit-7"' in config.read_text()


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "ümlaut"])
def test_a_name_that_no_gateway_can_have_leaves_no_file(tmp_path: Path, capsys, name: str) -> None:
    path = tmp_path / "gateway.toml"
    code, _, err = call(capsys, "init", "--config", path, "--", name)
    assert code == 1
    assert err.count("\n") == 1
    assert not path.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("status",),
        ("selftest",),
        ("drain", "--to", "."),
        ("pair", "x"),
        ("unpair", "x"),
        ("service",),
        ("enroll", "https://twin.example", "CODE"),
    ],
)
def test_without_a_gateway_toml_every_action_says_so_in_one_line(tmp_path: Path, capsys, words) -> None:
    code, _, err = call(capsys, *words, "--config", tmp_path / "none.toml")
    assert code == 1
    assert "none.toml does not exist" in err
    assert err.count("\n") == 1


def test_tags_are_paired_and_unpaired_and_those_of_the_file_too(config: Path, capsys) -> None:
    config.write_text(config.read_text() + '[tags."own-1"]\ntype = "person"\n')
    folder = config.parent / "data"
    assert call(capsys, "pair", "new-1", "--type", "extensometer", "--config", config)[0] == 0
    assert call(capsys, "unpair", "own-1", "--config", config)[0] == 0
    own = {"own-1": Tag("person")}
    assert Pairing(folder, own).tags == {"new-1": Tag("extensometer")}
    assert call(capsys, "pair", "own-1", "--config", config)[0] == 0
    assert set(Pairing(folder, own).tags) == {"own-1", "new-1"}
    code, _, err = call(capsys, "unpair", "nobody", "--config", config)
    assert code == 1
    assert "paired are new-1, own-1" in err
    assert call(capsys, "pair", "no good", "--config", config)[0] == 1


@pytest.mark.parametrize(("meant", "given"), [("person", "Person"), ("machine", "MACHINE"), ("person", "person ")])
def test_a_type_that_would_be_watched_if_it_were_written_right_is_refused(config: Path, capsys, meant, given) -> None:
    code, _, err = call(capsys, "pair", "A7", "--type", given, "--config", config)
    assert code == 1
    assert f"type is {meant}, not" in err
    assert err.count("\n") == 1
    assert Pairing(config.parent / "data", {}).tags == {}
    assert call(capsys, "pair", "A7", "--type", "truck", "--config", config)[0] == 0  # a word of somebody's own


def test_a_tag_that_cannot_be_is_refused_in_words_and_shown_without_its_escapes(config: Path, capsys) -> None:
    code, _, err = call(capsys, "pair", "bad name", "--config", config)
    assert code == 1
    assert "1 to 64 letters, digits or _ . : -" in err
    assert "regex" not in err
    assert "note: " in call(capsys, "pair", "A7", "--note", "x" * 201, "--config", config)[2]
    code, _, err = call(capsys, "unpair", "\x1b[2Jx\n" + "y" * 300, "--config", config)
    assert code == 1
    assert "is not paired; paired are none" in err
    assert "\x1b" not in err
    assert err.count("\n") == 1
    assert len(err) < 200


def test_another_process_s_pairing_is_seen(config: Path, capsys) -> None:
    pairing = Pairing(config.parent / "data", {})
    assert not pairing.look()
    call(capsys, "pair", "new-1", "--config", config)
    assert pairing.look()
    assert set(pairing.tags) == {"new-1"}
    assert not pairing.look()


def test_status_without_an_agent_reads_the_disk(config: Path, capsys) -> None:
    code, out, _ = call(capsys, "status", "--config", config)
    assert code == 1
    assert "there is no outbox yet" in out
    filled(config.parent / "data", 70)
    code, out, _ = call(capsys, "status", "--config", config)
    assert code == 1
    assert "the agent does not run" in out
    assert "70 records" in out or "71 records" in out
    code, out, _ = call(capsys, "status", "--json", "--config", config)
    assert json.loads(out)["running"] is False


def test_selftest_names_what_fails_and_tries_the_rest(config: Path, capsys) -> None:
    code, out, _ = call(capsys, "selftest", "--config", config)
    assert code == 1
    verdicts = {line[6:].partition(":")[0]: line[:4].strip() for line in out.splitlines()}
    assert verdicts["folder"] in ("ok", "look")
    assert verdicts["certificate"] == "fail"
    assert verdicts["port radio"] == "fail"
    assert verdicts["model"] == "ok"
    code, out, _ = call(capsys, "selftest", "--json", "--config", config)
    assert {finding["part"] for finding in json.loads(out)} == set(verdicts)


# --- drain --------------------------------------------------------------------------------------------------------


def test_a_drained_outbox_is_whole_on_the_stick_and_stays_where_it_was(config: Path, capsys, tmp_path: Path) -> None:
    folder, stick = config.parent / "data", tmp_path / "stick"
    filled(folder, 2345)
    stick.mkdir()
    code, out, _ = call(capsys, "drain", "--to", stick, "--json", "--config", config)
    assert code == 0
    said = json.loads(out)
    batches = [batch_in(path.read_bytes()) for path in sorted(Path(said["folder"]).glob("*.batch"))]
    found = [entry.record.tag_seq for batch in batches for entry in batch.entries if isinstance(entry.record, Reading)]
    assert found == list(range(2345))
    rows = Rows.look(folder)
    assert rows.count() == said["records"]
    rows.close()


def test_draining_again_writes_only_what_is_not_there(config: Path, capsys, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    filled(config.parent / "data", 1500)
    stick.mkdir()
    call(capsys, "drain", "--to", stick, "--config", config)
    first, second = sorted((stick / "pit-7").glob("*.batch"))
    second.write_bytes(second.read_bytes()[:-1] + b"?")  # a bad stick
    before = first.stat().st_mtime_ns
    assert call(capsys, "drain", "--to", stick, "--config", config)[0] == 0
    assert first.stat().st_mtime_ns == before
    batch_in(second.read_bytes())


@pytest.mark.parametrize("forget", [True, False])
def test_a_stick_that_was_emptied_but_for_its_index_is_used_again(
    config: Path, capsys, tmp_path: Path, forget: bool
) -> None:
    """Files that the twin took are written again where the outbox has their rows, and otherwise leave the index."""
    stick, folder = tmp_path / "stick", config.parent / "data"
    words = ("drain", "--to", stick, *(("--forget",) if forget else ()), "--json", "--config", config)
    filled(folder, 1500)
    stick.mkdir()
    assert call(capsys, *words)[0] == 0
    for file in (stick / "pit-7").glob("*.batch"):
        file.unlink()
    filled(folder, 300)
    for _ in range(2):
        code, _, err = call(capsys, *words)
        assert code == 0, err
    index = json.loads((stick / "pit-7" / "index.json").read_text())
    assert {file["name"] for file in index["files"]} == {path.name for path in (stick / "pit-7").glob("*.batch")}
    batches = [batch_in(path.read_bytes()) for path in sorted((stick / "pit-7").glob("*.batch"))]
    found = [entry.record.tag_seq for batch in batches for entry in batch.entries if isinstance(entry.record, Reading)]
    assert found[-300:] == list(range(300))
    assert len(found) == (300 if forget else 1800)
    rows = Rows.look(folder)
    assert (rows.count() == 0) == forget
    rows.close()


def test_a_file_that_vanishes_while_it_is_drained_is_missed(config: Path, capsys, tmp_path: Path, monkeypatch) -> None:
    stick, folder = tmp_path / "stick", config.parent / "data"
    filled(folder, 300)
    stick.mkdir()
    check = drain.check

    def pulled(where: Path, index: drain.Index) -> dict:
        (where / index.files[-1].name).unlink()
        return check(where, index)

    monkeypatch.setattr(drain, "check", pulled)
    code, _, err = call(capsys, "drain", "--to", stick, "--forget", "--config", config)
    assert code == 1
    assert "drain again" in err


def test_only_what_was_read_back_from_the_stick_is_forgotten(config: Path, capsys, tmp_path: Path, monkeypatch) -> None:
    stick, folder = tmp_path / "stick", config.parent / "data"
    filled(folder, 900)
    stick.mkdir()
    check = drain.check

    def worn_out(where: Path, index: drain.Index) -> dict:
        path = where / index.files[0].name
        path.write_bytes(path.read_bytes()[:100])
        return check(where, index)

    monkeypatch.setattr(drain, "check", worn_out)
    code, _, err = call(capsys, "drain", "--to", stick, "--forget", "--config", config)
    assert code == 1
    assert "use another stick" in err
    rows = Rows.look(folder)
    assert rows.count() >= 900
    rows.close()
    monkeypatch.setattr(drain, "check", check)
    code, out, _ = call(capsys, "drain", "--to", stick, "--forget", "--json", "--config", config)
    assert json.loads(out)["forgotten"] >= 900


def test_a_stick_that_is_not_there_and_one_of_another_gateway_are_said(config: Path, capsys, tmp_path: Path) -> None:
    filled(config.parent / "data", 3)
    code, _, err = call(capsys, "drain", "--to", tmp_path / "none", "--config", config)
    assert code == 1
    assert "is the stick mounted?" in err
    (tmp_path / "stick/pit-7").mkdir(parents=True)
    (tmp_path / "stick/pit-7/index.json").write_text("[]")
    code, _, err = call(capsys, "drain", "--to", tmp_path / "stick", "--config", config)
    assert code == 1
    assert "index.json" in err


def test_a_damaged_file_on_the_stick_is_named(tmp_path: Path) -> None:
    index = drain.Index(1, "g", [drain.File("x.batch", "0" * 64, 3, "e", 1, 1, 1)])
    with pytest.raises(HighwallError, match=r"x\.batch"):
        drain.check(tmp_path, index)


# --- systemd ------------------------------------------------------------------------------------------------------


def test_the_unit_is_one_that_systemd_takes(config: Path, capsys, tmp_path: Path) -> None:
    code, out, _ = call(capsys, "service", "--user", "root", "--config", config)
    assert code == 0
    for line in ("Type=notify", "WatchdogSec=", "NoNewPrivileges=true", "ProtectSystem=strict", f"--config {config}"):
        assert line in out
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "highwall.service"
    unit.write_text(out)
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "highwall.service:" not in done.stderr, done.stderr
