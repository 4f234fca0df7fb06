"""What compiled steps cost in accuracy, in float32 and in bfloat16: short central runs on CIFAR-10.

ResNet-8, group norm, block density .1, mest-em without gradients, batch 64, SGD with a cosine
rate. Every variant trains on the same images in the same order for each seed, and differs in what
computes its steps alone. Short runs of a small network: they would show a loss of some points.

    python benchmarks/accuracy_compiled.py --data FOLDER --json accuracy_compiled.json
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from command_line import collect, run, show
from harness import software, write_json
from memory_accuracy import Variant, parser_of, rows

from mest_fed.catalogue import Engine
from mest_fed.kernels import variant as instructions
from mest_fed.memory import MemoryOptions
from mest_fed.sparsity import MestEM

COLUMNS = {
    "engine": "name",
    "accuracy": "ours",
    "by seed": "by_seed",
    "spread": "spread",
    "by torch": "peer",
    "points lost": "points_lost",
    "CPU seconds": "cpu_seconds",
}


def of(engine: Engine, saved: str = "fp32") -> Variant:
    """Return the variant of an engine; masks mutate by weights alone, as on a server."""
    return Variant(
        model="resnet8",
        engine=engine,
        memory=MemoryOptions(saved=saved),
        method=MestEM(gradient_weight=0.0),
    )


VARIANTS = {
    "torch, fp32": of(Engine.TORCH),
    "compiled, fp32": of(Engine.COMPILED),
    "compiled, bf16": of(Engine.COMPILED, "bf16"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser_of(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    done = collect(rows(options, VARIANTS))
    by_seed = [{**row, "by_seed": " ".join(map(str, row["ours_runs"]))} for row in done]
    show("Test accuracy by what computes the steps, measured", by_seed, COLUMNS)
    if options.json:
        facts = {
            "images": options.images,
            "epochs": options.epochs,
            "instructions": instructions(),
            "variant": {k: str(v) for k, v in asdict(VARIANTS["torch, fp32"]).items()},
        }
        write_json(options.json, done, software=software("torch", "numpy"), **facts)


if __name__ == "__main__":
    run(main)
