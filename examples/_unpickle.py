"""Arrays out of pickles, without trusting them.

A pickle may have any importable function called while it is loaded. These unpicklers know only the
few that arrays need, and refuse everything else.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np


class _Unpickler(pickle.Unpickler):
    known: ClassVar[dict[tuple[str, str], Any]]

    def find_class(self, module: str, name: str) -> Any:
        """What stands for ``module.name`` of the pickle, if arrays need it."""
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}, but only arrays are loaded."
            )
        return self.known[module, name]


class ArrayUnpickler(_Unpickler):
    """Loads plain containers of numpy arrays."""

    known: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }


class _Tensor(NamedTuple):
    """A view of a storage, as PyTorch pickles it: steps are in elements."""

    storage: tuple[str, str, str, str, int, None]  # "storage", dtype, key, device, length, None
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: Any

    def of(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        """The array, which shares memory with its storage."""
        values = storages[self.storage[2]]
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((length - 1) * step for length, step in steps)
        # numpy doesn't look where such a view ends.
        if min(self.offset, *self.shape, *self.strides, 0) < 0 or last >= values.size:
            raise pickle.UnpicklingError("a tensor reaches beyond its storage.")
        strides = [step * values.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(
            values[self.offset :], self.shape, strides, writeable=False
        )


class _TensorUnpickler(_Unpickler):
    known: ClassVar = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        # Names of dtypes rather than the objects, which a pickle could reach into.
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def persistent_load(self, pid: Any) -> Any:
        """What a storage is called; its values follow after the pickles."""
        return pid


_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def read_state_dict(file: IO[bytes]) -> dict[str, np.ndarray]:
    """The tensors that PyTorch saved by name, in its format before version 1.6.

    It is five pickles: a magic number, the version, the sizes of types, the tensors, and the keys
    of the storages that they are views of. Then come the storages, each with its length in front.

    Raises:
        pickle.UnpicklingError: if it is something else, or more than arrays.
    """
    if file.read(len(_MAGIC)) != _MAGIC:
        raise pickle.UnpicklingError("this isn't a file of PyTorch before version 1.6.")
    _version, _sizes, tensors, keys = (_TensorUnpickler(file).load() for _ in range(4))
    dtypes = {tensor.storage[2]: np.dtype(tensor.storage[1]) for tensor in tensors.values()}
    storages = {}
    for key in keys:
        length = int.from_bytes(file.read(8), "little")
        data = file.read(length * dtypes[key].itemsize)
        storages[key] = np.frombuffer(data, dtypes[key], count=length)
    return {name: tensor.of(storages) for name, tensor in tensors.items()}
