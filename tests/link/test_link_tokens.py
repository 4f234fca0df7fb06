"""Tokens that enrol one device each."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from mest_fed.errors import InputError
from mest_fed.link import tokens as link_tokens
from mest_fed.link.tokens import add_token, make_token, redeem_token, token_digest, valid_tokens


def test_a_token_is_taken_once(tmp_path):
    token = make_token()
    assert len(token) == 32
    end = add_token(tmp_path, token, 24)
    assert end - datetime.now(UTC) == pytest.approx(timedelta(hours=24), abs=timedelta(minutes=1))
    assert valid_tokens(tmp_path) == [end]
    assert json.loads((tmp_path / "tokens.json").read_text()) == {
        token_digest(token): end.isoformat()
    }
    assert not redeem_token(tmp_path, make_token())
    assert not redeem_token(tmp_path, "\ud800")
    assert redeem_token(tmp_path, token)
    assert not redeem_token(tmp_path, token)
    assert valid_tokens(tmp_path) == []


def test_a_token_expires(tmp_path, monkeypatch):
    tokens = [make_token() for _ in range(2)]
    for token, hours in zip(tokens, (1, 3), strict=True):
        add_token(tmp_path, token, hours)
    later = datetime.now(UTC) + timedelta(hours=2)
    monkeypatch.setattr(link_tokens, "_now", lambda: later)
    assert [redeem_token(tmp_path, token) for token in tokens] == [False, True]


def test_of_many_that_bring_a_token_one_is_taken(tmp_path):
    token = make_token()
    add_token(tmp_path, token, 1)
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: redeem_token(tmp_path, token), range(16)))
    assert sum(taken) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": "soon"}', '{"a": "2040-01-01"}'])
def test_a_file_of_tokens_that_is_damaged(tmp_path, text):
    (tmp_path / "tokens.json").write_text(text)
    with pytest.raises(InputError, match=r"tokens\.json"):
        redeem_token(tmp_path, "a")
