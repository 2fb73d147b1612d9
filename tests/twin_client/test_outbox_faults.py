"""The outbox when the machine fails it: killed, without power, without room, on a card that forgets or lies."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outbox_child import ROOMY, alarm, everything, health, named, opened, prediction, reading, stamp, unaccounted

from targets.runtime.errors import HighwallError
from twin_client.outbox import Limits, Outbox, Reborn
from twin_client.outbox.losses import Holding
from twin_client.outbox.tables import PAGE, OutboxFull
from twin_client.protocol.ranges import covers, ranges_of, subtract
from twin_client.protocol.records import Gap, Reading

CHILD = Path(__file__).with_name("outbox_child.py")


def box_file(folder):
    return folder / "outbox" / "rows.sqlite"


def append(outbox, *records):
    return outbox.write(lambda t: t.append(records))


def filled(folder, count=3000, window=0, limits=ROOMY):
    """An outbox that was closed with `count` readings in it, all of them written to the file itself."""
    outbox = opened(folder, limits)
    appended = {}
    for first in range(0, count, 100):
        records = [reading(number, f"tag-{number % 5}", window=window) for number in range(first, first + 100)]
        appended |= {(outbox.epoch, entry.seq): entry.record for entry in append(outbox, *records)}
    outbox.write(lambda t: t.remember("rules", b"state"))
    outbox.close()
    return appended


def gaps_of(outbox):
    return [record for record in everything(outbox).values() if isinstance(record, Gap)]


# --- killed ---------------------------------------------------------------------------------------------------


def run_and_kill(folder, boot, wait):
    """The last number whose commit had returned, or -1, after a child was killed in the middle of its work."""
    child = subprocess.Popen([sys.executable, CHILD, folder, str(boot)], stdout=subprocess.PIPE, text=True)
    first = child.stdout.readline()
    time.sleep(wait)
    child.send_signal(signal.SIGKILL)
    numbers = [int(line) for line in (first + child.stdout.read()).splitlines(keepends=True) if line.endswith("\n")]
    child.stdout.close()
    child.wait()
    return numbers[-1] if numbers else -1


def killed_again_and_again(folder, times, seed):
    random_waits = random.Random(seed)
    epochs = set()
    for boot in range(times):
        committed = run_and_kill(folder, boot, random_waits.uniform(0, 0.06))
        outbox = opened(folder)
        epochs.add(outbox.epoch)
        numbers = [record.tag_seq for record in everything(outbox).values() if record.tag_boot == boot]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > committed
        assert outbox.recall("done") == str(numbers[-1]).encode()
        assert outbox.marks()["tag-7"] == (boot, numbers[-1])
        rows = [seq for _, seq in everything(outbox)]
        assert rows == list(range(rows[0], outbox.last(outbox.epoch) + 1))
        outbox.acknowledge(outbox.epoch, [(1, outbox.last(outbox.epoch) - 5)])
        assert outbox.count() == len(everything(outbox))
        outbox.close()
    assert len(epochs) == 1


def test_a_process_killed_at_random_points_loses_no_commit_and_leaves_no_half_of_one(tmp_path):
    killed_again_and_again(tmp_path, 10, 1)


@pytest.mark.slow
def test_a_process_killed_at_two_hundred_random_points_loses_no_commit(tmp_path):
    killed_again_and_again(tmp_path, 200, 2)


# --- without power --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["clean", "half a frame", "garbage", "zeros", "a page of garbage in the file's end"])
def test_what_was_committed_outlives_a_power_cut_that_tears_what_was_not(tmp_path, tail):
    outbox = opened(tmp_path / "gateway", boot="before")
    appended = {}
    for step in range(40):
        records = [reading(10 * step + each, window=200) for each in range(10)]
        appended |= {(outbox.epoch, entry.seq): entry.record for entry in append(outbox, *records)}
        if step % 13 != 5:
            continue
        after = tmp_path / f"after-{step}"
        shutil.copytree(tmp_path / "gateway", after)
        (after / "outbox" / "rows.sqlite-shm").unlink(missing_ok=True)
        log = after / "outbox" / "rows.sqlite-wal"
        with log.open("ab") as file:
            body = log.read_bytes()
            file.write(
                {
                    "clean": b"",
                    "half a frame": body[-PAGE - 24 : -PAGE // 2],
                    "garbage": random.Random(step).randbytes(9000),
                    "zeros": bytes(9000),
                    "a page of garbage in the file's end": b"",
                }[tail]
            )
        if tail.startswith("a page"):  # a new page that the log holds too: torn in the file, it is written again
            with box_file(after).open("ab") as file:
                file.write(random.Random(step).randbytes(PAGE // 3))
        again = opened(after, boot="after")
        assert again.epoch == outbox.epoch
        found = everything(again)
        assert appended.items() <= found.items()
        (gap,) = [record for key, record in found.items() if key not in appended]
        assert gap.reason == "restarted"
        (entry,) = append(again, reading(0))
        assert entry.seq > gap.seqs[0][1] > 1_000_000
        again.close()
    outbox.close()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 0.99])
def test_a_card_that_lost_what_it_said_it_had_written_never_gets_a_number_given_twice(tmp_path, share):
    outbox = opened(tmp_path / "gateway", Limits(spare=0, marks=3600), boot="before")
    appended = {}
    for step in range(50):
        records = [reading(10 * step + each) for each in range(10)]
        appended |= {(outbox.epoch, entry.seq): entry.record for entry in append(outbox, *records)}
    after = tmp_path / "after"
    shutil.copytree(tmp_path / "gateway", after)
    (after / "outbox" / "rows.sqlite-shm").unlink(missing_ok=True)
    log = after / "outbox" / "rows.sqlite-wal"
    os.truncate(log, int(log.stat().st_size * share))
    again = opened(after, boot="after")
    entry = append(again, reading(1))[0]
    assert (again.epoch, entry.seq) not in appended
    rows, _ = named(gaps_of(again))
    kept = everything(again)
    lost = [key for key in appended if key not in kept]
    assert lost or share > 0.9
    assert all(covers(rows[epoch], seq) for epoch, seq in lost)
    again.close()
    outbox.close()


def test_a_restart_without_a_power_cut_skips_no_numbers(tmp_path):
    outbox = opened(tmp_path, boot="one")
    append(outbox, reading(1))
    outbox.close()
    outbox = opened(tmp_path, boot="two")
    assert append(outbox, reading(2))[0].seq == 2
    outbox.close()


# --- without room -------------------------------------------------------------------------------------------------


def test_a_full_file_takes_nothing_by_halves_and_goes_on_when_there_is_room(tmp_path):
    outbox = opened(tmp_path)
    append(outbox, reading(0))
    (pages,) = outbox._base.execute("PRAGMA page_count").fetchone()
    outbox._base.execute(f"PRAGMA max_page_count = {pages + 4}")
    held, number = Holding(), 1
    with pytest.raises(OutboxFull, match="free some space"):
        while True:
            records = [reading(number + each, window=500) for each in range(20)]
            append(outbox, *records)
            number += 20
    held.hold(records)
    numbers = [record.tag_seq for record in everything(outbox).values()]
    assert numbers == list(range(number))
    assert outbox.count() == number
    assert outbox.counters["refused"] == 1
    outbox.acknowledge(outbox.epoch, [(1, outbox.last(outbox.epoch))])
    append(outbox, *held.records(stamp()))
    assert [record.tag_seq for record in everything(outbox).values()] == list(range(number, number + 20))
    outbox.close()


def test_a_process_that_may_write_no_more_keeps_what_it_committed(tmp_path):
    before = opened(tmp_path)
    append(before, reading(0, boot=9))
    before.close()
    done = subprocess.run(
        [sys.executable, CHILD, tmp_path, "1", str(400_000)], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    *numbers, last = done.stdout.split()
    assert last == "full"
    outbox = opened(tmp_path)
    kept = [record.tag_seq for record in everything(outbox).values() if record.tag_boot == 1]
    assert kept == list(range(int(numbers[-1]) + 1))
    assert append(outbox, reading(1))[0].seq == len(kept) + 2
    outbox.close()


def in_a_small_disk(folder, script, size="1m", options=""):
    """Run a script with its own small disk mounted at `folder`; skips where this machine gives nobody one."""
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    command = f'mount -t tmpfs -o size={size}{options} none "$1" && exec "$2" -c "$3" "$1"'
    probe = [*mount, 'mount -t tmpfs none "$1"', "sh", folder]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk of his own")
    path = os.pathsep.join([str(CHILD.parent), str(CHILD.parents[2])])
    done = subprocess.run(
        [*mount, command, "sh", folder, sys.executable, script],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL_DISK = """
import sys
from pathlib import Path
from typing import NamedTuple
from outbox_child import *
from twin_client.outbox.losses import Holding
folder = Path(sys.argv[1])
(folder / "other").write_bytes(bytes(600_000))
outbox = opened(folder)
held, number = Holding(50), 0
while True:
    records = [reading(number + each, window=500) for each in range(20)]
    number += 20
    try:
        assert not len(held)
        outbox.write(lambda t: t.append(records))
    except OutboxFull:
        held.hold(records)
        break
for number in range(number, number + 100):
    held.hold([reading(number, window=500)])
    try:
        outbox.write(lambda t: t.append(held.records(stamp())))
        raise SystemExit("a full disk took it")
    except OutboxFull:
        pass
(folder / "other").unlink()
outbox.write(lambda t: t.append(held.records(stamp())))
rows = everything(outbox)
_, lost = named(record for record in rows.values() if isinstance(record, Gap))
numbers = {record.tag_seq for record in rows.values() if isinstance(record, Reading)}
left = [each for each in range(number + 1) if each not in numbers and not covers(lost["tag-7", 3], each)]
assert left == [] and len(lost) == 1, left
outbox.close()
outbox = opened(folder)
assert everything(outbox) == rows
print("well", outbox.last(outbox.epoch))
"""


def test_a_full_disk_that_is_freed_again_costs_only_what_a_gap_names(tmp_path):
    assert "well" in in_a_small_disk(tmp_path, FULL_DISK)


READ_ONLY = """
import subprocess, sys
from pathlib import Path
from typing import NamedTuple
from outbox_child import *
folder = Path(sys.argv[1])
def card(how): subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)
outbox = opened(folder)
outbox.write(lambda t: t.append([reading(0)]))
outbox.close()
card("ro")
assert len(everything(Rows.look(folder))) == 1
try:
    outbox = opened(folder)
    raise SystemExit("it opened")
except OutboxFull as error:
    print(error)
card("rw")
outbox = opened(folder)
outbox.write(lambda t: t.append([reading(1)]))
assert [record.tag_seq for record in everything(outbox).values()] == [0, 1]
"""


def test_a_read_only_card_is_named_and_can_be_looked_at(tmp_path):
    assert "cannot be written" in in_a_small_disk(tmp_path, READ_ONLY)


def test_a_database_that_may_only_be_read_refuses_and_recovers(tmp_path):
    outbox = opened(tmp_path)
    append(outbox, reading(0))
    outbox._base.execute("PRAGMA query_only = ON")
    with pytest.raises(OutboxFull):
        append(outbox, reading(1))
    assert append(outbox, reading(1))[0].seq == 2
    outbox.close()


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(HighwallError, match="data"):
        opened(tmp_path / "data")


# --- damaged ------------------------------------------------------------------------------------------------------


def damage(path, page, kind, seed=0):
    with path.open("r+b") as file:
        file.seek(page * PAGE)
        file.write({"garbage": random.Random(seed).randbytes(PAGE), "zeros": bytes(PAGE)}[kind])


@pytest.mark.parametrize("kind", ["garbage", "zeros"])
def test_a_damaged_page_costs_its_own_rows_only_and_these_are_named(tmp_path, kind):
    appended = filled(tmp_path)
    pages = box_file(tmp_path).stat().st_size // PAGE
    damage(box_file(tmp_path), pages // 2, kind)
    outbox = opened(tmp_path)
    epoch = outbox.epoch
    found = everything(outbox)
    found |= everything(outbox)  # the second time all of it is readable
    assert outbox.epoch != epoch or next(iter(appended))[0] != outbox.epoch
    assert unaccounted(appended, {}, outbox) == []
    kept = [key for key in appended if key in found]
    assert 2900 <= len(kept) < 3000
    assert all(found[key] == appended[key] for key in kept)
    (gap,) = gaps_of(outbox)
    assert gap.reason == "corrupt"
    assert gap.epoch == next(iter(appended))[0]
    assert {lost.first for lost in gap.lost} == {None}
    assert {lost.subject: lost.last for lost in gap.lost} == {f"tag-{each}": 2995 + each for each in range(5)}
    assert (tmp_path / "outbox.corrupt-1" / "rows.sqlite").is_file()
    assert outbox.recall("rules") == b"state"
    assert append(outbox, reading(1))[0].seq == outbox.last(outbox.epoch)
    outbox.close()
    again = opened(tmp_path)
    assert again.epoch == outbox.epoch
    assert again.counters["damaged"] == 0
    again.close()


@pytest.mark.parametrize("harm", ["header", "all", "empty", "gone", "short", "text", "folder gone"])
def test_whatever_happens_to_the_file_all_is_here_or_named_and_no_number_is_given_twice(tmp_path, harm):
    appended = filled(tmp_path)
    path = box_file(tmp_path)
    size = path.stat().st_size
    if harm == "header":
        damage(path, 0, "garbage")
    elif harm == "all":
        path.write_bytes(random.Random(1).randbytes(size))
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "gone":
        path.unlink()
    elif harm == "short":
        os.truncate(path, size // 2 + 77)
    elif harm == "text":
        path.write_text("I am not a database")
    else:
        shutil.rmtree(path.parent)
    outbox = opened(tmp_path)
    found = everything(outbox)
    found = everything(outbox)
    assert unaccounted(appended, {}, outbox) == []
    assert outbox.epoch != next(iter(appended))[0]
    assert outbox.marks() == {f"tag-{each}": (3, 2995 + each) for each in range(5)}
    kept = len(found.keys() & appended.keys())
    assert kept >= {"header": 3000, "short": 1000}.get(harm, 0)
    outbox.close()


def test_damage_met_while_running_is_mended_without_a_restart(tmp_path):
    appended = filled(tmp_path)
    outbox = opened(tmp_path)
    old = outbox.epoch
    pages = box_file(tmp_path).stat().st_size // PAGE
    for page in range(pages // 2, pages // 2 + 4):
        damage(box_file(tmp_path), page, "garbage")
    outbox.acknowledge(old, [(1, 100)])
    told = {key: record for key, record in appended.items() if key[1] <= 100}
    with pytest.raises(Reborn):
        while True:
            with outbox.transaction() as t:
                t.append([reading(1)])
            outbox.acknowledge(old, [(1, outbox.last(old))]) if len(everything(outbox)) < 0 else None
            if outbox.epoch != old:
                raise Reborn("while reading")
    assert outbox.epoch != old
    assert unaccounted(appended, told, outbox) == []
    (gap,) = gaps_of(outbox)
    assert min(first for first, _ in gap.seqs) > 100
    assert append(outbox, reading(2))
    outbox.close()


def test_a_row_that_the_card_has_changed_is_never_sent(tmp_path):
    appended = filled(tmp_path, 300)
    body = box_file(tmp_path).read_bytes()
    at = body.rindex(b"tag-3")
    box_file(tmp_path).write_bytes(body[:at] + b"tag-9" + body[at + 5 :])
    outbox = opened(tmp_path)
    found = everything(outbox)
    assert not [record for record in found.values() if isinstance(record, Reading) and record.tag == "tag-9"]
    assert unaccounted(appended, {}, outbox) == []
    assert len(found.keys() & appended.keys()) == 299
    outbox.close()


def test_damaged_files_are_kept_twice_at_most_and_not_when_they_are_large(tmp_path):
    for _ in range(4):
        filled(tmp_path, 100)
        damage(box_file(tmp_path), 0, "garbage")
    opened(tmp_path).close()
    assert sorted(path.name for path in tmp_path.glob("outbox.corrupt-*")) == ["outbox.corrupt-1", "outbox.corrupt-2"]
    filled(tmp_path / "other", 3000)
    damage(box_file(tmp_path / "other"), 0, "garbage")
    opened(tmp_path / "other", Limits(spare=0, set_aside=100_000)).close()
    assert not list((tmp_path / "other").glob("outbox.corrupt-*"))


def test_an_older_copy_put_back_begins_a_new_epoch(tmp_path):
    outbox = opened(tmp_path)
    append(outbox, reading(1))
    outbox.close()
    shutil.copytree(tmp_path / "outbox", tmp_path / "copy")
    outbox = opened(tmp_path)
    old = outbox.epoch
    append(outbox, reading(2), reading(3))
    outbox.close()
    shutil.rmtree(tmp_path / "outbox")
    (tmp_path / "copy").rename(tmp_path / "outbox")
    outbox = opened(tmp_path)
    assert outbox.epoch != old
    rows, lost = named(gaps_of(outbox))
    assert rows.keys() == {old}
    assert subtract([(2, 3)], rows[old]) == []
    assert lost == {("tag-7", 3): [(0, 3)]}
    assert everything(outbox)[old, 1].tag_seq == 1
    outbox.close()


def test_the_card_of_another_gateway_begins_a_new_epoch_and_keeps_its_rows(tmp_path):
    outbox = opened(tmp_path)
    append(outbox, reading(1))
    outbox.close()
    other = opened(tmp_path, gateway="gw-2")
    assert other.epochs() == [outbox.epoch, other.epoch]
    assert gaps_of(other) == []
    assert other.acknowledge(outbox.epoch, [(1, 1)]) == 1
    assert other.epochs() == [other.epoch]
    other.close()


def test_a_file_of_a_newer_version_is_left_alone(tmp_path):
    outbox = opened(tmp_path)
    outbox._base.execute("PRAGMA user_version = 99")
    outbox.close()
    with pytest.raises(HighwallError, match="newer highwall"):
        opened(tmp_path)
    assert not list(tmp_path.glob("outbox.corrupt-*"))


@pytest.mark.parametrize("stage", ["building", "built", "set aside"])
def test_a_power_cut_while_beginning_anew_costs_nothing_more(tmp_path, stage):
    appended = filled(tmp_path)
    damage(box_file(tmp_path), 30, "zeros")
    shutil.copytree(tmp_path, tmp_path / "work")
    work = tmp_path / "work"
    if stage == "building":
        (work / "outbox.new").mkdir()
        (work / "outbox.new" / "rows.sqlite").write_bytes(b"half")
    else:
        mended = opened(tmp_path)
        everything(mended)
        everything(mended)
        mended.close()
        shutil.copytree(tmp_path / "outbox", work / "outbox.next")
        if stage == "set aside":
            (work / "outbox").rename(work / "outbox.corrupt-1")
    outbox = opened(work)
    everything(outbox)
    everything(outbox)
    assert unaccounted(appended, {}, outbox) == []
    assert not (work / "outbox.new").exists()
    assert not (work / "outbox.next").exists()
    assert len(list(work.glob("outbox.corrupt-*"))) == 1
    outbox.close()


def drained(outbox):
    """What the twin has when the outbox is empty; some damage is seen only then."""
    told = {}
    while left := [epoch for epoch in outbox.epochs() if outbox.first(epoch)]:
        told |= everything(outbox)
        for epoch in left:
            outbox.acknowledge(epoch, ranges_of(seq for known, seq in told if known == epoch))
    assert outbox.count() == 0
    return told


class Mixed(NamedTuple):
    folder: Path
    appended: dict

    def __repr__(self):  # of all of it would fill a failing test's report
        return str(self.folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder with an outbox of everything, in two epochs, and what was appended."""
    folder = tmp_path_factory.mktemp("mixed")
    appended = filled(folder, 400, window=300)
    outbox = opened(folder, gateway="gw-2")
    for step in range(5):
        readings = map(reading, range(20 * step, 20 * step + 20))
        records = [prediction(step, thumbnail=6000), alarm(step), health(), *readings]
        appended |= {(outbox.epoch, entry.seq): entry.record for entry in append(outbox, *records)}
    outbox.close()
    return Mixed(folder, appended)


@settings(max_examples=25, deadline=None)
@given(holes=st.lists(st.tuples(st.integers(0), st.integers(1, 9000), st.binary(min_size=1, max_size=4)), max_size=4))
def test_no_damage_whatever_makes_it_fail_or_lie(mixed, tmp_path_factory, holes):
    folder, appended = mixed
    work = tmp_path_factory.mktemp("damaged")
    shutil.copytree(folder, work, dirs_exist_ok=True)
    body = bytearray(box_file(work).read_bytes())
    for at, length, what in holes:
        begin = at % len(body)
        end = min(len(body), begin + length)
        body[begin:end] = (what * length)[: end - begin]
    box_file(work).write_bytes(body)
    outbox = opened(work, gateway="gw-2")
    told = drained(outbox)
    assert all(told[key] == record for key, record in appended.items() if key in told)
    assert unaccounted(appended, told, outbox) == []
    assert append(outbox, reading(1))
    outbox.close()
    shutil.rmtree(work)


def test_a_large_outbox_opens_at_once_and_takes_little_memory(tmp_path):
    outbox = opened(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    records = [reading(number, window=60_000) for number in range(100)]
    for _ in range(10):
        append(outbox, *records)
    outbox.close()
    assert box_file(tmp_path).stat().st_size > 50 << 20
    began = time.monotonic()
    outbox = opened(tmp_path)
    assert time.monotonic() - began < 1.0
    assert outbox.count() == 1000
    assert len(outbox.read(outbox.epoch, 1, 500, 100_000)) == 1
    outbox.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10
    assert Outbox
