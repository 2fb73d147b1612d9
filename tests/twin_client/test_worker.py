"""The worker: one thing after the other, the latest of each lane, and rest in between."""

import threading
import time

import pytest

from twin_client.worker import Worker


@pytest.fixture
def held():
    """A worker whose thread is held by a first job until `go` is set."""
    worker, go, begun = Worker(), threading.Event(), threading.Event()

    def first():
        begun.set()
        go.wait(10)

    worker.call(first)
    assert begun.wait(10)
    yield worker, go
    go.set()
    worker.close()


def test_one_waits_in_each_lane_lanes_have_their_turns_and_what_is_urgent_goes_first(held):
    worker, go = held
    ran, over = [], []

    def offer(lane, name, urgent=False):
        return worker.offer(lane, lambda: ran.append(name), lambda: over.append(name), urgent)

    given = [offer("a", 1), offer("b", 2), offer("a", 3), offer("a", 4), offer("b", 5, True), offer("b", 6)]
    called = worker.call(lambda: ran.append("called"))
    go.set()
    for future in (*given, called):
        future.result(10)
    assert ran == ["called", 5, 4, 6]  # lane a has waited since 1, and 5 did not take the place of 2
    assert over == [1, 3, 2]


def test_an_error_goes_to_whom_it_concerns_and_the_thread_lives_on():
    worker = Worker()
    for error in (ValueError("x"), SystemExit(3), KeyboardInterrupt()):

        def job(error=error):
            raise error

        assert worker.offer("a", job, lambda: None).exception(10) is error
    assert worker.call(lambda: 7).result(10) == 7
    worker.close()


def test_a_job_whose_answer_nobody_wants_is_not_run(held):
    worker, go = held
    ran = []
    dropped = worker.offer("a", lambda: ran.append("dropped"), lambda: None)
    assert dropped.cancel()
    kept = worker.offer("b", lambda: ran.append("kept"), lambda: None)
    go.set()
    kept.result(10)
    assert ran == ["kept"]


def test_it_works_no_more_than_its_share_of_the_time_but_what_is_called_or_urgent_need_not_wait():
    worker = Worker(duty=0.25)
    worker.offer("a", lambda: time.sleep(0.2), lambda: None).result(10)
    ended = time.monotonic()
    slow = worker.offer("a", time.monotonic, lambda: 0.0)
    assert worker.call(time.monotonic).result(10) - ended < 0.5
    assert worker.offer("a", time.monotonic, lambda: 0.0, urgent=True).result(10) - ended < 0.5
    assert slow.result(10) - ended >= 0.58  # three times what the job took
    worker.close()


def test_closing_answers_all_who_wait_and_leaves_a_job_that_hangs_behind(held):
    worker, _ = held
    offered, called = worker.offer("a", lambda: "run", lambda: "passed over"), worker.call(lambda: "run")
    begun = time.monotonic()
    worker.close(0.1)
    assert time.monotonic() - begun < 5
    assert offered.result(1) == "passed over"
    assert called.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        worker.call(lambda: None)


def test_a_call_has_patience_before_it_counts_as_hanging():
    now = [0.0]
    worker, begun, go = Worker(clock=lambda: now[0]), threading.Event(), threading.Event()
    call = worker.call(lambda: (begun.set(), go.wait(10)), patience=50)
    assert begun.wait(10)
    now[0] = 49
    assert worker.progress() == 49
    now[0] = 70
    assert worker.progress() == 50
    worker.alive()  # said by the job itself
    assert worker.progress() == 70
    go.set()
    call.result(10)
    worker.close()
