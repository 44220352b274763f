"""Arrays held against what a config says of its tensors."""

from __future__ import annotations

from server.tensor import Array, TensorSpec, datatype_of


def misfit(array: Array, spec: TensorSpec, max_batch_size: int) -> str:
    """What keeps `array` from being tensor `spec` of a model; empty if nothing does."""
    shape = array.shape[1:] if max_batch_size else array.shape
    fits = array.ndim == len(spec.dims) + bool(max_batch_size)
    fits = fits and all(want in (-1, got) for want, got in zip(spec.dims, shape, strict=True))
    try:
        datatype = datatype_of(array)
    except KeyError:
        datatype = f"{array.dtype}, which v2 does not have,"
    if fits and datatype == spec.datatype:
        return ""
    rows = "rows of " if max_batch_size else ""
    return (
        f"'{spec.name}' is {datatype} of shape {list(array.shape)}, "
        f"config.pbtxt says {rows}{spec.datatype} {list(spec.dims)}"
    )
