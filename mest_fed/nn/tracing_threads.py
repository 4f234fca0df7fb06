"""Tracing while other threads use models: torch.fx changes how every module is called meanwhile.

A server plans and makes programs for nodes that register, while its run evaluates in another
thread. Without this, a call of that thread's ends in the trace, and fails.
"""

from threading import RLock, get_ident
from typing import Any

from torch import fx

#: Two traces at once would leave the changes of one in place.
_ONE = RLock()


class ThreadTracer(fx.Tracer):
    """Traces what its own thread calls; calls of other threads go their way."""

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a module, one at a time in this process."""
        mine, call, read = get_ident(), self.call_module, self.getattr

        def call_module(module: Any, forward: Any, args: Any, kwargs: Any) -> Any:
            if get_ident() != mine:
                return forward(*args, **kwargs)
            return call(module, forward, args, kwargs)

        def getattr_of(name: str, value: Any, cache: Any) -> Any:
            return read(name, value, cache) if get_ident() == mine else value

        vars(self).update(call_module=call_module, getattr=getattr_of)
        with _ONE:
            return super().trace(root, concrete_args)
