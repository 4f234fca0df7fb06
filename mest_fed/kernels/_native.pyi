# The compiled module; mest_fed/kernels/native/bindings.cpp. Addresses are of checked tensors.
_Sizes = tuple[int, ...]

def variant() -> str: ...
def scratch_bytes() -> int: ...
def forward(
    sizes: _Sizes,
    weight: _Sizes,
    values: int,
    x: int,
    bias: int,
    y: int,
    plane: int,
    threads: int,
) -> None: ...
def backward_input(
    sizes: _Sizes, weight: _Sizes, values: int, dy: int, dx: int, plane: int, threads: int
) -> None: ...
def backward_values(
    sizes: _Sizes, weight: _Sizes, x: int, dy: int, gradient: int, plane: int, threads: int
) -> None: ...
