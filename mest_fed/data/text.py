"""Lines of text as sequences of tokens, of which a model predicts the next."""

from pathlib import Path

import numpy as np

from mest_fed.data.parts import Column, Part
from mest_fed.errors import InputError, not_allowed

TOKENS = ("characters", "words")


def read_text(file: Path, key: str, *, length: int = 32, tokens: str = "characters") -> Part:
    """Read a text file as sequences.

    The text is cut into sequences of ``length + 1`` tokens, each of which begins with the last
    token of the sequence before: the first ``length`` are the input, the last ``length`` the
    targets. What is left at the end is too short, and is left out.

    Parameters
    ----------
    file : Path
        UTF-8.
    key : str
        Names the setting in errors.
    length : int
        Tokens in a sequence.
    tokens : {"characters", "words"}
        Words are what stands between white space; the end of a line is a word, too.

    Raises
    ------
    InputError
        If the file cannot be read or is shorter than one sequence, or an option is wrong.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: {file} cannot be read as UTF-8 text ({error})") from error
    return sequences(split_text(text, tokens), length, f"{key}: {file}")


def split_text(text: str, tokens: str) -> list[str]:
    """Cut a text into characters or words.

    Raises
    ------
    InputError
        If ``tokens`` is neither.
    """
    if tokens not in TOKENS:
        raise not_allowed("data.options.tokens", tokens, TOKENS)
    if tokens == "characters":
        return list(text)
    return [word for line in text.splitlines() for word in (*line.split(), "\n")]


def check_length(length: object) -> None:
    """Check a number of tokens.

    Raises
    ------
    InputError
        If it is no positive whole number.
    """
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise not_allowed("data.options.length", length, "a positive whole number")


def sequences(tokens: list[str], length: int, where: str) -> Part:
    """Cut tokens into inputs and targets of ``length``; see :func:`read_text`.

    Raises
    ------
    InputError
        If there are too few tokens, or the length is not allowed.
    """
    check_length(length)
    count = (len(tokens) - 1) // length
    if count < 1:
        raise InputError(
            f"{where} has {len(tokens)} tokens; allowed: more than data.options.length = {length}"
        )
    whole = np.array(tokens[: count * length + 1])
    inputs = whole[:-1].reshape(count, length)
    targets = whole[1:].reshape(count, length)
    return Part(where, [Column("text", inputs)], [Column("text", targets)], overlap=0)
