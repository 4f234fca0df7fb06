"""Files of the project that its pages name are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("mest_fed", "benchmarks", "clients", "simulations", "examples", "tests")
#: A file in a folder of ours, or in the plan of the house any file of code, in a span of code.
NAMED = re.compile(rf"`(?:python )?((?:{'|'.join(FOLDERS)})/[\w/.-]+\.\w+)[`: ]")
IN_PLAN = re.compile(r"`((?:[\w-]+/)*[\w-]+\.(?:py|h|cpp|proto|toml))`")
#: Of a run's folder, of a reader's own, and what stands for any name.
OTHERS = {"config.toml", "clients/my_nets.py", "mest_fed/runtime/native/NAME.cpp"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    named = set(NAMED.findall(page.read_text(encoding="utf-8"))) - OTHERS
    assert not [name for name in sorted(named) if not (ROOT / name).is_file()]


def test_files_in_the_plan_of_the_house_are_there():
    folders = (*FOLDERS, "server")  # which has the app that Flower loads
    ours = [f"/{it.relative_to(ROOT)}" for each in folders for it in (ROOT / each).rglob("*.*")]
    plan = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(IN_PLAN.findall(plan)) - OTHERS
    assert len(named) > 100
    assert not [name for name in sorted(named) if not any(it.endswith(f"/{name}") for it in ours)]
