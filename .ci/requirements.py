"""Prints what an extra of this project needs, or, without one, what building it needs.

    python .ci/requirements.py dev > requirements.txt

pip would list the former only together with the package, which takes a while to compile.
"""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
OWN = f"{PROJECT['project']['name']}["


def needs(requirements: list[str]) -> Iterator[str]:
    """Yield requirements, with those of the project's own extras in their place."""
    for requirement in requirements:
        if requirement.startswith(OWN):
            for extra in requirement.removeprefix(OWN).removesuffix("]").split(","):
                yield from needs(PROJECT["project"]["optional-dependencies"][extra])
        else:
            yield requirement


if __name__ == "__main__":
    if len(sys.argv) == 1:
        found = list(needs(PROJECT["build-system"]["requires"]))
    else:
        found = [*PROJECT["project"]["dependencies"], *needs([f"{OWN}{sys.argv[1]}]"])]
    print(*dict.fromkeys(found), sep="\n")
