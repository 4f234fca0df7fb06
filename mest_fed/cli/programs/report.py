"""A program with its arena: as rows, and as people read it in a terminal."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rich.console import Console
from rich.table import Table

from mest_fed.cli.planning.request import PlanRequest
from mest_fed.errors import InputError, not_allowed
from mest_fed.runtime.arena import HELD, Arena, plan_arena
from mest_fed.runtime.passes.groups import group_size
from mest_fed.runtime.program import PHASES, Program
from mest_fed.runtime.program_parts import Operator
from mest_fed.training.program_choice import GROUP_BYTES, can_compile
from mest_fed.training.step_program import StepPrograms
from mest_fed.units import format_bytes

#: Wider text is hard to read.
_WIDEST = 100


@dataclass(frozen=True)
class ProgramReport:
    """A training step as a program.

    Parameters
    ----------
    title : str
        Which model, method and batch.
    program : Program
        The step of a group.
    batch : int
        Examples of a step.
    weights : mapping of str to array
        What a model begins with: parameters and states by name; the others begin at zero.
    """

    title: str
    program: Program
    batch: int
    weights: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, request: PlanRequest, group: int | None = None) -> "ProgramReport":
        """Make the program of what is asked for, for so many examples; None: as the arena wants.

        Raises
        ------
        InputError
            If a part of it has no operator: one line that names it.
        """
        task = request.task
        example, batch = task.example, task.config.training.batch_size
        model = task.build_model()
        task.architecture.try_out(model, example.zeros(2))
        inputs = tuple(example.input_shape), example.input_dtype
        memory = task.config.memory.options
        if not can_compile(memory):
            asked = f"memory.recompute = {memory.recompute!r}, memory.saved = {memory.saved!r}"
            raise InputError(f"{asked} have no program; allowed: none or norms, fp32 or bf16")
        how = task.objective, task.optimizer(0.0)
        programs = StepPrograms(model, inputs, *how, storage=memory.saved)
        most = GROUP_BYTES[programs.storage]
        if group is not None and group > batch:
            raise not_allowed("group", group, f"auto, or 1 to {batch}, the batch")
        size = group_size(programs, batch, most) if group is None else group
        captured = programs.captured(size)
        program = programs.of(captured)
        if not program.takes_groups and program.examples < batch:
            allowed = f"{batch}, the batch: its statistics are taken"
            raise not_allowed("group", program.examples, allowed)
        return cls(request.title, program, batch, captured.arrays())

    @property
    def groups(self) -> float:
        """Groups of a batch; the last one may be a part of one."""
        return self.batch / self.program.examples

    def total(self, key: str) -> int:
        """Return what the operators of a step do together, all groups: ``bytes`` or another."""
        whole = sum(
            int(row[key]) * (1 if row["phase"] == "update" else self.groups) for row in self.rows()
        )
        return round(whole)

    @cached_property
    def arena(self) -> Arena:
        """Where its buffers lie."""
        return plan_arena(self.program)

    @cached_property
    def live(self) -> list[int]:
        """Bytes of the arena that are in use at each operator."""
        blocks, count = self.arena.blocks, len(self.program.operators)
        return [sum(it.size for it in blocks if it.start <= i <= it.end) for i in range(count)]

    def bytes_of(self, *roles: str) -> int:
        """Return the bytes of all buffers of some roles."""
        return sum(self.program.buffers[it].bytes for it in self.program.of_role(*roles))

    @property
    def phase_of(self) -> list[str]:
        """Phase of each operator."""
        both = zip(PHASES, self.program.phases, strict=True)
        return [name for name, count in both for _ in range(count)]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each operator."""
        program = self.program
        for place, operator in enumerate(program.operators):
            yield {
                "operator": operator.name,
                "phase": self.phase_of[place],
                "makes": self._made(operator),
                "shape": list(program.buffers[operator.writes[0]].shape),
                "bytes": program.traffic(operator),
                "multiply_adds": program.work(operator),
                "arena_bytes": self.live[place],
            }

    def _made(self, operator: Operator) -> str:
        return self.program.buffers[operator.writes[0]].name

    def as_table(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        arena = self.arena
        return {
            "title": self.title,
            "sha256": self.program.sha256,
            "batch": self.batch,
            "group": self.program.examples,
            "multiply_adds": self.total("multiply_adds"),
            "bytes": self.total("bytes"),
            "arena": {
                "peak_bytes": arena.peak,
                "lower_bound_bytes": arena.lower_bound,
                "unshared_bytes": self.bytes_of(*HELD),
                "offsets": {
                    self.program.buffers[it].name: place for it, place in arena.offsets.items()
                },
            },
            "parameter_bytes": self.bytes_of("parameter"),
            "state_bytes": self.bytes_of("state"),
            "sum_bytes": self.bytes_of("sum"),
            "input_bytes": round(self.bytes_of("input") * self.groups),
            "operators": list(self.rows()),
            "program": self.program.as_table(),
        }


def print_report(report: ProgramReport, console: Console | None = None) -> None:
    """Print the operators phase by phase, and what memory the step takes."""
    console = console or Console()
    width = min(console.width, _WIDEST)

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, width=width, highlight=False, markup=False)

    say(report.title, "bold")
    rows = list(report.rows())
    for phase in PHASES:
        some = [(place, row) for place, row in enumerate(rows) if row["phase"] == phase]
        if some:
            say("")
            console.print(_operators(phase, some, width), width=width)
    say("")
    console.print(_memory(report), width=width)
    say(f"\n{_in_words(report)}")


def _operators(phase: str, rows: list[tuple[int, dict[str, Any]]], width: int) -> Table:
    """Tabulate the operators of a phase; where there is no room, names of buffers give way."""
    table = _table(f"{phase.capitalize()}: {len(rows)} operators (bytes and work modelled)")
    cells = [
        (
            str(place),
            row["operator"].removesuffix("_gradient"),
            row["makes"].replace(":gradient", "").removesuffix(":group"),
            "x".join(map(str, row["shape"])) or "1",
            format_bytes(row["bytes"]),
            format_count(row["multiply_adds"]) if row["multiply_adds"] else "",
        )
        for place, row in rows
    ]
    operator = "gradient of" if phase == "backward" else "operator"
    headings = ("", operator, "buffer", "shape", "moves", "mult-adds")
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    widths[2] = min(widths[2], width - sum(widths) + widths[2] - len(widths))
    for number, heading in enumerate(headings):
        table.add_column(
            heading,
            justify="left" if number in (1, 2) else "right",
            width=widths[number],
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in cells:
        table.add_row(*row)
    return table


def format_count(count: float) -> str:
    """Write a count with three significant digits, for example ``28.3 M``."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return str(round(count))


def _memory(report: ProgramReport) -> Table:
    arena = report.arena
    table = _table("Memory of a step (modelled)")
    table.add_column("part", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("what", style="dim")
    above = arena.peak / max(1, arena.lower_bound) - 1
    names = {"parameter": "parameters", "state": "states", "sum": "sums"}
    whats = {
        "parameter": "weights that train",
        "state": "slots, momentum, running statistics",
        "sum": "gradients of parameters, the loss",
    }
    examples = report.program.examples
    what = f"activations of {examples} example{'s' if examples > 1 else ''}, for each thread"
    table.add_row("arena", format_bytes(arena.peak), what, style="bold")
    bound = f"most in use at one operator; the arena is {above:.1%} above"
    table.add_row("  lower bound", format_bytes(arena.lower_bound), bound)
    unshared = report.bytes_of(*HELD)
    share = unshared / max(1, arena.peak)
    table.add_row(
        "  unshared", format_bytes(unshared), f"if no buffers shared memory: {share:.1f} times"
    )
    for role, name in names.items():
        table.add_row(name, format_bytes(report.bytes_of(role)), whats[role])
    inputs = round(report.bytes_of("input") * report.groups)
    table.add_row("inputs", format_bytes(inputs), "examples and targets of the batch")
    return table


def _in_words(report: ProgramReport) -> str:
    rows = list(report.rows())
    work, moved = (report.total(key) for key in ("multiply_adds", "bytes"))
    worst = max(range(len(rows)), key=report.live.__getitem__)
    return (
        f"A batch of {report.batch} in groups of {report.program.examples}: {len(rows)} operators, "
        f"{format_count(work)} multiply-adds, {format_bytes(moved)} read and written.\n"
        f"Most memory is in use at operator {worst}, {rows[worst]['operator']}.\n"
        f"sha256 {report.program.sha256}"
    )


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        header_style="dim",
        padding=(0, 1, 0, 0),
    )
