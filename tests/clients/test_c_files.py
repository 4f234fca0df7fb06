"""Files of programs and arrays: what is written is read; what is spoilt is one line."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from c_build import c_program, run
from c_samples import linear_program, linear_weights, mlp_program, sparse_program
from hypothesis import given, settings
from hypothesis import strategies as st

from mest_fed.errors import InputError
from mest_fed.runtime.build import Builder
from mest_fed.runtime.flat import flat_program, fnv, read_arrays, write_arrays
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.updates import SGD, with_updates

HEADER = 18


def words_of(data):
    return np.frombuffer(data[8 : 8 * HEADER], "<i8").tolist()


def test_the_header_says_what_the_program_is():
    program = linear_program()
    data = flat_program(program)
    assert data[:8] == b"MESTPROG"
    version, check, *rest = words_of(data)
    assert version == 1
    assert check & (2**64 - 1) == fnv(data[24:])
    arena, per_group, examples, groups = rest[:4]
    assert (per_group, examples, groups) == (program.per_group, 4, 1)
    assert arena % 64 == 0
    names = [program.buffers[it].name for it in rest[4:9]]
    assert names == ["input", "targets", "rates", "share", "loss"]
    kinds, buffers, *sizes, text = rest[9:15]
    assert kinds == len({it.name for it in program.operators})
    assert buffers == len(program.buffers)
    assert 8 * (HEADER + 4 * kinds + sum(sizes)) + text == len(data)
    end = data[-text:].rstrip(b"\0").split(b"\0")
    assert end[kinds:] == [it.name.encode() for it in program.buffers]


def test_the_check_is_fnv_1a():
    # http://www.isthe.com/chongo/tech/comp/fnv: the test vectors of "" and "a" and "foobar"
    assert [fnv(it) for it in (b"", b"a", b"foobar")] == [
        0xCBF29CE484222325,
        0xAF63DC4C8601EC8C,
        0x85944171F73967E8,
    ]


def test_a_program_that_draws_has_no_file():
    builder = Builder()
    x = builder.buffer("input", (4, 3), role="input")
    seed = builder.buffer("seed", (1,), "int64", role="setting")
    (dropped, *_) = builder.operator("dropout", {"x": x, "seed": seed}, {}, probability=0.5)
    weight = builder.buffer("w", (2, 3), role="parameter")
    (logits,) = builder.operator("linear", {"x": dropped, "w": weight}, {}, "logits")
    builder.role(logits, "output")
    forward = builder.end_phase(0).program()
    program = with_updates(with_gradients(with_loss(forward, "logits")), SGD())
    with pytest.raises(InputError, match=r"draws \['seed'\]; allowed: in a file"):
        flat_program(program)


def test_arrays_come_back(tmp_path):
    arrays = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "größe": np.array(-3, np.int64),
        "slots": np.array([1, -1, 7], np.int32),
        "empty": np.zeros((0, 4), np.uint8),
    }
    write_arrays(tmp_path / "file", arrays)
    found = read_arrays(tmp_path / "file")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    assert (tmp_path / "file").stat().st_size % 8 == 0
    with pytest.raises(InputError, match="type of 'x'"):
        write_arrays(tmp_path / "file", {"x": np.zeros(2, np.complex64)})


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_spoilt_arrays_are_refused_or_are_arrays(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "spoilt.arrays"
    write_arrays(path, linear_weights())
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) // 8 - 1))
    values = [0, 1, -1, 2**40, 2**62, -(2**63), 9, data.draw(st.integers(-(2**63), 2**63 - 1))]
    whole[8 * at : 8 * at + 8] = struct.pack("<q", data.draw(st.sampled_from(values)))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with suppress(InputError):
        assert all(isinstance(it, np.ndarray) for it in read_arrays(path).values())


@pytest.mark.parametrize("make", [linear_program, mlp_program, sparse_program])
def test_spoilt_programs_never_crash_the_c_interface(tmp_path, make):
    (tmp_path / "step.program").write_bytes(flat_program(make()))
    for seed in range(2):
        said = run(c_program("mest_spoil"), tmp_path / "step.program", 1500, seed)
        assert said.returncode == 0, said.stderr[-2000:]
        counts = {
            name.rsplit(" ", 1)[0]: int(name.rsplit(" ", 1)[1])
            for name in said.stdout.strip().split(", ")
        }
        assert sum(counts.values()) == 1500
        # each way must be gone, else this says nothing
        assert counts["unread"] > 100
        assert counts["refused"] > 10
        assert counts["ran"] > 10
