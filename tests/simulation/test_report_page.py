import json
import re
from html.parser import HTMLParser

import pytest
from example_run import example_files, write_files

from mest_fed.errors import InputError
from mest_fed.simulation.report import write_report
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.tables import headline_tiles

HOSTILE = "<script>alert('&')</script>\"><img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "hr", "input"}


def pack_nonzeros(text):
    """Make one space of white space, but keep the narrow spaces within numbers."""
    return re.sub(r"[ \n]+", " ", text).strip()


class Page(HTMLParser):
    """Collects elements, ids and visible text; checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(pack_nonzeros(data))

    @property
    def text(self):
        return " ".join(word for word in self.words if word)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    contents = example_files(rounds=4, tiers=3, clients_per_round=8)
    return write_files(tmp_path_factory.mktemp("run"), contents)


@pytest.fixture(scope="module")
def html(folder):
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def page_of(tmp_path, contents):
    return Page(write_report(write_files(tmp_path, contents)).read_text(encoding="utf-8"))


@pytest.mark.soak
def test_the_report_lies_in_the_run_folder_and_is_repeatable(folder, html):
    assert write_report(folder) == folder / "report.html"
    assert (folder / "report.html").read_text(encoding="utf-8") == html


def test_the_page_needs_nothing_from_elsewhere(html, page):
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img", "image"}
    for _, attributes in page.elements:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_tile_is_shown_with_its_basis(folder, page):
    tiles = headline_tiles(load_run(folder))
    assert len(tiles) == 8
    for tile in tiles:
        assert f"{tile.label} {tile.basis} {tile.value}" in page.text
        for note in tile.notes:
            assert note in page.text


def test_the_header_says_what_ran(folder, page):
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("preset", "dataset", "model", "method", "mutation", "scheme", "model_sha256"):
        assert str(summary[key]) in page.text
    assert "Seed 7" in page.text
    assert "Target density 10%" in page.text


def test_a_run_without_a_preset_is_not_said_to_have_one(page, tmp_path):
    assert " Run cifar10-edge-fleet Data set" in page.text  # no preset has this name
    contents = example_files(rounds=2)
    contents["summary"]["preset"] = "quickstart"
    assert " Preset quickstart Data set" in page_of(tmp_path, contents).text


@pytest.mark.soak
@pytest.mark.parametrize(
    ("facts", "lead"),
    [
        ({"devices": 1_000_000, "devices_asked": 1000}, "1 000 were asked to train"),
        ({"devices": 3, "devices_asked": 3}, "3 simulated devices of 5 kinds were asked to train"),
        ({"devices": 3, "devices_asked": 1, "deployed": True}, "Of 3 devices of 5 kinds 1 was"),
    ],
)
def test_the_lead_says_who_was_asked(tmp_path, facts, lead):
    contents = example_files(rounds=3)
    contents["summary"] |= facts
    text = page_of(tmp_path, contents).text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert lead in text
    assert ("simulat" in text.partition("In numbers")[0]) == ("deployed" not in facts)
    assert ("The devices were real" in text) == ("deployed" in facts)
    assert ("Virtual time modelled" in text) == ("deployed" not in facts)
    assert ("virtual time" in text) == ("deployed" not in facts)


def test_each_tier_states_its_plan_and_numbers(folder, page):
    for tier in json.loads((folder / "summary.json").read_text())["tiers"]:
        assert f"{tier['title']} {tier['profile']} {tier['clients']}" in page.text
        assert tier["plan"] in page.text


def test_each_layer_says_why_it_is_dense(page):
    assert "stem 864 100% stem: the first convolution" in page.text


def test_the_configuration_is_quoted(folder, page):
    config = (folder / "config.toml").read_text()
    assert pack_nonzeros(config) in page.text


def test_figures_are_captioned(page):
    tags = [tag for tag, _ in page.elements]
    assert tags.count("figure") == tags.count("figcaption") >= 6
    assert tags.count("svg") == tags.count("figure")


def test_hostile_names_stay_text(tmp_path):
    contents = example_files(rounds=1, tiers=2, clients_per_round=6, losses=False)
    summary = contents["summary"]
    for key in ("preset", "dataset", "model", "method", "mutation", "scheme", "model_sha256"):
        summary[key] = HOSTILE
    summary["versions"] = {HOSTILE: HOSTILE}
    summary["layers"][1] |= {"name": HOSTILE, "reason": HOSTILE}
    summary["tiers"][0] |= {"title": HOSTILE, "profile": HOSTILE, "plan": HOSTILE}
    summary["tiers"][0]["parts"] = {HOSTILE: 5}
    for task in contents["clients"][:3]:
        task |= {"device": HOSTILE, "status": "failed", "reason": HOSTILE}
    for task in contents["clients"][3:]:
        task["device"] = "<script>"
    contents["config"] += f"# {HOSTILE}\n"
    page = page_of(tmp_path, contents)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img"}
    assert f"on {HOSTILE}" in page.text


def test_a_run_without_accuracy_says_so(tmp_path):
    contents = example_files(rounds=1, tiers=1, clients_per_round=2)
    contents["summary"] |= {"final_accuracy": None, "final_client_accuracy": None}
    for row in contents["rounds"]:
        row |= {"accuracy": None, "client_accuracy": None}
    shown = page_of(tmp_path, contents).text
    assert "Final accuracy measured — not evaluated in this run" in shown
    assert "This run evaluated no accuracy" in shown


@pytest.mark.soak
def test_a_dense_run_without_failures_but_over_budget_says_so(tmp_path):
    contents = example_files(rounds=1, tiers=1, clients_per_round=2, losses=False)
    changes = {"mutation": None, "target_density": 1.0, "achieved_density": 1.0, "over_budget": 3}
    contents["summary"] |= changes
    for layer in contents["summary"]["layers"]:
        layer["density"] = 1.0
    page = page_of(tmp_path, contents)
    shown = page.text
    assert "All weights are active in the final global model" in shown
    assert "All layers of the final model are dense." in shown
    assert "accepted an update from every task" in shown
    assert any(attributes.get("class") == "tile alarm" for _, attributes in page.elements)


def test_a_page_that_cannot_be_written_is_an_input_error(tmp_path):
    folder = write_files(tmp_path, example_files(rounds=1, tiers=1, clients_per_round=1))
    (folder / "report.html").mkdir()
    with pytest.raises(InputError, match=r"report\.html cannot be written"):
        write_report(folder)
