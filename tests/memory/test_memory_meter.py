"""The meter counts anonymous memory: a short peak in full, and pages of files not at all."""

import pytest
from memory_cases import answer_of

from mest_fed.system.peak_meter import can_measure

pytestmark = pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")

MB = 10**6
#: Measures micro_chunks of work in one process; prints what each added in bytes.
CODE = """
import json, sys, time
import numpy as np
from mest_fed.system import peak_meter as meter

MB, file = 10**6, sys.argv[1]
np.ones(20 * MB, np.uint8).tofile(file)

def spike():
    np.ones(30 * MB, np.uint8)  # freed at once, long before the next look

def read(pages):
    for start in range(0, len(pages), MB):
        pages[start : start + MB].max()
        time.sleep(0.006)

mapped = []

def fresh():
    mapped.append(np.memmap(file, np.uint8, "c"))
    return mapped[-1]

def measured(*works):
    with meter.PeakMeter() as used:
        for work in works:
            work()
    return used.added

seen, written = fresh(), fresh()
read(seen)
found = {
    "nothing": measured(),
    "a spike": measured(spike),
    "pages of a file": measured(lambda: read(fresh())),
    "pages that were seen": measured(lambda: seen.max()),
    "a spike, then pages": measured(spike, lambda: read(fresh())),
    "pages, then a spike": measured(lambda: read(fresh()), spike),
    "pages that are written": measured(lambda: written.__setitem__(slice(10 * MB), 1)),
    "libraries": measured(lambda: __import__("email.mime.text"), spike),
}
meter.can_reset_peak = lambda: False
def held():
    block = np.ones(30 * MB, np.uint8)
    time.sleep(0.1)
found["without a mark"] = measured(held)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    file = tmp_path_factory.mktemp("meter") / "pages"
    return answer_of(CODE, str(file))


@pytest.mark.parametrize(
    ("work", "megabytes", "off"),
    [
        ("nothing", 0, 0.5),
        ("a spike", 30, 0.5),
        # A megabyte at a time, and the look comes when it comes.
        ("pages of a file", 0, 5),
        ("pages that were seen", 0, 0.5),
        ("a spike, then pages", 30, 5),
        ("pages, then a spike", 30, 5),
        ("pages that are written", 10, 0.5),
        ("libraries", 30, 3),
        ("without a mark", 30, 0.5),
    ],
)
def test_what_work_adds(found, work, megabytes, off):
    assert found[work] / MB == pytest.approx(megabytes, abs=off)
