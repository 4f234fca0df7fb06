"""Buffers that are used again and again.

The C library gives large blocks back to the system when they are freed, as it should where memory
is short; but then each new one costs page faults, 0.4 ms a megabyte (measured) and more than the
arithmetic on it. Pieces of activations therefore stand in buffers that stay.
"""

import torch
from torch import Tensor


class Workspace:
    """Flat buffers by name; each grows to the largest that was asked for, and stays."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(
        self, name: str, shape: torch.Size, like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return an uninitialised tensor that is valid until the name is taken again.

        Parameters
        ----------
        name : str
            Of the buffer.
        shape : torch.Size
            What is wanted.
        like : Tensor
            Gives device and type.
        dtype : torch.dtype, optional
            Another type.
        """
        key = (name, dtype or like.dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < shape.numel() or buffer.device != like.device:
            self._buffers.pop(key, None)  # before the larger one exists
            buffer = torch.empty(shape.numel(), dtype=key[1], device=like.device)
            self._buffers[key] = buffer
        return buffer[: shape.numel()].view(shape)
