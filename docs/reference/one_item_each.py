"""Griffe's part in the library reference: each parameter gets its own type and default.

The numpy convention lets parameters share an item (``weight_decay, clip_norm : float``). Griffe
gives all of them the type and default that the first one has in the signature, so shared items are
divided before it reads them.
"""

import re
from typing import Any

import griffe

#: Items that more than one name shares, with their description.
SHARED = re.compile(r"^(?P<names>\w+(?:, \w+)+)(?P<rest>(?: : .*)?(?:\n+ +\S.*)*)$", re.M)
#: A section of parameters or attributes, up to the next heading.
SECTION = re.compile(
    r"^(?:Parameters|Attributes)\n-+\n.*?(?=^[^\n]+\n-{3,}$|\Z)", re.MULTILINE | re.DOTALL
)


def divided(docstring: str) -> str:
    """Return a docstring whose items of parameters and attributes have one name each."""

    def item(found: re.Match[str]) -> str:
        return "\n".join(f"{name}{found['rest']}" for name in found["names"].split(", "))

    return SECTION.sub(lambda section: SHARED.sub(item, section[0]), docstring)


class OneItemEach(griffe.Extension):
    """Divides shared items in all docstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Edit the docstring of an object that was loaded (called by griffe)."""
        if obj.docstring is not None:
            obj.docstring.value = divided(obj.docstring.value)
