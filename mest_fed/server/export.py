"""Take a run's final model out: weights, or a program, that load where mest-fed is not installed.

Each format holds torch's own operators alone, in evaluation mode, for batches of any size. Facts
about the run travel with it as metadata, among them the mean and standard deviation by which
inputs are normalised.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from mest_fed.catalogue import EXPORTS
from mest_fed.config import from_table, read_toml
from mest_fed.data.arrays import require
from mest_fed.described import is_installed, one_line
from mest_fed.errors import InputError, not_allowed
from mest_fed.nn import to_dense
from mest_fed.server.checkpoint import global_state, load_newest
from mest_fed.server.folder_names import CONFIG, MODEL, SUMMARY
from mest_fed.server.run_folder import RunFolder
from mest_fed.strict_json import read_json
from mest_fed.system.files import replace_file
from mest_fed.task import Task


@dataclass(frozen=True)
class FinalModel:
    """A run's model, ready to be written.

    Parameters
    ----------
    model : nn.Module
        Of torch's modules alone, in evaluation mode.
    example : Tensor
        Two inputs, by which programs are traced.
    facts : dict of str to str
        Metadata: ``model``, ``dataset``, ``round``, and ``normalisation`` where the data is there.
    finished : bool
        Whether the run is.
    """

    model: nn.Module
    example: Tensor
    facts: dict[str, str]
    finished: bool = True


@dataclass(frozen=True)
class Exported:
    """A file that a run's model was written to.

    Parameters
    ----------
    path : Path
        The file.
    round : int
        The round after which the model was as it is.
    finished : bool
        Whether the run is.
    """

    path: Path
    round: int
    finished: bool


def load_final(folder: Path) -> FinalModel:
    """Read a run's final model; of an unfinished run the model of its newest checkpoint.

    Raises
    ------
    InputError
        If the folder holds no run, or no whole model or checkpoint.
    """
    if not (folder / CONFIG).is_file():
        what = f"{CONFIG} is missing" if folder.is_dir() else "it is no folder"
        raise InputError(f"{folder} is not a run folder: {what}")
    task = Task(from_table(read_toml(folder / CONFIG), str(folder / CONFIG)))
    finished = (folder / MODEL).exists()
    if finished:
        model, last = to_dense(task.model), _kept_round(folder, task)
        _load(model, folder / MODEL)
    else:
        arrays, header = load_newest(RunFolder(folder).checkpoints)
        task.load(global_state(arrays, task.spec))
        model, last = to_dense(task.model), header["round"]
    facts = {
        "model": task.config.model.name,
        "dataset": task.config.data.name,
        "round": str(last),
    }
    with suppress(InputError):  # a model is of use without the data that it was trained on
        train = task.data.train
        facts["normalisation"] = json.dumps({"mean": train.mean, "std": train.std})
    return FinalModel(model.eval(), task.example.zeros(2), facts, finished)


def _kept_round(folder: Path, task: Task) -> int:
    """Return which round's model a finished run has kept; the last one in earlier versions."""
    summary = folder / SUMMARY
    found = read_json(summary, dict) if summary.exists() else {}
    kept = found.get("kept_round", task.config.run.rounds)
    if not isinstance(kept, int):
        raise InputError(
            f"{summary}: kept_round = {kept!r} is not allowed; allowed: a whole number"
        )
    return kept


def _load(model: nn.Module, path: Path) -> None:
    """Load a whole state_dict: a tensor that is missing is an error, as one too many is."""
    try:
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # what damaged files raise has no common base
        raise InputError(f"{path} cannot be read: it is no state_dict of tensors") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} does not fit the run's model: {reason}") from None


def export_path(folder: Path, form: str) -> Path:
    """Return where a run's model goes in a format if nothing is said: into the run folder.

    Raises
    ------
    InputError
        If there is no such format.
    """
    return folder / f"exported{getattr(EXPORTS.find(form), 'suffix', '')}"


def export_model(folder: Path, form: str, out: Path | None = None) -> Exported:
    """Write a run's final model in a format; return what was written.

    Parameters
    ----------
    folder : Path
        The run's folder.
    form : str
        A name of :data:`~mest_fed.catalogue.EXPORTS`.
    out : Path, optional
        The file; by default that of :func:`export_path`. What is there is replaced.

    Raises
    ------
    InputError
        If there is no such format, no model, a library is missing, the model cannot be written so,
        or the file cannot be written.
    """
    default = export_path(folder, form)
    path = out or default
    final = load_final(folder)
    if not path.absolute().parent.is_dir():
        raise not_allowed("--out", str(path), "a file in a folder that exists")
    buffer = io.BytesIO()
    EXPORTS.build(form, final, buffer)
    replace_file(path, buffer.getvalue())
    return Exported(path, int(final.facts["round"]), final.finished)


def _state_dict(final: FinalModel, file: io.BytesIO) -> None:
    torch.save(final.model.state_dict(), file)


def _safetensors(final: FinalModel, file: io.BytesIO) -> None:
    save = require("safetensors.torch", extra="export").save
    # Tied weights share memory, which the format does not hold.
    state = {name: tensor.clone().contiguous() for name, tensor in final.model.state_dict().items()}
    file.write(save(state, metadata={"format": "pt", **final.facts}))


def _torchscript(final: FinalModel, file: io.BytesIO) -> None:
    with _silent(), torch.no_grad():
        try:
            program = torch.jit.trace(final.model, final.example)  # type: ignore[no-untyped-call]
        except Exception as error:  # what torch raises has no common base
            raise _refusal(final, "TorchScript", error) from None
        _check(final, "TorchScript", program)
        torch.jit.save(program, file, _extra_files={"facts.json": json.dumps(final.facts)})


def _check(final: FinalModel, form: str, program: Callable[[Tensor], Tensor]) -> None:
    """Refuse a program that does not compute what the model does for another batch."""
    other = torch.cat([final.example, final.example[:1]]) + 1  # of another size, other values
    with torch.no_grad():
        try:
            same = torch.allclose(program(other), final.model(other), rtol=1e-4, atol=1e-5)
        except Exception as error:  # what torch raises has no common base
            raise _refusal(final, form, error) from None
    if not same:
        raise _refusal(final, form)


def _refusal(final: FinalModel, form: str, error: Exception | None = None) -> InputError:
    """Say why a model gives no program, where torch's tracer knows a line that is to blame.

    The tracer warns of each tensor, or size of one, that becomes a number of Python.
    """
    with warnings.catch_warnings(record=True) as found, suppress(Exception):
        warnings.simplefilter("always")
        torch.jit.trace(final.model, final.example, check_trace=False)  # type: ignore[no-untyped-call]
    blamed = [it for it in found if issubclass(it.category, TracerWarning)]
    blamed.sort(key=lambda it: is_installed(it.filename))  # a line that the user can change first
    if blamed:
        first = blamed[0]
        what = " ".join(str(first.message).split()).partition(". ")[0].rstrip(".")
        why = f"{what} ({first.filename}:{first.lineno})"
    else:
        lines = [" ".join(line.split()) for line in str(error or "").splitlines() if line.strip()]
        why = lines[-1] if lines else "its outputs are others"
    return InputError(
        f"the model cannot be written as {form}, for a batch of any size and values: {why}; "
        "allowed: tensors in place of Python's numbers, such as x.size(0) for len(x), or "
        "--format state-dict"
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep an exporter's progress and warnings from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _onnx(final: FinalModel, file: io.BytesIO) -> None:
    for module in ("onnx", "onnxscript"):
        require(module, extra="export")
    with _silent():
        exported = _exported(final)
        _check(final, "ONNX", exported.module())
        try:
            program = torch.onnx.export(
                exported,
                dynamo=True,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=_any_batch(),  # names the dimension
                verbose=False,
            )
        except Exception as error:  # what torch raises has no common base
            reason = one_line(error)
            raise InputError(f"the model cannot be written as ONNX: {reason}") from None
    assert program is not None
    program.model.metadata_props.update(final.facts)
    file.write(program.model_proto.SerializeToString())


def _any_batch() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch")},)


def _exported(final: FinalModel) -> torch.export.ExportedProgram:
    """Return the model's graph for any batch.

    torch.onnx would fix the size of a batch where the model asks for it as a number of Python. The
    slower strict analysis follows such numbers.
    """
    shapes = _any_batch()
    try:
        return torch.export.export(final.model, (final.example,), dynamic_shapes=shapes)
    except Exception:  # what torch raises has no common base
        try:
            return torch.export.export(
                final.model, (final.example,), dynamic_shapes=shapes, strict=True
            )
        except Exception as error:
            raise _refusal(final, "ONNX", error) from None


@dataclass(frozen=True)
class Export:
    """How a model is written in one format.

    Parameters
    ----------
    suffix : str
        Of the file.
    write : callable
        Writes a model to a file.
    """

    suffix: str
    write: Callable[[FinalModel, io.BytesIO], None]

    def __call__(self, final: FinalModel, file: io.BytesIO) -> None:
        """Write a model to a file."""
        self.write(final, file)


state_dict = Export(".pt", _state_dict)
safetensors = Export(".safetensors", _safetensors)
onnx = Export(".onnx", _onnx)
torchscript = Export(".ts", _torchscript)
