"""Programs that nodes ask for: built once, and where they cannot be built, refused once."""

import logging
import threading
import time
from dataclasses import replace

import pytest
from link_parts import QUICK, node, serve

from mest_fed.errors import InputError, WireError
from mest_fed.link.messages import ProgramKind, ProgramRequest
from mest_fed.link.server import programs

STEP = ProgramRequest(ProgramKind.STEP, 8, (("conv1", 96),), mutates=True)
FORWARD = ProgramRequest(ProgramKind.FORWARD, 8)
CANNOT = "the server cannot build this program: "
MADE = {"first": b"made"}


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(programs, "_PAUSES", (0.01, 0.02))


class Builder:
    """Builds any program but those of steps, for which it raises errors in turn, the last again."""

    def __init__(self, *errors, then_builds=False):
        self.errors, self.then_builds = list(errors), then_builds
        self.asked = []

    def __call__(self, info, request):
        self.asked.append(request)
        if request.kind is ProgramKind.FORWARD or not self.errors:
            return MADE
        raise self.errors.pop(0) if len(self.errors) > 1 or self.then_builds else self.errors[0]


def lines(caplog, text):
    return [it.getMessage() for it in caplog.records if text in it.getMessage()]


def test_programs_are_built_once_for_nodes_of_one_shape(authority):
    asked = []

    def build(info, request):
        asked.append((info.description.profile_name, request))
        return {"program.json": f"{request.examples}".encode(), "empty": b""}

    with serve(authority.server(), program=build) as server:
        for name in ("pi-1", "pi-2"):
            with node(server.port, name, authority.node(name), profile_name="rpi-4") as link:
                link.register()
                assert link.program(STEP) == {"program.json": b"8", "empty": b""}
        assert asked == [("rpi-4", STEP)]


def test_a_server_without_programs_says_so():
    with serve() as server, node(server.port) as link:
        link.register()
        with pytest.raises(WireError, match="no programs are built here"):
            link.program(FORWARD)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no kernel\nfits"), f"{CANNOT}RuntimeError: no kernel fits"),
        (InputError("0 active granules"), "0 active granules"),
        (SystemExit(3), f"{CANNOT}SystemExit: 3"),
        (StopIteration(), f"{CANNOT}StopIteration"),
    ],
)
def test_a_program_that_cannot_be_built_is_tried_once_and_said_once(caplog, error, reason):
    caplog.set_level(logging.INFO, "mest_fed.link")
    build = Builder(error)
    with serve(program=build) as server:
        for name in ("pi-1", "pi-2"):
            with node(server.port, name, profile_name="rpi-4") as link:
                link.register()
                for _ in range(3):
                    with pytest.raises(WireError, match=reason):
                        link.program(STEP)
                assert link.program(FORWARD) == MADE  # other programs and nodes go on
    assert build.asked == [STEP, FORWARD]
    assert len(lines(caplog, "is not built again")) == 1
    assert not lines(caplog, "next attempt")
    assert not lines(caplog, "refused")


def test_a_node_asks_once_in_a_session_and_the_server_remembers_for_the_run(monkeypatch):
    build, calls = Builder(RuntimeError("no")), []
    with serve(program=build) as server, node(server.port) as link:
        unary = link._channel.unary

        def counted(name, *args, **how):
            calls.append(name)
            return unary(name, *args, **how)

        monkeypatch.setattr(link._channel, "unary", counted)
        for registered in (1, 2):
            link.register()
            for _ in range(2):
                with pytest.raises(WireError, match="RuntimeError: no"):
                    link.program(STEP)
            assert calls.count("Program") == registered
    assert build.asked == [STEP]


@pytest.mark.parametrize("error", [OSError("no space"), MemoryError("no memory")])
def test_a_cause_that_may_pass_is_tried_again(caplog, error):
    build = Builder(error, error, then_builds=True)
    with serve(program=build) as server, node(server.port) as link:
        link.register()
        assert link.program(STEP) == MADE
    assert len(build.asked) == 3
    assert len(lines(caplog, "next attempt in 0.01 s")) == 1
    assert not lines(caplog, "is not built again")


def test_a_cause_that_does_not_pass_is_tried_three_times(caplog):
    build = Builder(OSError("no space"))
    with serve(program=build) as server, node(server.port) as link:
        link.register()
        for _ in range(2):
            with pytest.raises(WireError, match="after 3 attempts: OSError: no space"):
                link.program(STEP)
    assert len(build.asked) == 3
    assert len(lines(caplog, "is not built again")) == 1


def test_nodes_that_wait_for_one_program_are_all_told(caplog):
    caplog.set_level(logging.INFO, "mest_fed.link")
    asked, told = [], []

    def build(info, request):
        asked.append(request)
        end = time.monotonic() + 10
        while sum(it.streams for it in server._book._nodes.values()) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        raise RuntimeError("no")

    def ask(name):
        with node(server.port, name) as link:
            link.register()
            with pytest.raises(WireError, match="RuntimeError: no"):
                link.program(STEP)
            told.append(name)

    with serve(program=build) as server:
        asking = [threading.Thread(target=ask, args=(name,)) for name in ("pi-1", "pi-2")]
        for each in asking:
            each.start()
        for each in asking:
            each.join(15)
    assert sorted(told) == ["pi-1", "pi-2"]
    assert asked == [STEP]
    assert len(lines(caplog, "is not built again")) == 1


def test_the_failures_that_a_server_remembers_are_bounded(monkeypatch):
    monkeypatch.setattr(programs, "_MOST_FAILED", 2)
    build = Builder(RuntimeError("no"))
    limits = replace(QUICK, program_burst=100)
    wanted = [replace(STEP, examples=count) for count in (1, 2, 3)]
    with serve(program=build, limits=limits) as server, node(server.port) as link:
        for each in (*wanted, wanted[2], wanted[0]):
            link.register()
            with pytest.raises(WireError, match="RuntimeError: no"):
                link.program(each)
    assert build.asked == [*wanted, wanted[0]]  # the first was forgotten, the last was not
