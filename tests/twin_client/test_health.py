"""What a gateway says of itself: losses are counted where they are losses."""

from typing import Any, cast

from twin_client.health import Reporter
from twin_client.protocol.records import Gap, Lost, Stamp


def test_numbers_before_a_tag_was_paired_are_no_loss_and_those_within_are() -> None:
    reporter = Reporter(cast(Any, None))
    at = Stamp(1, 1, "boot")
    reporter.committed([Gap(at, "restarted", lost=(Lost("tag-1", 3, None, 2_591_999),))])
    assert dict(reporter.counters) == {"gap": 1}
    reporter.committed([Gap(at, "restarted", lost=(Lost("tag-1", 3, None, 7), Lost("tag-2", 1, 5, 9)))])
    reporter.committed([Gap(at, "evicted", seqs=((10, 19), (30, 30)))])
    assert reporter.counters["lost_restarted"] == 5
    assert reporter.counters["lost_evicted"] == 11
