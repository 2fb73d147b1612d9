"""Cloud against edge twin: the stated model, the radio between hosts, frames, the tables, and a run on real hosts."""

import json
import math
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.edge import frames, hosts, jobs, model, run, table
from benchmarks.edge.__main__ import main
from benchmarks.edge.model import MINE, PAPER, Link, Work
from benchmarks.edge.proxy import Proxy, Way
from targets.runtime.errors import HighwallError

LINKS = st.builds(Link, st.just("any"), st.floats(1e4, 1e11), st.floats(0, 2), st.floats(0, 0.5))
BYTES = st.floats(1, 1e9)
WORK = st.builds(Work, st.integers(1, 9), st.floats(1e-4, 100), BYTES, BYTES, BYTES)


# --- the model ------------------------------------------------------------------------------------------


@given(BYTES, LINKS, st.floats(1, 100))
def test_more_bandwidth_is_never_slower(payload, link, times):
    wider = replace(link, bits_per_s=link.bits_per_s * times)
    assert model.transfer_s(payload, wider) <= model.transfer_s(payload, link) * (1 + 1e-9)


@given(BYTES, LINKS)
def test_a_link_without_loss_sends_nothing_again_and_is_never_slower(payload, link):
    clean = replace(link, loss=0.0)
    assert model.retransmitted(payload, 0.0) == 0
    assert model.wire_bytes(payload, 0.0) <= model.wire_bytes(payload, link.loss)
    assert model.transfer_s(payload, clean) <= model.transfer_s(payload, link) * (1 + 1e-9)


@given(BYTES, LINKS)
def test_no_transfer_beats_its_bandwidth_or_half_a_round_trip(payload, link):
    assert model.transfer_s(payload, link) >= payload * 8 / link.bits_per_s * (1 - 1e-9)
    assert model.transfer_s(payload, link) >= link.rtt_s / 2


@given(WORK, LINKS)
def test_every_setting_takes_at_least_its_computing(work, link):
    assert model.predict_cloud_s(work, link) >= 2 * work.units * work.unit_s
    assert model.predict_edge_s(work, link) >= work.units * work.unit_s
    assert model.train_cloud_s(work, link) >= 3 * work.units * work.unit_s
    assert model.train_edge_s(work, link) >= work.units * work.unit_s


def test_over_free_links_two_edges_halve_prediction_and_three_hosts_third_training():
    free, work = Link("free", 1e18), Work(7, 0.25, 1e5, 100, gradient_bytes=4e5)
    assert model.reduction(model.predict_cloud_s(work, free), model.predict_edge_s(work, free)) == pytest.approx(50)
    assert model.reduction(model.train_cloud_s(work, free), model.train_edge_s(work, free)) == pytest.approx(200 / 3)


def test_a_full_loss_limited_transfer_is_as_slow_as_mathis_says():
    megabits = model.throughput(MINE) / 1e6
    assert megabits == pytest.approx(1448 * 8 / 0.1 * math.sqrt(1.5 / 0.02) / 1e6)
    assert megabits < MINE.bits_per_s / 1e6 / 5


def test_the_speeds_that_the_papers_figures_imply_give_those_figures_back():
    predicting, training = model.implied_speeds(23.6)[0], model.implied_speeds(12.8)[1]
    assert 100 * (1 - predicting / 2) == pytest.approx(23.6)
    assert model.reduction(1 / training, 1 / (training + 2)) == pytest.approx(12.8)


@pytest.mark.parametrize("wrong", [(0, 0, 0), (-1, 0, 0), (1e6, -0.1, 0), (1e6, 0, 1), (1e6, 0, -0.1)])
def test_a_link_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="no link has"):
        Link("wrong", *wrong)


# --- the radio ------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 10), max_size=50), st.floats(0, 3))
def test_packets_come_out_in_order_and_never_early(times, delay):
    way = Way(delay, 0.0, seed=1)
    times.sort()
    for number, at in enumerate(times):
        way.put(bytes([number]), at)
    for number, at in enumerate(times):
        early = way.due(at + delay - 1e-6)
        assert all(packet[0] < number or times[packet[0]] + delay <= at + delay for packet in early)
    way = Way(delay, 0.0, seed=1)
    for number, at in enumerate(times):
        way.put(bytes([number]), at)
    assert [packet[0] for packet in way.due(14.0)] == list(range(len(times)))


def test_of_many_packets_the_stated_share_is_lost_and_the_rest_arrives():
    way = Way(0.0, 0.02, seed=3)
    for _ in range(20_011):
        way.put(b"x", 0.0)
    assert len(way.due(0.0)) == way.offered - way.lost
    assert way.lost / way.offered == pytest.approx(0.02, abs=0.004)


@pytest.fixture
def ends():
    """Two packet sockets whose far ends a proxy joins, as it joins two TUN devices."""
    near, far = (
        socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    )
    for pair in (near, far):
        pair[1].setblocking(False)
        pair[0].settimeout(5)
    yield near, far
    for one in (*near, *far):
        one.close()


def test_a_proxy_carries_packets_both_ways_and_no_faster_than_it_says(ends):
    near, far = ends
    with Proxy((near[1].fileno(), far[1].fileno()), delay_s=0.05, loss=0.0, seed=1):
        for source, target in ((near[0], far[0]), (far[0], near[0])):
            began = time.monotonic()
            for packet in (b"a", b"b" * 1500):
                source.send(packet)
            assert [target.recv(2000) for _ in range(2)] == [b"a", b"b" * 1500]
            assert 0.05 <= time.monotonic() - began < 2


def test_a_proxy_ends_while_packets_still_wait(ends):
    near, far = ends
    began = time.monotonic()
    with Proxy((near[1].fileno(), far[1].fileno()), delay_s=60, loss=0.0, seed=1) as proxy:
        near[0].send(b"late")
        while not proxy.ways[0].offered and time.monotonic() < began + 5:
            time.sleep(0.01)
    assert time.monotonic() - began < 5
    assert proxy.ways[0].offered == 1


# --- frames ---------------------------------------------------------------------------------------------


@pytest.fixture
def stream():
    one, other = socket.socketpair()
    one.settimeout(5)
    other.settimeout(5)
    yield one, other
    one.close()
    other.close()


@pytest.mark.parametrize("size", [0, 1, 4, 65_537, 3_000_001])
def test_a_frame_of_any_size_arrives_whole(stream, size):
    one, other = stream
    payload = os.urandom(size)
    sender = threading.Thread(target=frames.send, args=(one, payload))
    sender.start()
    assert frames.receive(other) == payload
    sender.join()


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_whatever_comes_down_the_stream_is_a_frame_or_an_error_in_one_line(said):
    one, other = socket.socketpair()
    with one, other:
        one.sendall(said)
        one.shutdown(socket.SHUT_WR)
        try:
            found = frames.receive_json(other)
        except HighwallError as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(found, dict)


def test_an_absurd_length_is_refused_before_anything_is_read(stream):
    one, other = stream
    one.sendall(struct.pack(">I", frames.MOST + 1))
    with pytest.raises(HighwallError, match="not ours"):
        frames.receive(other)


@pytest.mark.parametrize("payload", [b"", b"[1]", b"\xff", b"{", b"[" * 99_999, b"nul"])
def test_what_is_no_object_of_json_is_refused(stream, payload):
    one, other = stream
    frames.send(one, payload)
    with pytest.raises(HighwallError, match="a frame"):
        frames.receive_json(other)


# --- what hosts see and say -----------------------------------------------------------------------------


def test_a_sites_slices_arrive_as_they_were_with_their_labels():
    images, labels = jobs.slices(1, 3, 3)
    pixels, truth = jobs.unpacked(jobs.packed(images[0, 1], labels[0, 1]))
    assert np.array_equal(pixels, images[0, 1])
    assert np.array_equal(truth, labels[0, 1])


def test_no_two_edges_capture_the_same_scene_and_each_captures_the_same_again():
    scenes = [jobs.scene_files.__wrapped__(2, 33, edge) for edge in (1, 2, 1)]
    assert len({*scenes[0], *scenes[1]}) == 4
    assert scenes[0] == scenes[2]


@pytest.mark.parametrize("network", ["ours", "rnn"])
def test_a_scene_of_an_awkward_size_has_one_answer(network):
    (file,) = jobs.scene_files(1, 97, 1)
    answer = jobs.answerer(network, 97)
    assert answer(file) == answer(file)
    assert len(answer(file)["boxes"]) <= jobs.BOXES


@given(st.binary(max_size=200))
def test_a_file_that_is_no_picture_is_an_error_in_one_line(file):
    with pytest.raises(HighwallError, match="no picture"):
        jobs.decoded(file)


@pytest.mark.parametrize("network", jobs.NETWORKS)
def test_training_moves_weights_far_more_than_equal_ones_may_differ(network):
    images, labels = jobs.slices(3, 3, 3)
    made = jobs.learner(network)
    before = jobs.weights_of(made).copy()
    learning = jobs.Learning(made)
    for step in range(3):
        learning.step(images[step].reshape(-1, *images.shape[3:]), labels[step].reshape(-1))
    after = jobs.weights_of(made)
    assert np.abs(after - before).max() > 100 * run.TOLERANCE * np.abs(after).max()


@pytest.mark.parametrize("network", jobs.NETWORKS)
def test_the_mean_of_the_hosts_gradients_is_the_gradient_of_the_whole_batch(network):
    images, labels = (part[0] for part in jobs.slices(1, 3, 3))
    gradients = []
    for chosen in (slice(None), *(slice(host, host + 1) for host in range(3))):
        made = jobs.learner(network)
        jobs.Learning(made).step(images[chosen].reshape(-1, *images.shape[2:]), labels[chosen].reshape(-1))
        gradients.append(jobs.weights_of(made))
    whole, *shares = gradients  # after one step from the same weights, weights are as good as gradients
    assert np.abs(whole - np.mean(shares, 0)).max() <= run.TOLERANCE * np.abs(whole).max()


# --- hosts that cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lacks", "said"),
    [("root", "need root"), ("ip", "ip is not"), ("tc", "tc is not"), ("tun", "tun"), ("quota", "no quota")],
)
def test_a_machine_that_lacks_a_part_is_told_which_in_one_line(monkeypatch, tmp_path, lacks, said):
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if lacks == "root" else 0)
    monkeypatch.setattr(shutil, "which", lambda program: None if program == lacks else f"/sbin/{program}")
    monkeypatch.setattr(hosts, "TUN", str(tmp_path / "tun" if lacks == "tun" else tmp_path))
    monkeypatch.setattr(hosts, "CGROUPS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["edge", "--quick", "--results", str(tmp_path)])
    with pytest.raises(HighwallError, match=f"{said}.*--modelled") as complaint:
        main()
    assert "\n" not in str(complaint.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cores", [0, -1, 1e6, float("nan")])
def test_a_quota_that_the_machine_does_not_have_is_refused(cores):
    with pytest.raises(HighwallError, match="hosts here get"):
        run.Plan(cores=cores)


def test_either_version_of_control_groups_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(hosts, "CGROUPS", tmp_path)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.shares").write_text("1024")
    assert hosts.cgroup_root() == tmp_path / "cpu"
    (tmp_path / "cgroup.subtree_control").write_text("memory cpu\n")
    assert hosts.cgroup_root() == tmp_path


# --- results --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modelled(tmp_path_factory):
    """A modelled result of tiny jobs, and its file."""
    path = tmp_path_factory.mktemp("edge") / "figure6-modelled.json"
    return run.modelled(run.QUICK, path, "a test", lambda _: None), path


def test_a_modelled_result_says_so_in_every_cell_and_claims_no_equality(modelled):
    result, path = modelled
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert result["kind"] == "modelled"
    assert {cell["kind"] for cell in result["cells"].values()} == {"modelled"}
    assert len(result["cells"]) == 2 * 2 * 2
    shown = table.report(table.results(path.parent))
    assert "**Modelled**" in shown
    assert "not checked" in shown
    assert "23.6 %" in shown


def test_a_table_refuses_to_mix_kinds(modelled):
    mixed = json.loads(json.dumps(modelled[0]))
    next(iter(mixed["cells"].values()))["kind"] = "measured"
    with pytest.raises(HighwallError, match="never mixed"):
        table.table(mixed)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "measured", "cells": 3}', "nul\x00"])
def test_a_file_that_is_no_result_is_an_error_in_one_line(tmp_path, text):
    (tmp_path / "figure6.json").write_text(text)
    with pytest.raises(HighwallError) as found:
        table.report(table.results(tmp_path))
    assert "\n" not in str(found.value)


def test_without_results_the_table_says_how_to_make_them(tmp_path):
    with pytest.raises(HighwallError, match=r"python -m benchmarks\.edge"):
        table.results(tmp_path)


# --- real hosts -----------------------------------------------------------------------------------------


@pytest.fixture
def real():
    """Skips, with the reason, where no hosts can be made; no desk owes us root, so neither does CI."""
    try:
        hosts.check()
    except HighwallError as error:
        pytest.skip(str(error))


def _left() -> list[str]:
    places = (Path("/run/netns"), hosts.cgroup_root())
    return [str(path) for place in places for path in place.glob(f"{hosts.PREFIX}-{os.getpid()}-*")]


@pytest.mark.slow
def test_hosts_are_gone_after_an_error_and_after_a_killed_run(real):
    with pytest.raises(RuntimeError), hosts.Hosts(MINE, 0.2):
        assert len(_left()) == 6
        raise RuntimeError
    assert _left() == []
    # a run that nobody could end in good order leaves its hosts, with a process in one of them
    code = (
        "import os, sys, tempfile\n"
        "from benchmarks.edge.hosts import Hosts\nfrom benchmarks.edge.model import PAPER\n"
        "made = Hosts(PAPER, 0.2).__enter__()\n"
        "made.start(made.all[1], ['sleep', '999'], {}, tempfile.TemporaryFile())\n"
        "print(os.getpid(), flush=True)\nos._exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    stale = Path("/run/netns", f"{hosts.PREFIX}-{done.stdout.strip()}-1")
    assert stale.exists(), done.stderr
    with hosts.Hosts(PAPER, 0.2):
        assert not stale.exists()
        assert not (hosts.cgroup_root() / stale.name).exists()


@pytest.mark.slow
def test_a_real_run_gives_equal_answers_and_weights_and_is_not_run_again(real, tmp_path):
    path = tmp_path / "figure6.json"
    result = run.run(run.QUICK, path, "a test", print)
    assert len(result["cells"]) == 8
    assert all(cell["equal"]["equal"] and cell["kind"] == "measured" for cell in result["cells"].values())
    mine = result["probes"]["mine"]
    assert 95 < mine["rtt_ms"] < 400
    assert mine["mbit_per_s"] < 10
    assert mine["packets_lost"] / mine["packets_offered"] == pytest.approx(0.02, abs=0.015)
    for cell in result["cells"].values():
        assert cell["cloud"]["sent_bytes"] > cell["edge"]["sent_bytes"] or cell["task"] == "train"
    gradients = [cell for cell in result["cells"].values() if cell["task"] == "train"]
    assert all(cell["edge"]["sent_bytes"] > cell["work"]["gradient_bytes"] * 4 for cell in gradients)
    assert np.isfinite(statistics.fmean(row["modelled_s"] for row in result["comparison"]))
    assert "**Measured**" in table.report(table.results(tmp_path))
    before = path.read_bytes()
    began = time.monotonic()
    run.run(run.QUICK, path, "a test", print)
    assert time.monotonic() - began < 10
    assert path.read_bytes() == before
    assert _left() == []
