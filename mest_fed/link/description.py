"""What a lean node is told of a run when it registers: JSON, strictly read. Needs NumPy alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from mest_fed.catalogue import Growth
from mest_fed.errors import InputError, not_allowed
from mest_fed.sparsity import Method, build_method
from mest_fed.sparsity.state import ModelSpec
from mest_fed.strict_json import parse_json
from mest_fed.training.forgetting import ForgettingPolicy

_SOURCE = "the run's description"
#: Ends of the names that a sparse layer's values and slots have in programs.
VALUES, SLOTS = ".values", ".slots"


@dataclass(frozen=True)
class InputDescription:
    """What examples of the run are.

    Parameters
    ----------
    shape : tuple of int
        Of one input, without the batch.
    dtype : str
        ``float32``, or ``int64`` for tokens: as the model gets inputs.
    target_shape, target_dtype : tuple of int, str
        Of one target.
    mean, std : tuple of float
        What batches are normalised by.
    classes : tuple of str
        Names of the classes, in their order; empty where the run has none.
    """

    shape: tuple[int, ...]
    dtype: str
    target_shape: tuple[int, ...]
    target_dtype: str
    outputs: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunDescription:
    """A run, as far as a lean node takes part in it.

    Parameters
    ----------
    spec : ModelSpec
        Of the model.
    task, task_options : str, mapping
        The learning task.
    inputs : InputDescription
        What examples are.
    seed, rounds, local_epochs, batch_size, micro_batch : int
        Of the run; ``micro_batch`` of the node's plan.
    augmentation : str
        Of training inputs.
    hold_out : float
        Share of a node's examples that is held out for evaluation.
    partition : int
        The node's number in the run, from which its draws are derived.
    method, density, gradient_weight : str, float, float
        The sparse-training method.
    growth : str
        Whether clients that mutate draw the same growth.
    upload : str
        Value codec of updates.
    frozen : tuple of str
        Sparse layers and dense tensors that the node's plan does not train.
    forgetting : ForgettingPolicy
        Which examples are left out, and when.
    budget, predicted_peak : int
        Bytes that the node's plan was made for, and those that it takes (modelled).
    """

    spec: ModelSpec
    task: str
    task_options: Mapping[str, Any]
    inputs: InputDescription
    seed: int
    rounds: int
    local_epochs: int
    batch_size: int
    micro_batch: int
    augmentation: str
    hold_out: float
    partition: int
    method: str
    density: float
    gradient_weight: float
    growth: str
    upload: str
    frozen: tuple[str, ...]
    forgetting: ForgettingPolicy
    budget: int
    predicted_peak: int

    def as_json(self) -> str:
        """Return the description as a JSON object.

        Raises
        ------
        InputError
            If the model has a layout of a user's own.
        """
        parts = {
            "spec": self.spec.as_table(),
            "task_options": dict(self.task_options),
            "inputs": asdict(self.inputs),
            "forgetting": asdict(self.forgetting),
        }
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.dumps(plain | parts)

    @classmethod
    def read(cls, text: str) -> "RunDescription":
        """Read what :meth:`as_json` wrote.

        Raises
        ------
        InputError
            If it is something else; one line.
        """
        table = parse_json(text, _SOURCE, dict)
        names = {each.name for each in fields(cls)}
        if table.keys() != names:
            odd = sorted(table.keys() ^ names)
            raise InputError(f"{_SOURCE}: {odd[0]!r} is missing or unknown: another version?")
        spec, options = ModelSpec.read(table.pop("spec")), table.pop("task_options")
        inputs, policy = table.pop("inputs"), table.pop("forgetting")
        frozen = _tuple(table.pop("frozen"))
        for each in fields(cls):
            if each.name in table:
                table[each.name] = _plain(each.name, table[each.name], each.type)
        try:
            given = InputDescription(**{key: _tuple(value) for key, value in inputs.items()})
            policy = ForgettingPolicy(**policy)
            _check_inputs(given)
            if not isinstance(policy.readmit, bool):
                raise not_allowed(f"{_SOURCE}: readmit", policy.readmit, "true or false")
        except (TypeError, AttributeError) as error:
            raise InputError(f"{_SOURCE}: {error}") from None
        if not isinstance(options, dict):
            raise not_allowed(f"{_SOURCE}: task_options", options, "an object")
        found = cls(
            spec=spec, task_options=options, inputs=given, forgetting=policy, frozen=frozen, **table
        )
        found._check()
        return found

    def _check(self) -> None:
        for key in ("rounds", "local_epochs", "batch_size", "micro_batch"):
            if getattr(self, key) < 1:
                raise not_allowed(f"{_SOURCE}: {key}", getattr(self, key), "a number from 1")
        known = {*self.spec.layouts, *self.spec.dense}
        if not isinstance(self.frozen, tuple) or not known.issuperset(map(str, self.frozen)):
            raise not_allowed(f"{_SOURCE}: frozen", self.frozen, "names of layers and tensors")
        if self.growth not in set(Growth):
            raise not_allowed(f"{_SOURCE}: growth", self.growth, list(Growth))
        if not 0 <= self.hold_out < 1 or self.partition < 0:
            raise InputError(f"{_SOURCE}: hold_out or partition is out of range")

    @cached_property
    def mutation(self) -> Method:
        """The sparse-training method."""
        return build_method(self.method, self.density, self.gradient_weight)

    @property
    def grows_as(self) -> int | None:
        """The client whose own growth a mutation draws; None where all draw the same."""
        return self.partition if self.growth == Growth.PRIVATE else None


def _plain(key: str, value: object, kind: object) -> Any:
    """Return a number or a text of the kind that a field has."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and (whole or isinstance(value, float)):
        return float(value)  # type: ignore[arg-type]
    if (kind is int and whole) or (kind is str and isinstance(value, str)):
        return value
    raise not_allowed(f"{_SOURCE}: {key}", value, getattr(kind, "__name__", str(kind)))


def _check_inputs(given: InputDescription) -> None:
    sizes: list[Any] = [given.shape, given.target_shape]
    kinds = {given.dtype, given.target_dtype} <= {"float32", "int64"}
    whole = all(isinstance(each, tuple) and all(map(_is_size, each)) for each in sizes)
    numbers = isinstance(given.mean, tuple) and isinstance(given.std, tuple)
    numbers = numbers and all(type(it) in (int, float) for it in (*given.mean, *given.std))
    named = isinstance(given.classes, tuple) and all(isinstance(it, str) for it in given.classes)
    if not (kinds and whole and numbers and named and _is_size(given.outputs)):
        raise InputError(f"{_SOURCE}: its inputs are of another kind: another version?")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def unknown_buffers(spec: ModelSpec, names: Iterator[str]) -> list[str]:
    """Return the parameters and states of a program that a specification does not know."""
    return [name for name in names if not _is_known(spec, name.partition(":")[0])]


def _is_known(spec: ModelSpec, name: str) -> bool:
    layer, _, leaf = name.rpartition(".")
    return name in spec.dense or (layer in spec.layouts and f".{leaf}" in (VALUES, SLOTS))
