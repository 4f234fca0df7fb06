"""The table of choices as JSON: it comes back as it was, and nothing else comes in."""

import copy
import json

import pytest
import torch
from tuning_cases import CUTS, layer_case

from mest_fed.catalogue import KernelMode
from mest_fed.errors import InputError
from mest_fed.kernels.choice import Choice, Choices
from mest_fed.kernels.table import (
    Row,
    Table,
    choices_to_rows,
    load_choices,
    parse_table,
    read_table,
)

MIXED = Choice("padded", "dense", "shifted")
TIMES = {name: {"dense": 0.5, "padded": 0.25} for name in Choice._fields}


def table(mode="tuned", **changes):
    strips, channels = layer_case().case, layer_case(CUTS["out"], active=1).case
    rows = (
        Row(("a", "b.conv"), strips, MIXED, TIMES),
        Row(("c",), channels, Choice("channels", "dense", "channels")),
    )
    facts = {"variant": "avx2", "threads": 3, "torch": "2.8.0"} | changes
    return Table(mode, rows, **facts)


@pytest.mark.parametrize("variant", ["avx512", "something", None])
@pytest.mark.parametrize("mode", KernelMode)
def test_it_comes_back_as_it_was(mode, variant):
    before = table(mode, variant=variant)
    assert parse_table(json.dumps(choices_to_rows(before)), "x") == before


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut(cut):
    layer = layer_case(CUTS[cut], active=1)
    before = Table("tuned", (Row((), layer.case, Choice(*["dense"] * 3)),), None, 1, "2")
    assert load_choices(choices_to_rows(before), "x") == before


def test_who_made_it():
    made = Table.made_here("rule", [])
    assert (made.rows, made.threads, made.torch) == ((), torch.get_num_threads(), torch.__version__)


def test_what_it_tells():
    rows = table().rows
    assert table().choices == Choices({row.case: row.choice for row in rows})
    assert table("rule").choices == Choices()
    assert table("dense").choices == Choices(dense=True)


def changed(path, value):
    """Return the table's JSON with one value replaced, or left out if that is ``None``."""
    raw = copy.deepcopy(choices_to_rows(table()))
    at = raw
    for key in path[:-1]:
        at = at[key]
    if value is LEFT_OUT:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return raw


LEFT_OUT = object()
CASE, CHOICE, TIME = ("rows", 0, "case"), ("rows", 0, "choice"), ("rows", 0, "milliseconds")
WRONG = [
    (("format",), 2, "format = 2"),
    (("format",), LEFT_OUT, "allowed: format, mode"),
    (("more",), 1, "more"),
    (("mode",), "fast", "mode = 'fast' is not allowed; allowed: rule, tuned, dense"),
    (("mode",), ["rule"], "mode"),
    (("variant",), 512, "variant = 512"),
    (("torch",), None, "torch = None"),
    (("threads",), 0, "threads = 0"),
    (("threads",), True, "threads = True"),
    (("threads",), 1.0, r"threads = 1\.0"),
    (("rows",), {}, "rows = {}"),
    (("rows", 0), "padded", r"rows\[0\] has str"),
    (("rows", 1), choices_to_rows(table())["rows"][0], r"rows\[1\] repeats"),
    (("rows", 0, "layers"), "a", "layers = 'a'"),
    (("rows", 0, "layers"), [1], r"layers = \[1\]"),
    ((*CHOICE, "forward"), "fast", r"rows\[0\]\.choice\.forward = 'fast'"),
    ((*CHOICE, "forward"), "channels", "allowed: dense, padded, shifted"),
    (("rows", 1, "choice", "forward"), "padded", "allowed: dense, channels"),
    ((*CHOICE, "forward"), 0, "forward = 0"),
    ((*CHOICE, "backward"), "dense", "allowed: forward, backward_input"),
    ((*CHOICE, "forward"), LEFT_OUT, "allowed: forward, backward_input"),
    ((*CASE, "cut"), "strips:0", "cut = 'strips:0'"),
    ((*CASE, "cut"), "strips:4\n", "cut = "),
    ((*CASE, "cut"), None, "cut = None"),
    ((*CASE, "shape"), [8, 4, 3], "shape"),
    ((*CASE, "shape"), [8, 4, 3, 0], "shape = 0"),
    ((*CASE, "size"), [16, "16"], "size = '16'"),
    ((*CASE, "stride"), [0, 1], "stride = 0"),
    ((*CASE, "padding"), [0, -1], "padding = -1"),
    ((*CASE, "dilation"), 1, "dilation = 1"),
    ((*CASE, "band"), 0.123, r"band = 0\.123"),
    ((*CASE, "band"), [], "band"),
    ((*CASE, "band"), True, "band = True"),
    ((*CASE, "threads"), -1, "threads = -1"),
    (TIME, None, "milliseconds has NoneType"),
    ((*TIME, "forward"), 3, "forward = 3"),
    ((*TIME, "forward"), {"quick": 1}, "'quick'"),
    ((*TIME, "forward"), {"dense": -1}, "dense = -1"),
    ((*TIME, "forward"), {"dense": float("nan")}, "dense = nan"),
    ((*TIME, "forward"), {"dense": "1"}, "dense = '1'"),
    ((*TIME, "forward"), LEFT_OUT, "allowed: forward"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_what_is_wrong_is_named_in_one_line(path, value, message):
    with pytest.raises(InputError, match=message) as caught:
        load_choices(changed(path, value), "runs/x/kernels.json")
    assert str(caught.value).startswith("runs/x/kernels.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [None, [], "rule", 3, {}])
def test_no_table_at_all(raw):
    with pytest.raises(InputError, match="x has "):
        load_choices(raw, "x")


def test_files(tmp_path):
    path = tmp_path / "kernels.json"
    with pytest.raises(InputError, match=r"kernels\.json cannot be read"):
        read_table(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not valid JSON"):
        read_table(path)
    for text in ('{"mode": ', "[" * 100_000):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"kernels\.json: not valid JSON"):
            read_table(path)
    path.write_text(json.dumps(choices_to_rows(table())), encoding="utf-8")
    assert read_table(path) == table()
