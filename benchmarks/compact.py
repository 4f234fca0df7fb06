"""Storing activations compactly, and bringing them back: ours, torch's operators, and memcpy.

The tensor is what a ReLU gives, float32. GB/s count its own bytes, whatever is written or read
beside them; memcpy copies it into memory that is there. All contestants are timed in turn in one
process; all figures measured.

    python benchmarks/compact.py --json compact.json
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from command_line import Parser, collect, positive, run, show
from harness import (
    Contestant,
    Row,
    Timings,
    compare,
    in_turn,
    keep_memory,
    software,
    write_json,
)
from torch import Tensor

from mest_fed.kernels import compact_reference as by_torch
from mest_fed.kernels import torch_threads, variant
from mest_fed.kernels.compact import dequantise, pack_nonzeros, quantise, unpack_nonzeros
from mest_fed.rng import torch_generator

COLUMNS = {
    "what": "name",
    "ours, ms": "ours",
    "GB/s": "gb_per_s",
    "of memcpy": "ratio",
    "torch's operators, GB/s": "torch_gb_per_s",
    "bytes of 4": "stored_bytes",
}


def activations(shape: Sequence[int]) -> Tensor:
    """Return what a ReLU lets pass of normal numbers: half are zero."""
    return torch.randn(*shape, generator=torch_generator(0, "compact")).relu()


def check(x: Tensor) -> None:
    """Fail unless ours and torch's operators store, and bring back, the same bits."""
    codes, levels = quantise(x)
    packed = pack_nonzeros(x)
    back = (dequantise(codes, levels), unpack_nonzeros(*packed, x.shape))
    other = (
        by_torch.dequantise(codes, levels),
        by_torch.unpack_nonzeros(packed, x.shape, 0, len(x)),
    )
    ours = (codes, levels, *packed, *back)
    theirs = (*by_torch.quantise(x), *by_torch.pack_nonzeros(x), *other)
    if not all(map(torch.equal, ours, theirs)) or not torch.equal(back[1], x):
        raise RuntimeError("our results differ from torch's")


def contestants(x: Tensor) -> dict[str, Contestant]:
    """Return all that are timed; those by torch's operators have names with ``torch ``."""
    codes, levels = quantise(x)
    packed, copy = pack_nonzeros(x), torch.empty_like(x)
    half, short = x.to(torch.bfloat16), x.to(torch.float16)
    calls: dict[str, Callable[[], object]] = {
        "memcpy": lambda: copy.copy_(x),
        "quantise": lambda: quantise(x),
        "dequantise": lambda: dequantise(codes, levels),
        "squeeze": lambda: pack_nonzeros(x),
        "expand": lambda: unpack_nonzeros(*packed, x.shape),
        "torch quantise": lambda: by_torch.quantise(x),
        "torch dequantise": lambda: by_torch.dequantise(codes, levels),
        "torch squeeze": lambda: by_torch.pack_nonzeros(x),
        "torch expand": lambda: by_torch.unpack_nonzeros(packed, x.shape, 0, len(x)),
        "to bfloat16": lambda: x.to(torch.bfloat16),
        "from bfloat16": lambda: half.to(torch.float32),
        "to float16": lambda: x.to(torch.float16),
        "from float16": lambda: short.to(torch.float32),
    }
    return {name: partial(_call, call) for name, call in calls.items()}


def _call(call: Callable[[], object]) -> None:
    call()


def stored_bytes(x: Tensor) -> dict[str, float]:
    """Return the bytes that an element takes, by the last word of a contestant's name."""
    held = {"quantise": quantise(x), "squeeze": pack_nonzeros(x)}
    found = {
        name: round(sum(part.numel() * part.element_size() for part in parts) / x.numel(), 3)
        for name, parts in held.items()
    }
    return found | {"bfloat16": 2.0, "float16": 2.0, "memcpy": 4.0}


def rows_of(x: Tensor, timings: dict[str, Timings], threads: int) -> Iterator[Row]:
    """Yield a row for each contestant that is ours, or torch's conversion, beside memcpy."""
    gigabytes, sizes = x.numel() * x.element_size() / 1e9, stored_bytes(x)

    def speed(name: str) -> float | None:
        return round(gigabytes / timings[name]["total"].median, 2) if name in timings else None

    for name in timings:
        if not name.startswith("torch "):
            yield compare(
                f"{name}, threads {threads}",
                timings[name],
                timings["memcpy"],
                peer_name="memcpy",
                shape=list(x.shape),
                threads=threads,
                gb_per_s=speed(name),
                torch_gb_per_s=speed(f"torch {name}"),
                stored_bytes=sizes.get(name.split()[-1]),
            )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__.splitlines()[0], {"shape": [8, 8, 32, 32], "repeats": 3, "warm_up": 1})
    parser.add_argument("--shape", nargs="+", type=positive, default=[64, 32, 32, 32])
    parser.add_argument("--threads", nargs="+", type=positive, default=[1])
    parser.add_argument("--repeats", type=positive, default=50, help="timed runs of each")
    parser.add_argument("--warm-up", type=positive, default=5, help="untimed runs of each")
    options = parser.parse_args(arguments)
    if len(options.shape) < 2:
        parser.error("--shape needs 2 numbers at least")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    keep_memory()
    x = activations(options.shape)
    check(x)

    def rows() -> Iterator[Row]:
        for threads in options.threads:
            with torch_threads(threads):
                timings = in_turn(contestants(x), options.repeats, options.warm_up)
                yield from rows_of(x, timings, threads)

    done = collect(rows())
    size = " x ".join(map(str, options.shape))
    show(f"{size} floats after a ReLU, {variant()} kernels, measured", done, COLUMNS)
    if options.json:
        write_json(options.json, done, software=software("torch", "numpy"), kernels=variant())


if __name__ == "__main__":
    run(main)
