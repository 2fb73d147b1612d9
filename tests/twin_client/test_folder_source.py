"""A folder of images: each becomes one capture, whole, in order, and once, whatever happens to the folder."""

import asyncio
import os
import time
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.runtime.errors import HighwallError
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.protocol.site import TimeWindow
from twin_client.sources.camera import Hours
from twin_client.sources.folder import KEY, FolderSettings, FolderSource

POLL = 0.05


class Inbox:
    """A folder and the source that looks at it; `begin` is what a restart does."""

    def __init__(self, path):
        self.path, self.said, self.mark, self.options = path, [], b"", {}
        path.mkdir(exist_ok=True)
        self.wall = 1_700_000_000
        self.begin()

    def begin(self, **options):
        self.options |= options
        settings = FolderSettings("tiles", str(self.path), **{"poll": POLL} | self.options)
        self.source = FolderSource(settings, self.now, self.said.append, self.mark)
        return self

    def now(self):
        return Stamp(self.wall * 1_000_000, 0, "boot-1", ClockQuality.NETWORK)

    def put(self, name, data=b"an image", age=0):
        """A file that was last changed `age` seconds before another of age 0."""
        path = self.path / name
        path.write_bytes(data)
        os.utime(path, (self.wall - age, self.wall - age))
        return path

    def done(self, capture, bad=False):
        self.mark = self.source.done(capture, bad)
        self.source.tidy(capture)

    async def take(self, count, patience=10.0, bad=False):
        """Names of the next `count` images, each done with; fewer where no more come for `patience` seconds."""
        names = []
        async with aclosing(self.source.captures()) as captures:
            while len(names) < count:
                try:
                    capture = await asyncio.wait_for(anext(captures), patience)
                except TimeoutError:
                    break
                names.append(capture.path.name)
                self.done(capture, bad)
        return names

    def taken(self, count=99, patience=0.4, bad=False):
        return asyncio.run(self.take(count, patience if count == 99 else 10.0, bad))


@pytest.fixture
def inbox(tmp_path):
    return Inbox(tmp_path / "inbox")


def test_images_come_in_order_of_their_time_and_each_once(inbox):
    for name, age in (("b.jpg", 3), ("a.PNG", 2), ("d.tiff", 1), ("c.jpg", 1), ("e.npy", 0)):
        inbox.put(name, age=age)
    inbox.put("notes.txt")
    inbox.put(".hidden.jpg")
    (inbox.path / "folder.jpg").mkdir()
    assert inbox.taken() == ["b.jpg", "a.PNG", "c.jpg", "d.tiff", "e.npy"]
    assert inbox.taken() == []
    assert inbox.source.counters["captured"] == 5


def test_a_file_that_is_still_written_is_waited_for(inbox):
    async def go():
        path = inbox.path / "slow.jpg"
        taking = asyncio.create_task(inbox.take(1))
        with path.open("wb") as handle:
            for _ in range(15):
                handle.write(b"x" * 1000)
                handle.flush()
                await asyncio.sleep(POLL / 4)
                assert not taking.done()
        await taking
        return path

    asyncio.run(go())
    assert inbox.source.counters["captured"] == 1


def test_an_empty_file_is_given_time_to_be_filled_and_then_taken_up_to_be_refused(inbox):
    inbox.begin(patience=0.5)
    inbox.put("empty.jpg", b"")
    begun = time.monotonic()
    assert inbox.taken(1) == ["empty.jpg"]
    assert time.monotonic() - begun >= 0.5


def test_a_camera_that_writes_over_one_file_again_and_again_is_understood(inbox):
    for age in (9, 6, 3):
        inbox.put("latest.jpg", age=age)
        assert inbox.taken(1) == ["latest.jpg"]
    assert inbox.taken() == []


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(1, 15), st.data())
def test_a_restart_anywhere_neither_repeats_an_image_nor_skips_one(tmp_path_factory, count, remember, data):
    inbox = Inbox(tmp_path_factory.mktemp("inbox")).begin(remember=remember)
    wanted = [inbox.put(f"{number:02}.jpg", age=count - number).name for number in range(count)]
    taken = []
    while len(taken) < count:
        taken += asyncio.run(inbox.take(data.draw(st.integers(1, count - len(taken)))))
        inbox.begin()
    assert taken == wanted
    assert asyncio.run(inbox.take(1, 4 * POLL)) == []


def test_an_image_that_was_given_out_without_a_record_is_given_out_again_under_another_number(inbox):
    for age in (2, 1, 0):
        inbox.put(f"{age}.jpg", age=age)
    inbox.begin(every=False)

    async def given_out():
        async with aclosing(inbox.source.captures()) as captures:
            return [await anext(captures) for _ in range(3)]

    first = asyncio.run(given_out())
    assert [capture.number for capture in first] == [0, 1, 2]
    inbox.done(first[1])
    inbox.begin(every=True)
    assert inbox.source.lost == (0, 2)
    assert inbox.taken() == ["2.jpg", "0.jpg"]
    inbox.put("new.jpg")

    async def last():
        async with aclosing(inbox.source.captures()) as captures:
            return (await anext(captures)).number

    assert asyncio.run(last()) == 5


def test_bad_images_are_counted_put_aside_and_never_tried_again(inbox):
    for after in ("leave", "move", "remove"):
        inbox.begin(bad=after)
        inbox.put(f"{after}.jpg")
        assert inbox.taken(1, bad=True) == [f"{after}.jpg"]
        assert inbox.source.counters["bad"] == 1
        assert inbox.begin().taken() == []
    assert sorted(path.name for path in inbox.path.iterdir()) == ["bad", "leave.jpg"]
    assert [path.name for path in (inbox.path / "bad").iterdir()] == ["move.jpg"]


def test_done_images_may_move_and_none_takes_the_place_of_another(inbox):
    inbox.begin(done="move")
    for age in (2, 1):
        inbox.put("latest.jpg", str(age).encode(), age=age)
        assert inbox.taken(1) == ["latest.jpg"]
    kept = sorted((inbox.path / "done").iterdir())
    assert [path.name for path in kept] == ["latest.1.jpg", "latest.jpg"]
    assert [path.read_bytes() for path in kept] == [b"1", b"2"]


def test_an_image_that_was_replaced_while_it_was_judged_is_not_removed(inbox):
    inbox.begin(done="remove")
    inbox.put("a.jpg", age=5)

    async def go():
        async with aclosing(inbox.source.captures()) as captures:
            capture = await anext(captures)
            inbox.put("a.jpg", b"another one")
            inbox.done(capture)

    asyncio.run(go())
    assert inbox.taken(1) == ["a.jpg"]
    assert list(inbox.path.iterdir()) == []


def test_images_that_cannot_be_put_away_are_said_once_and_not_judged_twice(inbox):
    inbox.begin(done="move")
    (inbox.path / "done").write_bytes(b"no folder")
    for number in range(3):
        inbox.put(f"{number}.jpg", age=-number)
    assert inbox.taken() == ["0.jpg", "1.jpg", "2.jpg"]
    assert inbox.source.counters["kept"] == 3
    assert len(inbox.said) == 1
    assert "cannot move" in inbox.said[0]


def test_a_folder_that_goes_is_said_once_and_taken_up_again_when_it_is_back(inbox):
    inbox.put("a.jpg", age=5)
    assert inbox.taken() == ["a.jpg"]
    away = inbox.path.rename(inbox.path.with_name("away"))

    async def go():
        taking = asyncio.create_task(inbox.take(1))
        await asyncio.sleep(8 * POLL)
        assert len(inbox.said) == 1
        with pytest.raises(HighwallError, match="no image"):
            await inbox.source.capture()
        away.rename(inbox.path)
        inbox.put("b.jpg")
        return await taking

    assert asyncio.run(go()) == ["b.jpg"]
    assert ["cannot be read" in said for said in inbox.said] == [True, False]
    assert "can be read again" in inbox.said[1]


def test_what_is_no_file_and_names_that_are_no_text_are_taken_as_they_come(inbox):
    os.mkfifo(inbox.path / "pipe.jpg")
    (inbox.path / "nowhere.jpg").symlink_to("gone.jpg")
    (inbox.path / "round.jpg").symlink_to("round.jpg")
    (inbox.path / "null.jpg").symlink_to(os.devnull)
    inbox.put(os.fsdecode(b"caf\xe9\n.jpg"))
    assert inbox.taken() == [os.fsdecode(b"caf\xe9\n.jpg")]
    assert inbox.said == []


def test_outside_the_hours_images_are_passed_by_and_counted(inbox):
    inbox.begin(hours=Hours((TimeWindow("00:00", "12:00"),)))
    inbox.wall = 1_700_000_000 // 86_400 * 86_400 + 13 * 3600
    inbox.put("afternoon.jpg")
    assert inbox.taken() == []
    inbox.wall += 12 * 3600
    inbox.put("morning.jpg")
    assert inbox.taken() == ["morning.jpg"]
    assert inbox.source.counters == {"captured": 1, "bad": 0, "outside": 1, "kept": 0}


def test_images_wait_for_one_another_even_while_others_are_captured_by_request(inbox):
    for number in range(3):
        inbox.put(f"{number}.jpg", age=9 - number)

    async def go():
        async with aclosing(inbox.source.captures()) as captures:
            first = await anext(captures)
            await inbox.source._look()
            newest = await inbox.source.capture()
            assert (first.path.name, newest.path.name) == ("0.jpg", "2.jpg")
            following = asyncio.ensure_future(anext(captures))
            inbox.done(newest)
            await asyncio.sleep(6 * POLL)
            assert not following.done()  # the first is not judged yet
            inbox.done(first)
            second = await asyncio.wait_for(following, 10)
            inbox.done(second)
            assert second.path.name == "1.jpg"
            with pytest.raises(TimeoutError):  # 2 was judged by request
                await asyncio.wait_for(anext(captures), 6 * POLL)

    asyncio.run(go())


def test_one_captured_by_request_makes_no_older_one_forgotten(inbox):
    inbox.begin(remember=2)
    for number in range(8):
        inbox.put(f"{number}.jpg", age=9 - number)

    async def newest():
        await inbox.source._look()
        await asyncio.sleep(POLL)
        inbox.done(await inbox.source.capture())

    asyncio.run(newest())
    first = inbox.taken(3)
    assert first + inbox.begin().taken() == [f"{number}.jpg" for number in range(7)]


def test_the_mark_is_bounded_and_a_folder_of_thousands_holds_nothing_up(inbox):
    inbox.begin(remember=50, every=False)
    for number in range(3000):
        inbox.put(f"{number}.jpg", age=3000 - number)
    late = []

    async def go():
        taking = asyncio.create_task(inbox.take(300))
        while not taking.done():
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            late.append(time.monotonic() - begun - 0.01)
        return await taking

    assert len(asyncio.run(go())) == 300
    assert len(inbox.mark) < 50 * KEY + 100
    assert sorted(late)[len(late) // 2] < 0.05
