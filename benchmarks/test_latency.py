"""Latency of the field's networks with pytest-benchmark, kept as JSON and compared from run to run.

    pytest benchmarks --benchmark-only --benchmark-json benchmarks/results/latency/host.json
    pytest benchmarks --benchmark-only --benchmark-compare=benchmarks/results/latency/host.json \\
        --benchmark-compare-fail=median:20%

One group a task and size, ours among them; `highwall bench suite` measures all sizes, threads and memory, with ratios.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.suite.field import Member, filled, members
from targets.runtime import golden
from targets.runtime.engine import open_session
from targets.runtime.manifest import InputSpec

MOST_MACS = 2_000_000_000  # of what a regression run has time for
MEMBERS = [one for one in members()[0] if one.macs <= MOST_MACS and (one.size == 48 or one.task != "classify")]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda one: one.name)
def test_latency(benchmark: BenchmarkFixture, member: Member) -> None:
    """One inference on one thread of our engine, as a gateway runs it."""
    benchmark.group = f"{member.task} {member.size}x{member.size}, {member.precision}"
    benchmark.extra_info |= {"macs": member.macs, "parameters": member.parameters}
    session = open_session("onnx", filled(member), 1)
    image = golden.seeded_image(1, InputSpec(member.size, member.size, member.bands, "uint8"))
    answer = benchmark(session.run, image)
    assert answer.size
