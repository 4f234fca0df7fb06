"""A run folder as one HTML page."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from mest_fed.errors import InputError
from mest_fed.schema import ACCURACY, TaskStatus
from mest_fed.simulation.report import tables
from mest_fed.simulation.report.app_run import page_values
from mest_fed.simulation.report.figures import draw_charts
from mest_fed.simulation.report.formats import (
    count_of,
    format_count,
    format_metric,
    format_percent,
    short_name,
)
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.node_table import NODE_COLUMNS, OPEN_NODES, node_rows
from mest_fed.simulation.report.plan_table import PLAN_COLUMNS, part_meanings, plan_rows
from mest_fed.simulation.report.run_facts import origin_of
from mest_fed.simulation.report.runs import AppRun, Run
from mest_fed.simulation.report.statistics import rounds_without_update
from mest_fed.simulation.report.tables import headline_tiles, kernel_table
from mest_fed.simulation.settings import preset_names


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` into a run's folder and return its path.

    An unfinished run is shown up to its newest checkpoint, and marked as such.

    The page is self-contained: it opens without a network, and the same run gives the same bytes.

    Raises
    ------
    InputError
        If the folder does not hold a run with a checkpoint, or the page cannot be written.
    """
    page = render_page(load_run(run_folder, unfinished=True))
    path = run_folder / "report.html"
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from None
    return path


def render_page(run: Run | AppRun) -> str:
    """Render the report of a run; whatever the run's files say is escaped."""
    if isinstance(run, AppRun):
        return fill_template("app.html.j2", **page_values(run))
    return fill_template(
        "report.html.j2",
        run=run,
        summary=run.summary,
        heading=f"{short_name(run.summary.method)} on {run.dataset}",
        in_short=_in_short(run),
        warning=_warning(run),
        every_task_ok=all(task.status == TaskStatus.OK for task in run.tasks),
        facts=_facts(run),
        tiles=headline_tiles(run),
        charts=draw_charts(run),
        origin=origin_of(run),
        client_columns=tables.client_columns(run),
        client_rows=tables.client_rows(run),
        plan_columns=PLAN_COLUMNS,
        plan_rows=plan_rows(run),
        part_meanings=part_meanings(run),
        node_columns=NODE_COLUMNS,
        node_rows=node_rows(run),
        open_nodes=OPEN_NODES,
        layer_columns=tables.LAYER_COLUMNS,
        layer_rows=tables.layer_rows(run),
        kernels=kernel_table(run),
        round_columns=tables.round_columns(run),
        round_caption=f"Up, down and energy are of the round alone; {run.clock.name} is since the "
        "start",
        last_rounds=tables.LAST_ROUNDS,
        round_rows=tables.round_rows(run),
    )


def fill_template(name: str, **values: Any) -> str:
    """Fill a template of this folder; what the values say is escaped."""
    environment = Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(css=Markup(_text("report.css")), **values)


def _text(name: str) -> str:
    return (files("mest_fed.simulation.report") / name).read_text(encoding="utf-8")


def _in_short(run: Run) -> str:
    summary = run.summary
    clients = sum(tier.clients for tier in summary.tiers)
    kinds = {tier.profile for tier in summary.tiers}
    if summary.achieved_density == 1:
        active = "All weights are active"
    else:
        share = format_percent(summary.achieved_density)
        active = f"{share} of the sparse layers' weights are active"
    devices = count_of(
        clients if summary.devices is None else summary.devices,
        f"{'' if summary.deployed else 'simulated '}device",
    )
    if kinds and "" not in kinds:  # of which kinds devices without a profile are is not known
        devices += f" of {count_of(len(kinds), 'kind')}"
    asked = summary.devices_asked
    was = "was" if asked == 1 else "were"
    if asked is None:
        who = f"{devices} {'trained' if summary.clients_trained else 'were to train'}"
    elif asked == summary.devices:
        who = f"{devices} {was} asked to train"
    else:
        who = f"Of {devices} {format_count(asked)} {was} asked to train"
    text = (
        f"{who} "
        f"{short_name(summary.model)} on {run.dataset} for {count_of(summary.rounds, 'round')}. "
        f"{active} in the final global model"
    )
    if summary.stopped:
        text = f"The run ended early: {summary.stopped}. {text}"
    if summary.kept == "best" and summary.kept_round is not None:
        text += f", that of round {summary.kept_round}, the best one"
    metric, value = summary.primary_metric, summary.final_value
    if value is None:
        return f"{text}."
    reached = format_metric(metric, value)
    if metric.share:
        what = "" if metric == ACCURACY else f" {metric.name}"
        return f"{text}, which reaches {reached}{what} on the central test set."
    return f"{text}, whose {metric.name} is {reached} on the central test set."


def _warning(run: Run) -> str | None:
    """Return what a reader must know first: that the run, or rounds of it, came to nothing."""
    said, empty = run.summary.warning, rounds_without_update(run)
    texts = filter(None, (run.summary.unfinished, said))
    sentences = [f"{text[:1].upper()}{text[1:]}." for text in texts]
    if empty and run.summary.clients_trained:
        rounds = count_of(run.summary.rounds, "round")
        sentences.append(f"The server accepted no update in {len(empty)} of {rounds}.")
    return " ".join(sentences) or None


def _facts(run: Run) -> list[tuple[str, str]]:
    summary = run.summary
    mutation = f", mutation by the {summary.mutation}" if summary.mutation else ""
    # A configuration of one's own has no name but that of its file or folder.
    named = "Preset" if summary.preset in preset_names() else "Run"
    return [
        (named, summary.preset),
        ("Data set", run.dataset),
        ("Model", short_name(summary.model)),
        ("Task", short_name(summary.task)),
        ("Method", f"{short_name(summary.method)}{mutation}"),
        ("Scheme", short_name(summary.scheme)),
        ("Target density", format_percent(summary.target_density)),
        ("Server mode", _mode(run)),
        ("Seed", str(summary.seed)),
        ("Rounds", str(summary.rounds)),
    ]


def _mode(run: Run) -> str:
    """Return when a round ends."""
    detail = {
        "sync": "a round waits for its tasks",
        "buffered": f"a round is {run.setting('server', 'buffer')} updates",
        "semi-sync": f"a round is {run.setting('server', 'period')} s",
    }.get(run.mode)
    return f"{run.mode}: {detail}" if detail else run.mode
