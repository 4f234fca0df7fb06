"""When devices are there: owners' days and recorded traces, against hand-worked intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mest_fed.errors import InputError
from mest_fed.simulation.behaviour.availability import DAY, Always, Diurnal
from mest_fed.simulation.behaviour.traces import load_trace

FLEET = ["rpi-4", "phone-low", "phone-low"]


def diurnal(share, *, spread=1.0, seed=3, purpose="availability"):
    return Diurnal(seed, lambda device: share, spread=spread, purpose=purpose)


def trace_of(tmp_path, text, suffix=".csv", **options):
    path = tmp_path / f"trace{suffix}"
    path.write_text(text)
    return load_trace(path, FLEET, **options)


def refusal(tmp_path, text, suffix=".csv"):
    with pytest.raises(InputError) as caught:
        trace_of(tmp_path, text, suffix)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(tmp_path / "trace"), "trace")


def test_always_is_always():
    always = Always()
    assert always.present(7, 5.0)
    assert (always.leaves(7, 5.0), always.returns(7, 5.0)) == (math.inf, 5.0)


# Owners' days


@settings(max_examples=60, deadline=None)
@given(
    share=st.sampled_from([0.02, 0.3, 0.7, 0.98]),
    device=st.integers(0, 10**6),
    time=st.floats(0, 400 * DAY),
)
def test_the_next_change_is_the_next_change(share, device, time):
    behaviour = diurnal(share)
    here = behaviour.present(device, time)
    change = (behaviour.leaves if here else behaviour.returns)(device, time)
    assert (behaviour.returns if here else behaviour.leaves)(device, time) == time
    assert time < change < time + 366 * DAY
    assert behaviour.present(device, change) is not here
    # Nothing happens before: neither in between nor just before the change.
    for moment in [*np.linspace(time, change, 9)[1:-1], np.nextafter(change, 0)]:
        assert behaviour.present(device, float(moment)) is here


def test_the_share_of_time_is_the_availability():
    for share in (0.2, 0.5, 0.9):
        behaviour = diurnal(share)
        times = np.arange(0.5, 40 * 24) * 3600
        there = [[behaviour.present(device, time) for time in times] for device in range(25)]
        # A day's share has a deviation of at most 0.17; 1000 days are drawn.
        assert np.mean(there) == pytest.approx(share, abs=4 * 0.17 / math.sqrt(1000))


def test_devices_are_there_at_their_midnight():
    behaviour = diurnal(0.4, spread=0.0)
    at = {
        hour: np.mean([behaviour.present(d, 2 * DAY + hour * 3600) for d in range(200)])
        for hour in (0, 12)
    }
    assert at[0] > 0.8
    assert at[12] < 0.05


def test_midnights_spread_over_the_day():
    behaviour = diurnal(0.4)
    at = [
        np.mean([behaviour.present(d, DAY + h * 3600) for d in range(400)]) for h in (0, 6, 12, 18)
    ]
    assert np.ptp(at) < 0.2


def test_a_share_of_one_is_always_and_of_nought_never():
    assert diurnal(1.0).leaves(4, 1e6) == math.inf
    assert diurnal(1.0).present(4, 1e6)
    assert diurnal(0.0).returns(4, 1e6) == math.inf
    assert not diurnal(0.0).present(4, 1e6)


def test_a_day_depends_on_seed_device_and_purpose_alone():
    times = [hour * 3600.0 for hour in range(0, 24 * 20, 7)]

    def seen(behaviour, device=5):
        return [behaviour.returns(device, time) for time in times]

    assert seen(diurnal(0.3)) == seen(diurnal(0.3))
    others = [
        seen(diurnal(0.3, seed=4)),
        seen(diurnal(0.3), 6),
        seen(diurnal(0.3, purpose="charging")),
    ]
    assert all(seen(diurnal(0.3)) != other for other in others)


# Traces


CSV = """device,start,end
0,10,20
0,20,30

phone-low, 50, 100
2,0,40
"""


def test_a_trace_is_read_and_repeats(tmp_path):
    trace = trace_of(tmp_path, CSV)
    # Device 0 is there in [10, 30), device 1 as its profile in [50, 100), device 2 in [0, 40).
    assert [trace.present(0, t) for t in (9.9, 10, 29.9, 30)] == [False, True, True, False]
    assert (trace.leaves(0, 15), trace.returns(0, 30)) == (30, 110)
    # At 100 the trace begins anew: its profile is away then, device 2 is there.
    assert (trace.leaves(1, 60), trace.returns(1, 100), trace.leaves(1, 160)) == (100, 150, 200)
    assert (trace.present(2, 100), trace.leaves(2, 539)) == (True, 540)


def test_a_trace_that_does_not_repeat_ends(tmp_path):
    trace = trace_of(tmp_path, CSV, repeats=False)
    assert (trace.leaves(1, 60), trace.returns(1, 100)) == (100, math.inf)
    assert not trace.present(2, 100)


def test_an_interval_may_go_on_over_the_end_of_the_trace(tmp_path):
    trace = trace_of(tmp_path, "device,start,end\n*,70,100\n*,0,5\n2,0,100\n")
    assert (trace.leaves(0, 80), trace.leaves(0, 280)) == (105, 305)
    assert trace.leaves(2, 1) == math.inf


def test_states_say_when_a_device_is_there(tmp_path):
    text = "device,start,end,state\n*,0,30,off\n*,30,40,on\n*,40,50,on\n*,50,60,off\n"
    trace = trace_of(tmp_path, text)
    assert (trace.returns(1, 0), trace.leaves(1, 30), trace.returns(1, 50)) == (30, 50, 90)


def test_json_says_the_same_as_csv(tmp_path):
    text = '{"devices": {"0": [[20, 30], [10, 20]], "phone-low": [[50, 100]], "2": [[0, 40.0]]}}'
    trace, other = trace_of(tmp_path, text, ".json"), trace_of(tmp_path, CSV)
    for device in range(3):
        for time in range(0, 300, 5):
            assert trace.leaves(device, time) == other.leaves(device, time)
            assert trace.returns(device, time) == other.returns(device, time)


def test_json_may_be_longer_than_its_intervals(tmp_path):
    text = '{"span": 1000, "devices": {"*": [[0, 10]]}}'
    assert trace_of(tmp_path, text, ".json").returns(0, 10) == 1000


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            "*,0,10\n*,5,20",
            "trace.csv, line 3: [5, 20) of device * overlaps the one that ends at 10",
        ),
        (
            "*,5,20\n*,0,10",
            "trace.csv, line 2: [5, 20) of device * overlaps the one that ends at 10",
        ),
        ("*,0,ten", "line 2: from '0' to 'ten' is not allowed; allowed: two numbers, 0 <= start"),
        ("*,0,nan", "line 2: from '0' to 'nan' is not allowed"),
        ("*,0,inf", "line 2: from '0' to 'inf' is not allowed"),
        ("*,-1,5", "line 2: from '-1' to '5' is not allowed"),
        ("*,5,5", "line 2: from '5' to '5' is not allowed"),
        ("*,0,1_0", "line 2: from '0' to '1_0' is not allowed"),
        ("*,0", "line 2: 2 columns; allowed: 3"),
        ("*,0,5,on", "line 2: 4 columns; allowed: 3"),
        ('"*,0,5', "line 2: unexpected end of data"),
        ("3,0,5\n*,0,5", "unknown device '3'; allowed: 0 to 2, phone-low, rpi-4, or * for all"),
        ("01,0,5\n*,0,5", "unknown device '01'"),
        ("²,0,5\n*,0,5", "unknown device '²'"),
        ("rpi-5,0,5\n*,0,5", "unknown device 'rpi-5'"),
        (
            "rpi-4,0,5\n1,0,5",
            "trace.csv: nothing about device 2 (phone-low); allowed: rows of each",
        ),
        ("", "trace.csv holds no intervals"),
    ],
)
def test_a_wrong_csv_is_one_clear_line(tmp_path, rows, expected):
    assert expected in refusal(tmp_path, f"device,start,end\n{rows}\n")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("*,5,10,on", "device * has no state from 0 to 5; rows with states must cover the whole"),
        ("*,0,4,on\n*,5,9,off", "device * has no state from 4 to 5"),
        ("*,0,9,on\n0,0,5,off", "device 0 has no state from 5 to 9"),
        ("*,0,9,on\n0,0,5,off\n0,4,9,on", "line 4: [4, 9) of device 0 overlaps the one that ends"),
        ("*,0,9,idle", "line 2: state 'idle' is not allowed; allowed: on, off"),
    ],
)
def test_states_cover_the_whole_span(tmp_path, rows, expected):
    assert expected in refusal(tmp_path, f"device,start,end,state\n{rows}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "trace.json: not valid JSON"),
        ("[]", "trace.json: it is a list; allowed: an object"),
        ("{}", "trace.json: allowed: an object with devices, and perhaps span"),
        ('{"devices": {}}', "trace.json holds no intervals"),
        ('{"devices": {}, "unit": "s"}', "unknown key 'unit'; allowed: devices, span"),
        ('{"devices": {"*": [[0, 5]]}, "span": 4}', "[0, 5) ends after span = 4"),
        ('{"devices": {"*": [[0, 5]]}, "span": 0}', "span = 0 is not allowed"),
        ('{"devices": {"*": [[0, 5]], "*": [[0, 5]]}}', "'*' stands twice"),
        ('{"devices": {"*": []}}', "device *: allowed: a list of at least one interval"),
        ('{"devices": {"*": [[0, 5], 7]}}', "device *, interval 2: allowed: [start, end] or"),
        ('{"devices": {"*": [[0, "5"]]}}', "device *, interval 1: from 0 to '5' is not allowed"),
        ('{"devices": {"*": [[0, true]]}}', "from 0 to True is not allowed"),
        ('{"devices": {"*": [[0, NaN]]}}', "NaN is no finite number"),
        ('{"devices": {"*": [[0, 1' + 400 * "0" + "]]}}", "is not allowed; allowed: two numbers"),
        ('{"devices": {"*": [[0, 5, []]]}}', "state [] is not allowed; allowed: on, off"),
        ('{"devices": {"*": [[0, 5, "on"]], "0": [[0, 5]]}}', "some rows have states and some"),
    ],
)
def test_a_wrong_json_is_one_clear_line(tmp_path, text, expected):
    assert expected in refusal(tmp_path, text, ".json")


def test_a_trace_is_a_file_of_a_known_kind(tmp_path):
    assert "allowed: device,start,end or device,start,end,state" in refusal(tmp_path, "a,b\n0,1\n")
    assert "trace.pkl is not a trace; allowed: a file that ends in .csv" in refusal(
        tmp_path, "", ".pkl"
    )
    with pytest.raises(InputError, match="no such file"):
        load_trace(tmp_path / "none.csv", FLEET)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        load_trace(tmp_path / "bytes.csv", FLEET)
