"""Which of several wheels is the newest: as installers have it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from targets.gate import wheel


@pytest.mark.parametrize("old", ["2.4.0rc1", "2.3.9", "2.4.0.dev3", "2.5.0a1", "2.4", "1!rc"])
def test_a_release_is_newer_than_what_comes_before_it_and_than_any_candidate(old):
    assert wheel.newness("2.4.0.post1") > wheel.newness(old)


VERSIONS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "1!"]),
        st.lists(st.integers(0, 11), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts))),
        st.sampled_from(["", "a1", "b2", ".rc1", "rc", "c3"]),
        st.sampled_from(["", ".post0", ".post2", "-r3"]),
        st.sampled_from(["", ".dev0", ".dev4"]),
        st.sampled_from(["", "+cpu", "+cpu.2", "+10", "+9"]),
    ),
)


@given(VERSIONS, VERSIONS)
def test_versions_sort_as_installers_sort_them(one, other):
    def theirs(text):
        found = Version(text)
        return not found.is_prerelease, found

    assert (wheel.newness(one) < wheel.newness(other)) == (theirs(one) < theirs(other))
