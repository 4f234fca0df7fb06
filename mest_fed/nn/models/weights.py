"""Weights of a trained model: a checkpoint of a dense model, or what an earlier run left."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mest_fed.described import kind_of
from mest_fed.errors import InputError

#: What a run leaves in its folder.
RUN_MODEL = "model.pt"
#: Batch normalisation counts batches, which nothing here reads.
_NOT_NEEDED = "num_batches_tracked"


def weights_file(path: Path) -> Path:
    """Return the file of weights that a path means: itself, or the model in a run's folder."""
    return path / RUN_MODEL if path.is_dir() else path


class Weights:
    """A ``state_dict``, to be loaded into a dense model layer by layer.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By name in the model.
    source : str
        Where they come from, for error messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        self.tensors = dict(tensors)
        self.source = source

    @classmethod
    def read(cls, path: Path) -> "Weights":
        """Read a file, or the model in the folder of a finished run.

        The file is a ``state_dict`` or a dict with one under the key ``state_dict``, as
        ``torch.save`` writes it. Nothing in it is executed.

        Raises
        ------
        InputError
            If it is missing, or is no such file.
        """
        source = f"model.weights = {str(path)!r}"
        file = weights_file(path)
        if not file.is_file():
            what = f"has no {RUN_MODEL}; allowed: a finished run" if path.is_dir() else "is no file"
            raise InputError(f"{source} {what}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is no checkpoint
                found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # what other files raise has no common base
            raise InputError(f"{source} is no state_dict that torch can load") from error
        found = found.get("state_dict", found) if isinstance(found, Mapping) else found
        if not isinstance(found, Mapping) or not found:
            raise InputError(f"{source} holds {kind_of(found)}; allowed: a state_dict")
        for name, tensor in found.items():
            strided = isinstance(tensor, Tensor) and tensor.layout is torch.strided
            if not strided or tensor.is_meta:
                raise InputError(f"{source}: {name} is no dense tensor")
        return cls({str(name): tensor for name, tensor in found.items()}, source)

    def check(self, model: nn.Module) -> None:
        """Check that the weights are those of a dense model, which may be on the meta device.

        Raises
        ------
        InputError
            If a name or shape does not fit, or a value is not finite: names the first one.
        """
        expected = model.state_dict()
        for name, tensor in expected.items():
            given = self.tensors.get(name)
            if name.endswith(_NOT_NEEDED):
                continue
            if given is None:
                raise InputError(f"{self.source} has no {name}, which the model has")
            if given.shape != tensor.shape:
                raise InputError(
                    f"{self.source}: {name} has shape {tuple(given.shape)}; "
                    f"allowed: {tuple(tensor.shape)}, the model's"
                )
            if tensor.is_floating_point() and not given.is_floating_point():
                raise InputError(
                    f"{self.source}: {name} is of {given.dtype}; allowed: floating-point numbers"
                )
            if not given.isfinite().all():
                raise InputError(f"{self.source}: {name} has values that are not finite")
        for name in self.tensors:
            if name not in expected and not name.endswith(_NOT_NEEDED):
                raise InputError(f"{self.source} has {name}, which the model has not")

    @torch.no_grad()
    def load(self, name: str, module: nn.Module) -> None:
        """Load what a module of the model holds itself, its children not."""
        prefix = f"{name}." if name else ""
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            given = self.tensors.get(prefix + leaf)
            if tensor is not None and given is not None:
                tensor.copy_(given)
