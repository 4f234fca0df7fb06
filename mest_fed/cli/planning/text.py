"""A plan as people read it in a terminal."""

from rich.console import Console
from rich.table import Table

from mest_fed.cli.planning.answer import Answer
from mest_fed.cli.planning.clock import CAVEAT, format_multiple
from mest_fed.memory import Plan
from mest_fed.units import format_bytes, format_seconds

#: Wider text is hard to read.
_WIDEST = 100

_PARTS = {
    "values": "live weights, dense parameters, buffers",
    "gradients": "of the values",
    "optimizer": "momentum",
    "index": "which weights live",
    "activations": "kept of a micro-batch for backward",
    "workspace": "what exists for a moment",
    "batch": "images and labels of a step",
    "wire": "the received message and its state",
    "runtime": "allocator, Python, autograd",
}
#: What a plan takes that has no column of its own, as a phrase.
_TAKES = {"momentum": "no momentum", "frozen": "freezes {} blocks"}


def print_answer(answer: Answer, console: Console | None = None) -> None:
    """Print the plan in words, its bytes by part, its step time, and what else fits."""
    console = console or Console()
    width = min(console.width, _WIDEST)
    plan = answer.plan  # if nothing fits, nothing is printed

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, width=width, highlight=False, markup=False)

    say(answer.question.title, "bold")
    if answer.budget.origin:
        say(answer.budget.origin)
    say("")
    say(plan.in_words())
    say("")
    console.print(_parts(plan), width=width)
    if answer.profile is not None:
        say(f"\n{_time(answer)}")
    if answer.runners_up:
        say("")
        console.print(_others(answer), width=width)
        say(
            f"\nTo take one of them, give --prefer with the lever that it spares last. {CAVEAT}",
            "dim",
        )
    else:
        say(f"\n{_alone(answer)}")
        say(f"\n{CAVEAT}" if answer.profile is not None else "", "dim")


def _parts(plan: Plan) -> Table:
    table = _table("Bytes that training adds to the process (modelled)")
    table.add_column("part", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("what", style="dim")
    total = plan.footprint.total
    for name, size in plan.footprint.parts().items():
        table.add_row(name, format_bytes(size), f"{size / total:.0%}", _PARTS.get(name, ""))
    share = f"{total / plan.budget:.0%} of the budget, {format_bytes(plan.budget)}"
    table.add_row("predicted peak", format_bytes(total), "", share, style="bold")
    return table


def _time(answer: Answer) -> str:
    profile, shape = answer.profile, answer.plan.shape
    seconds = answer.clock.seconds(shape)
    assert profile is not None
    assert seconds is not None
    step, took = f"A step of {shape.batch} images", format_seconds(seconds)
    text = f"{step} takes {took} on {profile.title} (modelled)"
    plain = answer.clock.seconds(answer.question.wish)
    assert plain is not None
    if abs(plain - seconds) < 0.01 * plain:
        return f"{text}, no longer than it would with nothing given up."
    return f"{text}; with nothing given up it would take {format_seconds(plain)}."


def _others(answer: Answer) -> Table:
    table = _table(f"What else fits into {format_bytes(answer.plan.budget)} (modelled)")
    columns = ("spares", "peak", "micro-batch", "recomputes", "saved", "density", "step time")
    for heading in columns:
        justify = "left" if heading in ("spares", "recomputes", "saved") else "right"
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_row("(the plan)", *_cells(answer, answer.plan))
    for other in answer.runners_up:
        table.add_row(_differs(answer, other), *_cells(answer, other))
    return table


def _cells(answer: Answer, plan: Plan) -> list[str]:
    seconds = answer.clock.seconds(plan.shape)
    against = format_multiple(answer.clock.against(plan.shape, answer.plan.shape))
    return [
        format_bytes(plan.footprint.total),
        str(plan.micro_batch),
        plan.savings.recompute,
        plan.savings.saved,
        f"{plan.density:.3g}",
        against if seconds is None else f"{format_seconds(seconds)} {against}",
    ]


def _differs(answer: Answer, other: Plan) -> str:
    """Say what another plan spares, and what it takes that has no column."""
    spares = [name for name in answer.spared(other) if name != "consume"]  # costs nothing
    takes = [name for name in answer.pulled_further(other) if name in _TAKES]
    phrases = ", ".join(_TAKES[name].format(other.savings.frozen) for name in takes)
    return ", ".join(spares) + (f" ({phrases})" if phrases else "")


def _alone(answer: Answer) -> str:
    if answer.plan.shape == answer.question.wish:
        return "All of it fits as wished: the plan gives nothing up."
    return "Nothing else fits that would spare what the plan gives up."


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=None, header_style="dim"
    )
