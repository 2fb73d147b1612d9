"""The model update: over a bad link, from a lying server, with a bad model, and killed anywhere."""

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from reference_twin import Authority, Shelf, Twin, stamp

from targets.runtime import artifact, golden
from targets.runtime.artifact import InputSpec, Manifest
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError
from targets.runtime.footprint import Footprint
from targets.runtime.signing import SigningKey
from targets.runtime.trust import Trust, TrustedKey
from twin_client.protocol.orders import UpdateModel
from twin_client.protocol.records import Stamp
from twin_client.services import folder as disk
from twin_client.services import tls
from twin_client.services.download import Download, Link
from twin_client.services.execution import Failed, Refused
from twin_client.services.models import Models, Probation
from twin_client.services.registration import Registration
from twin_client.services.update import Model, Shadow, Shot, Surroundings, Update

QUICK = Link(patience=1.0, tries=4, first=0.0, most=0.0, reserve=0)
ANN, BOB = SigningKey("ann", bytes(range(32))), SigningKey("bob", b"\x07" * 32)
SPEC = InputSpec(7, 5, 3, "uint8")


def model_of(gain: float) -> bytes:
    """ONNX bytes: probability = mean of all pixels / 255 * gain."""
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "gain"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["probability"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("gain", TensorProto.FLOAT, [1], [gain / 255]),
        helper.make_tensor("shape", TensorProto.INT64, [2], [1, 1]),
    ]
    feed = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *SPEC.shape])
    result = helper.make_tensor_value_info("probability", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(nodes, "tiny", [feed], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def artifact_of(version: int, gain: float = 1.0, key: SigningKey | None = ANN, off: float = 0.0, **changes) -> bytes:
    """An artifact's bytes; `off` makes its golden vectors wrong."""
    manifest = Manifest(
        "tiny", "classify", version, SPEC, (1,), 0.5, ("sound", "crack"), "rpi4b", "onnx", {"precision": "fp32"}, {}
    )
    model = model_of(gain)
    vectors = golden.make(open_session("onnx", model), SPEC, [1, 2], None, block=2, tolerance=1e-6)
    vectors = replace(vectors, expected=vectors.expected + np.float32(off))
    return artifact.encode(replace(manifest, **changes), model, vectors, {"size": len(model)}, key)


OLD, NEW = artifact_of(3), artifact_of(4, 1.01)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pictures(count=9):
    return [Shot(np.full(SPEC.shape, 255 * at // count, np.uint8)) for at in range(count)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A twin and a gateway that it has enrolled."""
    folder = tmp_path_factory.mktemp("site")
    authority = Authority()
    with Twin(authority, authority.server(folder)) as twin:
        gateway = Registration(folder / "identity", stamp)
        gateway.begin(twin.url, authority.invite(), "pit-7")
        asyncio.run(gateway.wait(print))
        yield twin, gateway.identity()


@pytest.fixture(autouse=True)
def light():
    """The memory trial, in a process of its own, has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:  # its own, since some tests undo theirs halfway
        patch.setattr("targets.runtime.admit.measure", lambda *_, **__: Footprint(1.0, 1.0, 1.0))
        yield


class Agent:
    """A gateway's models and what it does with them; `loaded` is what the watch was told to load."""

    def __init__(self, folder, site, own=None, **options):
        self.folder, self.twin, self.identity, self.own = folder, site[0], site[1], own
        self.shots, self.loaded, self.refuses, self.seconds = pictures(), [], False, 0.0
        self.options, self.trust = options, Trust((TrustedKey(ANN.public),), "ann.pub")
        self.begin()

    def begin(self):
        self.models = Models(self.folder, self.now, Probation(seconds=600, failures=3, starts=3), self.own)
        path = self.models.start()
        self.session = None if path is None else self.load(path)
        around = Surroundings(
            now=self.now,
            context=self.identity.context,
            trust=lambda: self.trust,
            heavy=asyncio.to_thread,
            recent=lambda count: self.shots[-count:],
            running=lambda: self.session,
            reload=self.reload,
        )
        self.update = Update(self.models, around, **{"link": QUICK, **self.options})

    def now(self) -> Stamp:
        return Stamp(stamp().wall, int(self.seconds * 1e6), "boot", stamp().clock)

    def load(self, path):
        known = artifact.read(path)
        return Model(open_session("onnx", known.model), known.manifest)

    async def reload(self, path):
        self.loaded.append(path)
        if self.refuses and path == self.models.current and len(self.loaded) == 1:
            raise HighwallError("out of memory")
        self.session = None if path is None else self.load(path)

    def install(self, data=OLD):
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "given.part"
        path.write_bytes(data)
        self.models.switch(path, digest(data))
        self.begin()

    def order(self, data=NEW, shelf=None, **changes) -> UpdateModel:
        path = f"/twin/{random.randrange(10**9)}"
        self.twin.files[path] = self.shelf = shelf or Shelf(data)
        url = f"https://127.0.0.1:{self.twin.port}{path}"
        return UpdateModel(**{"url": url, "sha256": digest(data), "size": len(data), **changes})

    def run(self, order):
        return asyncio.run(self.update.run(order))

    def refusal(self, order, kind=HighwallError) -> str:
        before = self.models.current
        with pytest.raises(kind) as caught:
            self.run(order)
        assert "\n" not in str(caught.value)
        assert self.models.current == before
        return str(caught.value)


@pytest.fixture
def agent(tmp_path, site):
    agent = Agent(tmp_path / "models", site)
    agent.install()
    return agent


# --- the whole way --------------------------------------------------------------------------------------


def test_a_good_model_is_fetched_proven_run_in_the_shadow_and_put_in_use(agent):
    done = agent.run(agent.order())
    assert agent.models.current.read_bytes() == NEW and agent.models.on_trial
    assert agent.loaded == [agent.models.current]
    assert done.figures["images"] == 9 and 0 < done.figures["max_difference"] < 0.02
    assert done.text == "tiny version 4 is in use, shadow run on 9 images; it is on trial"
    assert {path.name for path in agent.folder.iterdir()} == {
        "models.json",
        f"{digest(OLD)}.highwall",
        f"{digest(NEW)}.highwall",
    }


def test_the_same_model_again_is_done_at_once(agent):
    order = agent.order()
    agent.run(order)
    assert "already" in agent.run(order).text and len(agent.shelf.asked) == 1


def test_the_first_model_of_a_gateway_needs_no_shadow_and_no_way_back(tmp_path, site):
    agent = Agent(tmp_path / "models", site)
    done = agent.run(agent.order())
    assert "without a shadow run" in done.text and not agent.models.on_trial


def test_no_stranger_gets_a_model_and_none_is_taken_from_one(agent, tmp_path):
    order = agent.order()
    stranger = Authority("someone else's")
    with Twin(stranger, stranger.server(tmp_path)) as impostor:
        impostor.files["/m"] = Shelf(NEW)
        url = f"https://127.0.0.1:{impostor.port}/m"
        assert "refused" in agent.refusal(agent.order(url=url))
        assert impostor.files["/m"].asked == []
    bare = tls.context_for(agent.twin.authority.pem)
    part = tmp_path / "x.part"
    with pytest.raises(HighwallError, match="403"):
        download = Download(order.url, order.sha256, order.size, part, QUICK)
        asyncio.run(download.run(bare, lambda connection: None))


# --- a bad link and a lying server ----------------------------------------------------------------------


def test_a_download_goes_on_where_it_broke_off_wherever_that_was(agent):
    draw = random.Random(3)
    left, drops = len(NEW), []
    while left > 200 and len(drops) < 12:
        drops.append(draw.randrange(1, left // 2))
        left -= drops[-1]
    agent.run(agent.order(shelf=Shelf(NEW, drops=list(drops))))
    begins = [headers.get("Range", "bytes=0-") for headers in agent.shelf.asked]
    assert begins == [f"bytes={sum(drops[:at])}-" for at in range(len(drops) + 1)]
    assert all(headers["If-Range"] == '"one"' for headers in agent.shelf.asked[1:])


def test_a_download_goes_on_after_the_agent_was_ended(agent):
    order = agent.order(shelf=Shelf(NEW, drops=[300, 0, 0, 0, 0]))
    assert "300 of" in agent.refusal(order)
    agent.begin()
    agent.shelf.drops.clear()
    agent.run(order)
    assert agent.shelf.asked[-1]["Range"] == "bytes=300-"


def test_a_server_without_ranges_or_marks_serves_all_of_it_again(agent):
    agent.run(agent.order(shelf=Shelf(NEW, drops=[300, 5], ranges=False, etag=None)))
    assert agent.models.current.read_bytes() == NEW


def test_a_file_that_changed_meanwhile_is_not_glued_together(agent):
    order = agent.order(shelf=Shelf(NEW, drops=[300, 0, 0, 0, 0]))
    agent.refusal(order)
    agent.shelf.drops.clear()
    agent.shelf.etag = '"two"'
    agent.run(order)
    assert agent.models.current.read_bytes() == NEW


def test_a_partial_file_with_a_spoilt_tail_is_fetched_once_more_whole(agent):
    order = agent.order(shelf=Shelf(NEW, drops=[300, 0, 0, 0, 0]))
    agent.refusal(order)
    part = agent.folder / f"{order.sha256}.part"
    part.write_bytes(part.read_bytes()[:200] + bytes(100))
    agent.shelf.drops.clear()
    agent.run(order)
    assert agent.models.current.read_bytes() == NEW


def test_a_partial_file_longer_than_the_file_is_fetched_anew(agent):
    order = agent.order()
    (agent.folder / f"{order.sha256}.part").write_bytes(NEW + b"more")
    agent.run(order)


@pytest.mark.parametrize(
    ("shelf", "changes", "says"),
    [
        (Shelf(NEW[:99] + bytes([NEW[99] ^ 1]) + NEW[100:]), {}, "another SHA-256"),
        (Shelf(NEW + b"x"), {}, f"has {len(NEW) + 1} bytes"),
        (Shelf(NEW[:-9]), {}, f"has {len(NEW) - 9} bytes"),
        (Shelf(NEW, stated=len(NEW) + 50), {}, "bytes, the command says"),
        (Shelf(NEW, stated=10**15), {}, "the command says"),
        (Shelf(NEW + bytes(200_000), stated=-1), {}, f"more than {len(NEW)} bytes"),
        (Shelf(NEW[:-9], stated=-1), {}, "are kept"),
        (Shelf(NEW, drops=[40], claimed=10**9), {}, f"has {10**9} bytes"),
        (Shelf(NEW, drops=[40] * 9, shift=3), {}, "are kept"),
        (Shelf(NEW, status=404), {}, "answers 404"),
        (Shelf(NEW, status=302), {}, "answers 302"),
        (Shelf(NEW, status=503), {}, "answers 503"),
        (Shelf(NEW), {"size": len(NEW) - 1}, "the command says"),
    ],
)
def test_a_server_that_lies_or_fails_changes_nothing_and_leaves_no_flood(agent, shelf, changes, says):
    assert says in agent.refusal(agent.order(shelf=shelf, **changes))
    assert all(path.stat().st_size <= len(NEW) for path in agent.folder.iterdir())
    assert len(shelf.asked) <= 10


def test_a_server_that_falls_silent_is_given_up(agent, monkeypatch):
    async def stalled(reader, writer):
        await asyncio.sleep(30)

    async def go():
        server = await asyncio.start_server(stalled, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        order = agent.order(url=f"https://127.0.0.1:{port}/m")
        agent.update._link = Link(patience=0.1, tries=2, first=0.0, most=0.0, reserve=0)
        with pytest.raises(HighwallError, match=r"not reached in 0\.1 s"):
            await agent.update.run(order)
        server.close()

    asyncio.run(go())


def test_space_is_looked_for_before_anything_is_fetched(agent):
    agent.update._link = Link(reserve=10**18)
    assert "bytes free" in agent.refusal(agent.order())
    assert agent.shelf.asked == []


def test_a_disk_that_fills_up_keeps_what_came_and_the_model_in_use(agent, tmp_path, root):
    """In a child that may write no longer file than this: what a full disk looks like to a writer."""
    order = agent.order()
    script = f"""
import asyncio, resource, signal, ssl, sys
sys.path[:0] = [{str(root / "tests" / "twin_client")!r}]
from pathlib import Path
from targets.runtime.errors import HighwallError
from twin_client.services.download import Download, Link
from twin_client.services import tls
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
identity = Path({str(agent.identity.key.parent)!r})
context = tls.context_for((identity / "ca.pem").read_text(), identity / "certificate.pem", identity / "key.pem")
part = Path({str(agent.folder)!r}) / "{order.sha256}.part"
download = Download({order.url!r}, {order.sha256!r}, {order.size}, part, Link(reserve=0))
try:
    asyncio.run(download.run(context, lambda connection: None))
except HighwallError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert "cannot write" in done.stdout and "400 bytes are kept" in done.stdout, done.stdout + done.stderr
    agent.run(order)
    assert agent.shelf.asked[-1]["Range"] == "bytes=400-"


# --- a bad model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (artifact_of(4, key=None), "not signed"),
        (artifact_of(4, key=BOB), "calls itself bob"),
        (artifact_of(2), "version 2 of tiny where 3 is installed"),
        (artifact_of(3, 1.5), "yet has that number"),
        (artifact_of(9, name="other"), "model other where tiny is installed"),
        (artifact_of(4, off=0.5), "golden vectors"),
        (b"not an artifact at all", "not a Highwall artifact"),
    ],
    ids=["unsigned", "untrusted", "older", "same number", "other", "golden", "junk"],
)
def test_a_model_that_verify_would_refuse_is_refused_and_forgotten(agent, data, says):
    assert says in agent.refusal(agent.order(data))
    assert not list(agent.folder.glob("*.part*")) and agent.loaded == []


def test_a_model_that_judges_recent_images_otherwise_is_refused_with_the_figures(agent):
    data = artifact_of(4, 0.1)
    with pytest.raises(Failed, match="differs too much") as caught:
        agent.run(agent.order(data))
    figures = caught.value.figures
    assert figures["images"] == 9 and figures["changed"] == pytest.approx(4 / 9)
    assert agent.models.current.read_bytes() == OLD
    assert "in use" in agent.run(agent.order(data, shadow=False)).text  # on somebody's word


def test_few_images_say_nothing(agent):
    agent.shots = pictures(3)
    assert "without a shadow run" in agent.run(agent.order(artifact_of(4, 0.1))).text


def test_models_of_different_inputs_are_not_compared_but_on_the_issuer_s_word(agent):
    other = replace(SPEC, sensors=2)
    old = agent.session
    agent.session = Model(old.session, replace(old.manifest, input=other))
    assert "cannot be compared" in agent.refusal(agent.order(), Failed)
    assert "in use" in agent.run(agent.order(shadow=False)).text


def test_a_model_that_cannot_judge_an_image_of_the_old_one_s_is_refused(agent):
    big = replace(agent.session.manifest, input=replace(SPEC, height=3, width=3))

    class Small:
        def run(self, image, sensors=None):
            return np.zeros(1, np.float32)

    agent.session = Model(Small(), big)
    agent.shots = [Shot(np.zeros((3, 3, 3), np.uint8))] * 9
    assert "cannot judge an image" in agent.refusal(agent.order(), Failed)


def test_a_model_that_cannot_be_put_in_use_gives_way_at_once(agent):
    agent.refuses = True
    assert "out of memory" in agent.refusal(agent.order(), Failed)
    assert agent.loaded[-1].read_bytes() == OLD and not agent.models.on_trial


# --- the way back ---------------------------------------------------------------------------------------


def test_failures_in_a_new_model_s_trial_bring_the_old_one_back(agent):
    agent.run(agent.order())
    assert [agent.models.failed("not a number") for _ in range(3)] == [False, False, True]
    assert agent.models.current.read_bytes() == OLD
    assert "not a number" in agent.models.returned
    assert not agent.models.failed("the old one may fail as it likes")
    agent.begin()
    assert agent.models.current.read_bytes() == OLD and "not a number" in agent.models.returned


def test_failures_count_over_restarts(agent):
    agent.run(agent.order())
    for expected in (False, False, True):
        assert agent.models.failed("x") is expected
        if not expected:
            agent.models.stop()
            agent.begin()


def test_an_agent_that_crashes_with_a_new_model_has_the_old_one_after_three_starts(agent):
    agent.run(agent.order())
    contents = []
    for _ in range(5):
        agent.begin()
        contents.append(agent.models.current.read_bytes())
    assert contents == [NEW, NEW, NEW, OLD, OLD]
    assert "3 times" in agent.models.returned


def test_orderly_stops_are_not_held_against_a_model(agent):
    agent.run(agent.order())
    for _ in range(9):
        agent.begin()
        agent.models.stop()
    assert agent.models.current.read_bytes() == NEW


def test_a_model_that_worked_long_enough_stays(agent):
    agent.run(agent.order())
    agent.seconds += 599
    assert not agent.models.worked()
    agent.seconds += 1
    assert agent.models.worked() and not agent.models.on_trial
    assert not any(agent.models.failed("x") for _ in range(9))
    assert agent.models.current.read_bytes() == NEW


def test_a_model_on_trial_is_not_replaced_by_another(agent):
    agent.run(agent.order())
    assert "on trial" in agent.refusal(agent.order(artifact_of(5)), Refused)


def test_a_model_whose_file_is_gone_gives_way(agent):
    agent.run(agent.order())
    agent.models.current.unlink()
    agent.begin()
    assert agent.models.current.read_bytes() == OLD


# --- kills ----------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    pass


def test_the_power_may_go_at_every_step_of_a_switch(tmp_path, site, monkeypatch):
    """Each write in turn is the last one, before or after it happened; the update begun again always ends well."""
    real = {name: getattr(disk, name) for name in ("save", "save_state", "sync_folder", "remove")}
    for limit in range(40):
        agent = Agent(tmp_path / str(limit), site)
        agent.install()
        order, left = agent.order(), [limit]

        def cut(call, left=left, late=bool(limit % 2)):
            def step(*arguments, **options):
                left[0] -= 1
                if left[0] == -1:
                    raise PowerCut
                result = call(*arguments, **options)
                if left[0] == 0 and late:
                    left[0] = -9
                    raise PowerCut
                return result

            return step

        for name, call in real.items():
            monkeypatch.setattr(disk, name, cut(call))
        cut_off = True
        with contextlib.suppress(PowerCut):
            agent.run(order)
            cut_off = False
        monkeypatch.undo()
        agent.begin()
        assert agent.models.current.read_bytes() in (OLD, NEW)
        agent.run(order)
        assert agent.models.current.read_bytes() == NEW
        for _ in range(4):
            agent.begin()
        assert agent.models.current.read_bytes() == OLD  # the way back is always there
        if not cut_off:
            break
    assert 3 < limit < 39


def test_a_model_that_was_renamed_already_when_the_power_went_is_not_fetched_again(agent):
    order = agent.order()
    agent.models.path(order.sha256).write_bytes(NEW)
    agent.begin()
    agent.run(order)
    assert agent.models.current.read_bytes() == NEW and agent.shelf.asked == []


CHILD = """
import sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from types import SimpleNamespace
from test_update import Agent, Shadow
from twin_client.protocol.orders import UpdateModel
from twin_client.services import tls
held = Path(sys.argv[3])
context = lambda: tls.context_for((held / "ca.pem").read_text(), held / "certificate.pem", held / "key.pem")
agent = Agent(Path(sys.argv[2]), (None, SimpleNamespace(context=context)))
order = UpdateModel(sys.argv[4], sys.argv[5], int(sys.argv[6]))
print("up", flush=True)
agent.run(order)
"""


def test_kill_9_at_random_points_leaves_the_old_model_or_the_new_one_whole(agent, root):
    draw = random.Random(8)
    order = agent.order(shelf=Shelf(NEW, drops=[draw.randrange(60) for _ in range(400)]))
    here = str(root / "tests" / "twin_client")
    words = [here, agent.folder, agent.identity.key.parent, order.url, order.sha256, str(order.size)]
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, *words], cwd=root, stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        current = Models(agent.folder, agent.now).current
        assert current.read_bytes() in (OLD, NEW)
    agent.shelf.drops.clear()
    agent.begin()
    if agent.models.digest != order.sha256:
        agent.run(order)
        assert agent.models.current.read_bytes() == NEW


def test_only_one_unfinished_download_takes_up_room(agent):
    first = agent.order(shelf=Shelf(NEW, drops=[300] + [0] * 9))
    agent.refusal(first)
    second = artifact_of(5, 1.02)
    agent.refusal(agent.order(second, shelf=Shelf(second, drops=[100] + [0] * 9)))
    assert [path.name for path in agent.folder.glob("*.part")] == [f"{digest(second)}.part"]


def test_limits_are_settings_with_bounds():
    import msgspec

    for kind, wrong in ((Shadow, {"changed": 2}), (Probation, {"starts": 0}), (Link, {"tries": 0})):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, kind)
