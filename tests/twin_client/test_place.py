"""A place found by signal strength, against the truth of generated air, and what its stated error promises."""

import math
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.place import Settings, Signal, locate
from twin_client.simulation.radio import Air, degrees, metres, signals

ORIGIN = (40.0, 110.0)
QUIET = Air(noise=0.0)


def hear(gateways, tag, air=QUIET, dice=None, origin=ORIGIN):
    """Signals of a tag (east, north), metres, at gateways (east, north) or (east, north, up)."""
    places = np.array([(*one, 0.0)[:3] for one in gateways], float)
    heard = air.heard(places, np.array((*tag, 0.0)[:3], float), dice or np.random.default_rng(0))
    return signals(places, heard, origin)


def off(position, tag, origin=ORIGIN) -> float:
    """Metres from the truth."""
    return math.dist(metres(origin, position.latitude, position.longitude), tag[:2])


def trials(count, air, believed, pits=150, *, line=False, half=400.0):
    """Errors, stated errors and those of the strongest gateway, over pits as drawn."""
    dice = np.random.default_rng([count, round(10 * air.noise), round(100 * air.blocked)])
    errors, stated, strongest = [], [], []
    for _ in range(pits):
        gateways = dice.uniform(-half, half, (count, 2)) * (1.0, 0.0 if line else 1.0)
        tag = dice.uniform(-half, half, 2)
        heard = hear(gateways, tag, air, dice)
        found = locate(believed, heard, 0.0)
        best = max(range(len(heard)), key=lambda i: heard[i].strength)
        errors.append(off(found, tag))
        stated.append(found.error)
        strongest.append(math.dist(metres(ORIGIN, heard[best].latitude, heard[best].longitude), tag))
    return np.array(errors), np.array(stated), np.array(strongest)


# --- where it is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", [(0.0, 0.0), (130.0, -75.0), (-190.0, 188.0), (7.0, 201.0)])
def test_signals_without_noise_give_the_place_to_a_few_metres(tag):
    gateways = [(-200, -200), (200, -200), (200, 200), (-200, 200), (0, 57)]
    found = locate(Settings(noise=1.0, blocked=0.0), hear(gateways, tag), 0.0)
    assert off(found, tag) < 12.0
    assert found.error < 30.0
    assert (found.source, found.height) == ("signal", 0.0)


@pytest.mark.parametrize(("count", "noise", "gain"), [(4, 2.0, 1.4), (6, 4.0, 1.2), (8, 4.0, 1.5), (8, 2.0, 2.5)])
def test_several_gateways_find_it_far_better_than_the_one_that_hears_it_best(count, noise, gain):
    errors, _, strongest = trials(count, Air(noise=noise), Settings(noise=noise))
    assert np.sqrt((strongest**2).mean()) > gain * np.sqrt((errors**2).mean())


@pytest.mark.parametrize("noise", [2.0, 4.0, 6.0])
@pytest.mark.parametrize("count", [2, 4, 6, 8])
def test_the_truth_lies_within_the_stated_error_as_often_as_promised(count, noise):
    errors, stated, _ = trials(count, Air(noise=noise), Settings(noise=noise))
    assert (errors <= stated).mean() >= 0.55  # two times in three; at large noise more often, as the pit has an edge
    assert (errors <= 2 * stated).mean() >= 0.92
    if count >= 6 and noise <= 4:
        assert (errors <= stated).mean() <= 0.82
        assert 0.7 < np.sqrt((stated**2).mean() / (errors**2).mean()) < 1.4


def test_more_gateways_and_less_noise_mean_a_smaller_stated_error():
    by_count = [trials(count, Air(noise=4.0), Settings(noise=4.0), 60)[1].mean() for count in (2, 4, 8)]
    by_noise = [trials(6, Air(noise=noise), Settings(noise=noise), 60)[1].mean() for noise in (8.0, 4.0, 2.0)]
    assert by_count == sorted(by_count, reverse=True)
    assert by_noise == sorted(by_noise, reverse=True)


def test_a_blocked_path_does_not_carry_the_place_away():
    gateways = [(-300, -300), (300, -300), (300, 300), (-300, 300), (0, 350), (0, -350)]
    tag, believed = (60.0, 40.0), Settings(noise=3.0)
    clear = hear(gateways, tag)
    blocked = [*clear[:5], msgspec.structs.replace(clear[5], strength=clear[5].strength - 25.0)]
    moved = off(locate(believed, blocked, 0.0), tag)
    assert moved < 60.0
    assert off(locate(msgspec.structs.replace(believed, blocked=0.0), blocked, 0.0), tag) > 1.5 * moved


def test_where_paths_are_often_blocked_it_helps_to_expect_it():
    air = Air(noise=4.0, blocked=0.2)
    aware, stated, _ = trials(6, air, Settings(noise=4.0, blocked=0.2))
    naive, _, _ = trials(6, air, Settings(noise=4.0, blocked=0.0))
    assert np.sqrt((aware**2).mean()) < 0.9 * np.sqrt((naive**2).mean())
    assert (aware <= 2 * stated).mean() >= 0.92


# --- few gateways, and badly placed ones ----------------------------------------------------------------


@pytest.mark.parametrize("distance", [5.0, 80.0, 700.0])
def test_one_gateway_gives_its_own_place_and_the_distance_as_the_error(distance):
    (signal,) = hear([(30.0, -40.0)], (30.0 + distance, -40.0))
    found = locate(Settings(noise=2.0, blocked=0.0), [signal], 0.0)
    assert off(found, (30.0, -40.0)) < 0.01 * distance
    assert 0.8 * distance < found.error < 1.6 * distance


@pytest.mark.parametrize("line", [[(-200, 0), (200, 0)], [(-200, 0), (-60, 0), (90, 0), (200, 0)]])
def test_gateways_in_a_line_cannot_tell_the_sides_apart_and_the_error_says_so(line):
    tag = (20.0, 150.0)
    heard = hear(line, tag)
    found = locate(Settings(noise=2.0), heard, 0.0)
    east, north = metres(ORIGIN, found.latitude, found.longitude)
    assert abs(north) < 15.0
    assert abs(east - 20.0) < 60.0
    assert found.error >= 140.0
    aside = hear([*line, (0, 220)], tag)
    assert locate(Settings(noise=2.0), aside, 0.0).error < 0.6 * found.error


def test_gateways_at_one_place_say_no_more_than_one():
    one = hear([(0, 0)], (90.0, 0.0))
    many = [*one, *hear([(1, 1)], (90.0, 0.0)), *hear([(-1, 0)], (90.0, 0.0)), *one]
    alone, together = (locate(Settings(), heard, 0.0) for heard in (one, many))
    assert together.error == pytest.approx(alone.error, rel=0.1)
    assert off(together, (0.0, 0.0)) < 10.0


def test_signals_that_contradict_each_other_give_an_error_as_large_as_the_contradiction():
    near = [Signal(*degrees(ORIGIN, (east, 0.0)), 0.0, -42.0) for east in (0.0, 5000.0)]
    assert locate(Settings(noise=2.0), near, 0.0).error > 4000.0


def test_a_height_that_is_known_counts_and_one_that_is_not_is_not_claimed():
    rim = [(-150, -150, 120), (150, -150, 120), (150, 150, 120), (-150, 150, 120), (0, 150, 120)]
    tag = (100.0, 20.0, 0.0)
    heard = hear(rim, tag)
    known, unknown = locate(Settings(noise=1.0), heard, 0.0), locate(Settings(noise=1.0), heard)
    assert off(known, tag) < 15.0
    assert off(known, tag) < off(unknown, tag)
    assert unknown.height is None


@pytest.mark.parametrize("origin", [(0.0, 180.0), (-33.0, -179.9995), (69.5, 24.0), (0.0, 0.0)])
def test_it_works_all_over_the_earth_across_the_date_line_too(origin):
    tag = (40.0, -30.0)
    wrapped = [
        msgspec.structs.replace(one, longitude=(one.longitude + 180.0) % 360.0 - 180.0)
        for one in hear([(-150, -150), (150, -150), (150, 150), (-150, 150)], tag, origin=origin)
    ]
    found = locate(Settings(noise=1.0), wrapped, 0.0)
    assert -180.0 <= found.longitude < 180.0
    east, north = ((found.longitude - origin[1] + 180.0) % 360.0) - 180.0, found.latitude
    assert math.dist(metres(origin, north, origin[1] + east), tag) < 20.0


def test_the_order_of_the_gateways_does_not_matter():
    heard = hear([(-150, -150), (150, -120), (130, 150), (-150, 190)], (40.0, 3.0), Air(), np.random.default_rng(3))
    one, other = locate(Settings(), heard, 0.0), locate(Settings(), heard[::-1], 0.0)
    assert one.error == pytest.approx(other.error, rel=1e-6)
    assert off(one, metres(ORIGIN, other.latitude, other.longitude)) < 0.01


# --- what is refused, and what must not break -----------------------------------------------------------


GOOD = Signal(40.0, 110.0, 900.0, -80.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"strength": float("nan")},
        {"strength": float("inf")},
        {"strength": 127.0},
        {"strength": -300.0},
        {"latitude": float("nan")},
        {"latitude": 91.0},
        {"longitude": 200.0},
        {"height": float("inf")},
    ],
)
def test_a_number_that_no_gateway_can_have_said_is_refused(bad):
    with pytest.raises(ProtocolError, match=r"a gateway at|a signal of"):
        locate(Settings(), [GOOD, msgspec.structs.replace(GOOD, **bad)])


def test_nobody_heard_and_a_height_that_is_none_are_refused():
    with pytest.raises(ProtocolError, match="no gateway"):
        locate(Settings(), [])
    with pytest.raises(ProtocolError, match="height"):
        locate(Settings(), [GOOD], float("nan"))


SIGNALS = st.builds(Signal, st.floats(-88, 88), st.floats(-180, 180), st.floats(-400, 6000), st.floats(-160, 30))
NEIGHBOURS = st.builds(Signal, st.floats(40, 40.02), st.floats(110, 110.02), st.floats(0, 500), st.floats(-140, -20))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(SIGNALS, min_size=1, max_size=4) | st.lists(NEIGHBOURS, min_size=1, max_size=7),
    st.none() | st.floats(-400, 6000),
    st.builds(Settings, noise=st.floats(0.5, 20), exponent=st.floats(1, 6), blocked=st.floats(0, 0.5)),
)
def test_whatever_is_heard_gives_a_place_on_earth_with_an_error(heard, height, believed):
    found = locate(believed, heard, height)
    assert -90 <= found.latitude <= 90
    assert -180 <= found.longitude < 180
    assert 0 < found.error < math.inf


@pytest.mark.parametrize("bad", [{"noise": 0.0}, {"exponent": 0.5}, {"blocked": 0.9}, {"reach": 0.0}, {"nois": 4.0}])
def test_settings_out_of_their_limits_are_refused_by_name(bad):
    with pytest.raises(msgspec.ValidationError, match=next(iter(bad))):
        msgspec.convert(bad, Settings)


def test_a_place_among_eight_gateways_takes_milliseconds():
    dice = np.random.default_rng(1)
    spent = []
    for _ in range(20):
        heard = hear(dice.uniform(-400, 400, (8, 2)), dice.uniform(-400, 400, 2), Air(), dice)
        begin = time.process_time()
        locate(Settings(), heard, 0.0)
        spent.append(time.process_time() - begin)
    assert np.median(spent) < 0.008
