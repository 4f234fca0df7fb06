"""SparseProp's layers, where its package can be imported; kernels.py says how it is installed."""

from torch import Tensor, nn  # before SparseProp, so that both share torch's OpenMP runtime

try:
    from sparseprop import modules
except ImportError as error:
    WHY_ABSENT = f"{type(error).__name__}: {error}"
else:
    WHY_ABSENT = ""


def sparseprop_layers(dense: nn.Conv2d | nn.Linear) -> dict[str, nn.Module]:
    """Return SparseProp's layers with the weights of ``dense`` that are not zero."""
    if isinstance(dense, nn.Linear):
        return {"sparseprop": modules.SparseLinear.from_dense(dense)}
    make = modules.SparseConv2d.from_dense
    return {
        "sparseprop over batch": make(dense, vectorizing_over_on=False),
        "sparseprop over row": make(dense, vectorizing_over_on=True),
    }


def weight_gradient(layer: nn.Module) -> Tensor:
    """Return the gradient of the weights that are not zero, in the order of the dense weight."""
    return layer.W_val.grad
