"""Tokens that enrol one device each, of a folder that ``mest-fed certs`` made.

``tokens.json`` holds their digests and ends alone.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock

from mest_fed.errors import InputError
from mest_fed.strict_json import read_json
from mest_fed.system.files import write_file

TOKENS, TOKENS_LOCK = "tokens.json", "tokens.lock"


def make_token() -> str:
    """Return a new token: 128 bits, as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def token_digest(token: str) -> str:
    """Return what is stored of a token; a token has too many bits to be guessed from it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def add_token(folder: Path, token: str, hours: float) -> datetime:
    """Have a folder's authority accept a token, once; return until when.

    Raises
    ------
    InputError
        If the file of the tokens cannot be read or written, or is damaged.
    """
    expires = _now() + timedelta(hours=hours)
    with _tokens(folder) as tokens:
        tokens[token_digest(token)] = expires
    return expires


def redeem_token(folder: Path, token: str) -> bool:
    """Take a token, which is none any more then; return whether it was one, and still valid.

    Raises
    ------
    InputError
        As :func:`add_token`.
    """
    digest = token_digest(token)
    if digest not in _read_tokens(folder / TOKENS):  # a wrong one costs no write
        return False
    with _tokens(folder) as tokens:
        return tokens.pop(digest, None) is not None


def valid_tokens(folder: Path) -> list[datetime]:
    """Return the ends of the tokens that were not used; the errors are :func:`add_token`'s."""
    return sorted(_read_tokens(folder / TOKENS).values())


@contextmanager
def _tokens(folder: Path) -> Iterator[dict[str, datetime]]:
    """Give the valid tokens, digest -> end, and write what is left of them."""
    try:
        with FileLock(folder / TOKENS_LOCK, mode=0o600):
            tokens = _read_tokens(folder / TOKENS)
            yield tokens
            plain = {digest: end.isoformat() for digest, end in tokens.items()}
            write_file(folder / TOKENS, (json.dumps(plain, indent=2) + "\n").encode(), private=True)
    except OSError as error:
        raise InputError(f"{folder / TOKENS} cannot be written: {error.strerror}") from None


def _read_tokens(path: Path) -> dict[str, datetime]:
    """Return the tokens that have not expired."""
    if not path.exists():
        return {}
    try:
        plain = read_json(path, dict)
        ends = {digest: datetime.fromisoformat(end) for digest, end in plain.items()}
        return {digest: end for digest, end in ends.items() if end > _now()}
    except (TypeError, ValueError):
        raise InputError(f"{path} is damaged; remove it, and make new tokens") from None


def _now() -> datetime:
    return datetime.now(UTC)
