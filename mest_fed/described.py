"""What errors and values are, in words: for the lines that name them.

The place of an error is the line that a user can change, where there is one: the innermost frame
outside installed packages.
"""

import os
import site
import sysconfig
import traceback
from functools import cache
from importlib.util import find_spec
from pathlib import Path

#: Characters of an error's own text that a line shows.
LONGEST = 500

#: Packages that only pass an error on.
_PASSED = ("mest_fed", "torch")

#: Folders of installed packages, in whichever environment.
_PACKAGES = {"site-packages", "dist-packages"}


def one_line(error: BaseException) -> str:
    """Return an error's own text as one line of at most ``LONGEST`` characters; its kind if empty.

    What is longer ends with an ellipsis, after a sentence or a word.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= LONGEST:
        return text
    head = text[: LONGEST - len(" …")]
    sentence, word = head.rfind(". ") + 1, head.rfind(" ")
    end = sentence if sentence > LONGEST // 2 else word
    return f"{head[:end] if end > 0 else head} …"


def described(error: BaseException) -> str:
    """Say in one line what an error is and where, outside this package and torch, it was raised."""
    kind, said = type(error).__name__, one_line(error)
    text = kind if said == kind else f"{kind}: {said}"
    raised = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in raised if not frame.filename.startswith((*_passed(), "<"))]
    if isinstance(error, SyntaxError) or not frames:
        return text
    own = [frame for frame in frames if not is_installed(frame.filename)]
    place = (own or frames)[-1]
    return f"{text} ({place.filename}:{place.lineno})"


def kind_of(thing: object) -> str:
    """Say what a value is, with its article: ``an int``, ``the class Linear``, ``None``."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if thing is None:
        return "None"
    name = type(thing).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def is_installed(file: str) -> bool:
    """Say whether a file is Python's, this package's, or in a folder of installed packages."""
    return file.startswith(_installed()) or not _PACKAGES.isdisjoint(Path(file).parts)


@cache
def _installed() -> tuple[str, ...]:
    """Return what the paths of installed files begin with."""
    paths = sysconfig.get_paths()
    places = [paths["stdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages()]
    places += [site.getusersitepackages(), os.path.dirname(__file__)]
    return tuple(place + os.sep for place in places)


@cache
def _passed() -> tuple[str, ...]:
    specs = [find_spec(name) for name in _PASSED]
    return tuple(os.path.dirname(it.origin) + os.sep for it in specs if it and it.origin)
