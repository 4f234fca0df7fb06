"""JSON from outside: what is read, and what is refused in one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed import strict_json
from mest_fed.errors import InputError
from mest_fed.strict_json import parse_json, read_json

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False).filter(lambda number: abs(number) != float("inf")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), plain, max_size=4))
def test_what_json_writes_comes_back(table):
    text = json.dumps(table)
    assert parse_json(text, "it", dict) == parse_json(text.encode(), "it", dict) == table


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("{} {}", "not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": [-Infinity]}', "-Infinity is no finite number"),
        ('{"a": 1e999}', "1e999 is no finite number"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "'b' stands twice"),
        ("[]", "it is a list; allowed: an object"),
        ("null", "it is null; allowed: an object"),
        ("true", "it is true or false; allowed: an object"),
        ("3", "it is a number; allowed: an object"),
        ('"x"', "it is a text; allowed: an object"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_refused(text, words):
    with pytest.raises(InputError) as error:
        parse_json(text, "the answer", dict)
    assert str(error.value).startswith("the answer: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_where_one_is_wanted():
    assert parse_json("[1, 2.5]", "it", list) == [1, 2.5]
    with pytest.raises(InputError, match="it is an object; allowed: a list"):
        parse_json("{}", "it", list)


def test_numbers_that_are_not_finite_may_become_null():
    text = '{"a": NaN, "b": [Infinity, 1e999, 1.5]}'
    found = parse_json(text, "it", dict, infinite_as_null=True)
    assert found == {"a": None, "b": [None, None, 1.5]}


def test_what_is_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(strict_json, "LARGEST", 10)
    file = tmp_path / "long.json"
    file.write_text('{"a": 1234567}')
    with pytest.raises(InputError, match=r"long\.json: more than 0 MiB"):
        read_json(file, dict)
    with pytest.raises(InputError, match="it: more than"):
        parse_json("[1, 2, 3, 4]", "it", list)


def test_files(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')  # as some editors write it
    assert read_json(file, dict) == {"a": 1}
    with pytest.raises(InputError, match=r"none\.json cannot be read: No such file"):
        read_json(tmp_path / "none.json", dict)
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path, dict)
