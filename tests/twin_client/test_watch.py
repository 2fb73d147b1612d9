"""The watch: no model runs unproven, no image ends it, and none holds up the readings."""

import asyncio
import hashlib
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_models import ANN, BOB, CHIP, PIXELS, TRUST, write

from targets.runtime import artifact
from targets.runtime.artifact import InputSpec
from targets.runtime.errors import HighwallError
from twin_client.protocol.records import Prediction, Stamp
from twin_client.sources.camera import Capture
from twin_client.watch import Joined, Judging, Missed, Watch, WatchSettings
from twin_client.worker import Worker

NOW = Stamp(1_700_000_000_000_000, 3_000_000_000, "boot-1")
FELT = replace(CHIP, sensors=2)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Artifacts that are what they should be."""
    folder = tmp_path_factory.mktemp("shelf")
    return {
        "chip": write(folder / "chip.highwall"),
        "pixels": write(folder / "pixels.highwall", PIXELS, "segment"),
        "felt": write(folder / "felt.highwall", FELT),
    }


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def watch(shelf, worker):
    """Open the watch on one of the artifacts."""

    def opened(name="chip", **options):
        from targets.runtime.admit import admit

        limits = WatchSettings(**options)
        return Watch(admit(shelf[name], TRUST), worker, limits)

    return opened


def capture(path, number=0, at=NOW, camera="face"):
    return Capture(camera, number, at, path)


def picture(path, shape=(7, 5, 3), value=255):
    """An image file at `path`, as its suffix says."""
    pixels = np.full(shape, value, np.uint8)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


# --- what may run -----------------------------------------------------------------------------------------------------


def test_a_proven_model_judges_and_its_predictions_name_the_very_file(shelf, worker, tmp_path):
    watch = worker.call(lambda: Watch.open(shelf["chip"], TRUST, worker)).result(60)
    found = watch.submit(capture(picture(tmp_path / "a.png"), 4)).result(10)
    assert isinstance(found, Prediction)
    assert (found.camera, found.capture, found.at) == ("face", 4, NOW)
    assert found.model == hashlib.sha256(shelf["chip"].read_bytes()).hexdigest() == watch.digest
    assert found.probability == pytest.approx(1)
    assert (found.width, found.height, found.positive, found.threshold) == (5, 7, 35, 0.5)
    assert watch.counters["judged"] == 1


@pytest.mark.parametrize(
    ("says", "made", "options"),
    [
        ("not signed", {"key": None}, {}),
        ("calls itself bob", {"key": BOB}, {}),
        ("version 3 of tiny where 4 is the least", {}, {"version_floor": 4}),
        ("golden vectors", {"off": 0.25}, {}),
        ("MiB of memory", {"spec": InputSpec(1600, 1600, 3, "uint8")}, {"settings": WatchSettings(memory=1)}),
    ],
)
def test_a_model_that_fails_a_check_does_not_run_and_the_check_is_named(says, made, options, worker, tmp_path):
    with pytest.raises(HighwallError, match=says) as caught:
        Watch.open(write(tmp_path / "a.highwall", **made), TRUST, worker, **options)
    assert str(tmp_path / "a.highwall") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tampered_model_does_not_run(shelf, worker, tmp_path):
    data = bytearray(shelf["chip"].read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.highwall").write_bytes(data)
    with pytest.raises(HighwallError, match=r"a\.highwall"):
        Watch.open(tmp_path / "a.highwall", TRUST, worker)


def test_no_model_goes_backwards(shelf, worker, tmp_path):
    installed = artifact.read(write(tmp_path / "new.highwall", version=5))
    with pytest.raises(HighwallError, match="version 3 of tiny where 5 is installed"):
        Watch.open(shelf["chip"], TRUST, worker, installed=installed)


def test_a_gateway_without_a_model_loads_neither_numpy_nor_pillow_nor_an_engine(root):
    script = (
        "import sys, twin_client.watch, twin_client.sources.folder\n"
        "print([name for name in ('numpy', 'PIL', 'onnxruntime', 'cryptography') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# --- what is said of an image -----------------------------------------------------------------------------------------


def test_a_map_s_components_are_boxed_the_largest_first_and_specks_left_out(watch, tmp_path):
    image = np.zeros((41, 57, 1), np.uint16)
    image[2:5, 3:9] = 60000  # 18 pixels
    image[20:30, 40:42] = 65535  # 20
    image[35, 1:6] = 65535  # 5
    image[39, 50] = 65535  # a speck
    np.save(tmp_path / "a.npy", image)
    found = watch("pixels").judge(capture(tmp_path / "a.npy"), judging=Judging(least=5, boxes=2))
    assert [(box.left, box.top, box.right, box.bottom) for box in found.boxes] == [(40, 20, 42, 30), (3, 2, 9, 5)]
    assert [box.score for box in found.boxes] == pytest.approx([1, 60000 / 65535], abs=1e-6)
    assert (found.positive, found.width, found.height) == (18 + 20 + 5 + 1, 57, 41)
    assert found.probability == pytest.approx(1)


def test_a_classifier_s_windows_are_counted_and_boxed(watch, tmp_path):
    image = np.zeros((21, 10, 3), np.uint8)
    image[7:14, 5:] = 255
    np.save(tmp_path / "a.npy", image)
    found = watch().judge(capture(tmp_path / "a.npy"))
    assert [(box.left, box.top, box.right, box.bottom) for box in found.boxes] == [(5, 7, 10, 14)]
    assert found.positive == 35


@pytest.mark.parametrize(("threshold", "positive"), [(None, 0), (0.25, 35), (1.0, 0)])
def test_a_camera_may_have_its_own_threshold(watch, tmp_path, threshold, positive):
    path = picture(tmp_path / "a.png", value=100)
    found = watch().judge(capture(path), judging=Judging(threshold=threshold))
    assert (found.positive, found.threshold) == (positive, 0.5 if threshold is None else threshold)


def test_at_night_nothing_is_judged(watch, tmp_path):
    watch = watch()
    dusk = Judging(darkest=0.2)
    dark, light = picture(tmp_path / "d.png", value=40), picture(tmp_path / "l.png", value=60)
    assert watch.judge(capture(dark), judging=dusk).why == "dark"
    assert isinstance(watch.judge(capture(light), judging=dusk), Prediction)
    assert watch.counters["dark"] == 1


def test_no_thumbnail_is_made_where_none_is_wanted(watch, tmp_path):
    path = picture(tmp_path / "a.png", (60, 80, 3))
    assert watch().judge(capture(path), judging=Judging(thumbnail=0)).thumbnail == b""
    assert watch().judge(capture(path)).thumbnail.startswith(b"\xff\xd8")


# --- images that are none ---------------------------------------------------------------------------------------------


def test_what_cannot_be_judged_is_said_in_one_line_and_the_next_image_is_judged(watch, tmp_path):
    watch = watch(pixels=100_000)
    whole = picture(tmp_path / "whole.png", (64, 64, 3)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "junk.jpg").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "a folder.png").mkdir()
    np.save(tmp_path / "deep.npy", np.full((20, 20, 3), 300, np.uint16))
    np.save(tmp_path / "nan.npy", np.full((20, 20, 3), np.nan, np.float32))
    picture(tmp_path / "grey.png", (20, 20))
    picture(tmp_path / "small.png", (6, 5, 3))
    picture(tmp_path / "huge.png", (400, 251, 3))
    picture(tmp_path / "huge.npy", (400, 251, 3))
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    bad = [path for path in sorted(tmp_path.iterdir()) if path.name != "whole.png"]
    for path in (*bad, tmp_path / "gone.png"):
        found = watch.judge(capture(path))
        assert isinstance(found, Missed), path
        assert found.why == "unreadable"
        assert found.text.isprintable()
        assert path.name in found.text or "too" in found.text or "smaller" in found.text
        assert isinstance(watch.judge(capture(tmp_path / "whole.png")), Prediction)
    assert watch.counters["unreadable"] == len(bad) + 1


@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (3, 200), (211, 2), (97, 61)])
def test_an_image_of_any_size_has_a_prediction(watch, tmp_path, shape):
    np.save(tmp_path / "a.npy", np.full((*shape, 1), 40_000, np.uint16))
    found = watch("pixels").judge(capture(tmp_path / "a.npy"))
    assert (found.height, found.width) == shape
    assert found.positive == shape[0] * shape[1]


@pytest.mark.parametrize("error", [ValueError("broken\nengine"), MemoryError(), HighwallError("no number")])
def test_an_engine_that_fails_costs_that_image_only(watch, tmp_path, error):
    class Broken:
        def run(self, image, sensors=None):
            raise error

    watch, path = watch(), picture(tmp_path / "a.png")
    sound, watch.session = watch.session, Broken()
    found = watch.submit(capture(path)).result(10)
    assert (found.why, found.text.isprintable()) == ("failed", True)
    watch.session = sound
    assert isinstance(watch.submit(capture(path)).result(10), Prediction)
    assert (watch.counters["failed"], watch.counters["judged"]) == (1, 1)


# --- two inputs -------------------------------------------------------------------------------------------------------


def test_a_model_of_two_inputs_is_run_with_a_window_that_is_valid_and_recent_or_not_at_all(watch, tmp_path):
    watch, path = watch("felt", stale=60), picture(tmp_path / "a.png")

    def judged(features, seconds=0.0, boot="boot-1"):
        at = Stamp(0, NOW.mono - int(seconds * 1e6), boot)  # its wall time may be wrong
        return watch.judge(capture(path), Joined(("tag-9", 2, 77), features, at))

    found = judged((0.25, 0.5), 60)
    assert found.joined == ("tag-9", 2, 77)
    assert found.probability == pytest.approx(0.375)
    refused = [
        watch.judge(capture(path)),
        judged((0.25, 0.5), 60.1),
        judged((0.25, 0.5), boot="boot-0"),
        judged((0.25,)),
        judged((0.25, float("nan"))),
    ]
    assert [missed.why for missed in refused] == ["unjoined"] * 5
    assert watch.counters["unjoined"] == 5


# --- the thread -------------------------------------------------------------------------------------------------------


def test_a_flood_of_images_never_holds_up_the_loop_the_newest_is_judged_and_the_rest_counted(watch, tmp_path):
    watch = watch()
    slow = picture(tmp_path / "slow.npy", (400, 400, 3))  # thousands of runs

    async def flood():
        late, ended = [], asyncio.Event()

        async def readings():
            while not ended.is_set():
                begun = time.monotonic()
                await asyncio.sleep(0.01)
                late.append(time.monotonic() - begun - 0.01)

        ticking = asyncio.create_task(readings())
        waiting = []
        for number in range(200):
            waiting.append(asyncio.wrap_future(watch.submit(capture(slow, number))))
            await asyncio.sleep(0.005)
        found = await asyncio.gather(*waiting)
        ended.set()
        await ticking
        return found, sorted(late)

    found, late = asyncio.run(flood())
    judged = [number for number, each in enumerate(found) if isinstance(each, Prediction)]
    assert 199 in judged
    assert 1 < len(judged) < 150
    assert [each.capture for each in found] == list(range(200))
    assert watch.counters["overrun"] == 200 - len(judged)
    assert watch.counters["judged"] == len(judged)
    assert late[len(late) // 2] < 0.05
    assert late[-1] < 1.0  # a machine that does other things too


def test_a_model_that_gets_on_is_told_from_one_that_hangs(shelf, tmp_path):
    from targets.runtime.admit import admit

    now = [100.0]
    worker = Worker(clock=lambda: now[0])
    watch = Watch(admit(shelf["chip"], TRUST), worker, WatchSettings(hang=30))
    runs, go_on = threading.Semaphore(0), threading.Semaphore(0)
    engine = watch.session._engine

    class Slow:
        def run(self, image, sensors=None):
            runs.release()
            go_on.acquire()
            return engine.run(image, sensors)

    watch.session._engine = Slow()
    now[0] += 1000
    assert not watch.hung()  # idle
    answer = watch.submit(capture(picture(tmp_path / "a.png", (7, 10, 3))))
    for step in range(2):  # two tiles, each slow but not too slow
        assert runs.acquire(timeout=10), step
        now[0] += 29
        assert not watch.hung()
        if step == 0:
            go_on.release()
    now[0] += 2
    assert watch.hung()
    assert watch.progress() == now[0] - 31
    go_on.release()
    assert isinstance(answer.result(10), Prediction)
    assert not watch.hung()
    worker.close()


def test_pieces_of_the_latest_images_are_kept_where_most_was_found(watch, tmp_path):
    watch = watch("pixels", recent=3)
    for place in range(5):
        image = np.zeros((30, 30, 1), np.uint16)
        image[5 * place, 29 - 5 * place] = 65535
        np.save(tmp_path / f"{place}.npy", image)
        watch.judge(capture(tmp_path / f"{place}.npy"))
    kept = watch.recent(99)
    assert [piece.shape for piece, _ in kept] == [PIXELS.shape] * 3
    assert all(piece.max() == 65535 for piece, _ in kept)
    assert [piece is other for (piece, _), (other, _) in zip(watch.recent(2), kept[1:], strict=True)] == [True] * 2
    assert watch.recent(0) == []


def test_a_large_image_s_memory_goes_back_when_it_is_judged(shelf, root, tmp_path):
    (tmp_path / "ann.pub").write_text(f"{ANN.public.line}\n")
    np.save(tmp_path / "small.npy", np.zeros((40, 40, 1), np.uint16))
    np.save(tmp_path / "large.npy", np.zeros((700, 3000, 1), np.uint16))
    script = """
import sys
from pathlib import Path
from targets.runtime.trust import load_trust
from twin_client.health import memory
from twin_client.protocol.records import Stamp
from twin_client.sources.camera import Capture
from twin_client.watch import Watch
from twin_client.worker import Worker

artifact, folder = Path(sys.argv[1]), Path(sys.argv[2])
worker = Worker()
watch = worker.call(lambda: Watch.open(artifact, load_trust(folder / "ann.pub"), worker)).result()
for name in ("small", "large", "large"):
    found = watch.submit(Capture("face", 0, Stamp(1, 1, "b"), folder / f"{name}.npy")).result()
    print(found.width, memory() or 0)
"""
    command = [sys.executable, "-c", script, shelf["pixels"], tmp_path]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    widths, held = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert widths == (40, 3000, 3000)
    assert max(held) - held[0] < 8 * 2**20  # of the image, its map and mask, which have 15 MB
