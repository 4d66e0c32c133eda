"""The examples read weights out of pickles, and nothing in those is ever run."""

from __future__ import annotations

import importlib
import io
import pickle
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def unpickle(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("_unpickle")


class Malicious:
    """Unpickling one creates the file that it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestArrayUnpickler:
    def test_loads_arrays_written_by_numpy_1(self, unpickle):
        arrays = {"conv": [np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([1, 2])]}
        # In protocol 3 names are plain text; numpy 2 renamed the module.
        pickled = pickle.dumps(arrays, protocol=3).replace(b"numpy._core", b"numpy.core")
        loaded = unpickle.ArrayUnpickler(io.BytesIO(pickled)).load()
        assert loaded.keys() == arrays.keys()
        for got, expected in zip(loaded["conv"], arrays["conv"], strict=True):
            np.testing.assert_array_equal(got, expected, strict=True)

    @pytest.mark.parametrize("hide", [lambda v: v, lambda v: [v], lambda v: np.array([v], object)])
    def test_refuses_a_pickle_that_runs_code(self, unpickle, tmp_path, hide):
        victim = tmp_path / "victim"
        pickled = pickle.dumps(hide(Malicious(victim)), protocol=3)
        pickled = pickled.replace(b"numpy._core", b"numpy.core")
        with pytest.raises(pickle.UnpicklingError, match="only arrays are loaded"):
            unpickle.ArrayUnpickler(io.BytesIO(pickled)).load()
        assert not victim.exists()
        # It is not that the pickle was harmless.
        pickle.loads(pickle.dumps(hide(Malicious(victim))))
        assert victim.exists()

    @pytest.mark.parametrize(
        "name", ["builtins.eval", "os.system", "numpy.load", "numpy.core.multiarray.fromfile"]
    )
    def test_refuses_other_functions_by_name(self, unpickle, name):
        module, function = name.rsplit(".", 1)
        pickled = f"c{module}\n{function}\n.".encode()
        with pytest.raises(pickle.UnpicklingError, match=re.escape(name)):
            unpickle.ArrayUnpickler(io.BytesIO(pickled)).load()


class FloatStorage:
    __module__ = "torch"


def _rebuild_tensor_v2(*args):
    raise AssertionError("only its name is used")


_rebuild_tensor_v2.__module__ = "torch._utils"
STORAGE = object()


class Tensor:
    """A view of the only storage, pickled as PyTorch does."""

    def __init__(self, *view):
        self.view = view

    def __reduce__(self):
        return _rebuild_tensor_v2, (STORAGE, *self.view, False, OrderedDict())


class StatePickler(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", FloatStorage, "7", "cpu", 12, None) if value is STORAGE else None


@pytest.fixture
def state_dict(monkeypatch):
    """Makes a file of named tensors as PyTorch did before version 1.6, all in one storage."""
    for thing in (FloatStorage, _rebuild_tensor_v2):
        module = types.SimpleNamespace(**{thing.__name__: thing})
        monkeypatch.setitem(sys.modules, thing.__module__, module)

    def make(tensors, values):
        file = io.BytesIO()
        for value in (0x1950A86A20F9469CFC6C, 1001, {}, OrderedDict(tensors), ["7"]):
            StatePickler(file, protocol=2).dump(value)
        file.write(len(values).to_bytes(8, "little") + values.tobytes())
        file.seek(0)
        return file

    return make


class TestReadStateDict:
    VALUES = np.arange(12, dtype=np.float32)

    def test_reads_views_of_a_storage(self, unpickle, state_dict):
        views = {"all": Tensor(0, (2, 6), (6, 1)), "part": Tensor(1, (3, 2), (1, 6))}
        views["scalar"] = Tensor(11, (), ())
        arrays = unpickle.read_state_dict(state_dict(views, self.VALUES))
        rows = self.VALUES.reshape(2, 6)
        expected = {"all": rows, "part": rows[:, 1:4].T, "scalar": np.array(11, np.float32)}
        assert list(arrays) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array, strict=True)

    @pytest.mark.parametrize("view", [(1, (2, 6), (6, 1)), (0, (2,), (-1,)), (-1, (1,), (1,))])
    def test_refuses_to_read_beyond_a_storage(self, unpickle, state_dict, view):
        file = state_dict({"x": Tensor(*view)}, self.VALUES)
        with pytest.raises(pickle.UnpicklingError, match="beyond its storage"):
            unpickle.read_state_dict(file)

    def test_refuses_a_file_that_runs_code(self, unpickle, state_dict, tmp_path):
        victim = tmp_path / "victim"
        file = state_dict({"x": Malicious(victim)}, self.VALUES)
        with pytest.raises(pickle.UnpicklingError, match="only arrays are loaded"):
            unpickle.read_state_dict(file)
        assert not victim.exists()

    def test_refuses_other_formats(self, unpickle):
        with pytest.raises(pickle.UnpicklingError, match="before version"):
            unpickle.read_state_dict(io.BytesIO(b"PK\3\4 a newer one"))
