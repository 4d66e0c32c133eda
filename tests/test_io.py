"""Files give back every bit, whatever is in the tree, and are written as a whole."""

import builtins
import dataclasses
import os
import pathlib
import stat
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from packs import BINDINGS, KINDS, PACK, PROBLEM, made, same

import jax_qconv
from jax_qconv import Activation, QTensor, _io, _trees
from jax_qconv._packed_conv import PackedConv
from jax_qconv._space_to_depth import Blocks
from jax_qconv._subpixel import Phases

safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "net.safetensors"


def through(tree, file, **more):
    jax_qconv.save(file, tree)
    return jax_qconv.load(file, **more)


def convolved(packed):
    """What a pack makes of images of its own; of bound ones, with the scales bound."""
    x = np.random.default_rng(5).integers(-128, 128, (2, *[9] * packed.rank, packed.in_channels))
    binding = packed.binding
    scale, zero = (0.1, None) if binding is None else (binding.x_scale, binding.x_zero_point)
    fused = {}
    if binding is not None and binding.residual_scale is not None:
        shape = (2, *packed.out_size(9), packed.out_channels)
        residual = np.random.default_rng(6).integers(-128, 128, shape).astype(np.int8)
        fused["residual"] = QTensor(residual, binding.residual_scale, binding.residual_zero_point)
    call = jax.jit(lambda x, packed, fused: jax_qconv.qconv(x, packed, **fused))
    return call(QTensor(x.astype(np.int8), scale, zero), packed, fused)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("binding", ["unbound", "zero point"])
def test_every_kind_of_pack_comes_back(kind, binding, file):
    packed = made(kind, binding)
    loaded = through(packed, file, like=packed)
    same(packed, loaded)
    assert jax.tree.structure(packed) == jax.tree.structure(loaded)
    same(convolved(packed), convolved(loaded))


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("bias", [True, False])
def test_every_binding_comes_back(binding, bias, file):
    packed = made("plain", binding, bias)
    loaded = through(packed, file)
    same(packed, loaded)
    same(convolved(packed), convolved(loaded))


def test_the_kinds_are_of_every_form():
    assert {type(made(kind).form) for kind in KINDS} == {Blocks, Phases, type(None)}


def test_a_stack_of_packs_comes_back(file):
    for one in (made("plain", "residual"), made("stem"), made("1-D", "prelu")):
        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), one)
        same(stacked, through(stacked, file, like=stacked))


def arrays(dtypes=tuple(_trees.DTYPES)):
    """Arrays of every dtype, bit patterns and all; of numpy and, where it has them, JAX."""

    def of(dtype):
        dtype = jnp.dtype(dtype)
        bits = st.integers(0, 1) if dtype.name == "bool" else None
        words = hnp.arrays(
            f"u{dtype.itemsize}", hnp.array_shapes(min_dims=0, min_side=0), elements=bits
        )
        drawn = words.map(lambda bits: bits.view(dtype) if bits.ndim else bits[None].view(dtype)[0])
        kinds = [drawn, drawn.map(np.asarray)]
        if dtype.itemsize < 8:
            kinds.append(drawn.map(jnp.asarray))
        return st.one_of(kinds)

    return st.sampled_from(dtypes).flatmap(of)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), arrays()
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        # Names that meet each other, and safetensors' own.
        st.dictionaries(
            st.sampled_from(["a", "0", "a.0", "", ".", "a#2", "__metadata__", "é\0"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@hypothesis.given(tree=TREES)
@hypothesis.settings(suppress_health_check=list(hypothesis.HealthCheck), max_examples=150)
def test_every_tree_comes_back(tree, tmp_path):
    same(tree, through(tree, tmp_path / "tree", like=tree))


def test_packs_and_quantised_tensors_in_a_tree_come_back(file):
    tree = {
        "conv": [made("stem", "relu6"), (made("depthwise"), None)],
        "x": jax_qconv.quantize(jnp.ones((1, 4, 4, 3)), 0.5, zero_point=3),
        "of numpy": QTensor(np.ones((2, 3), np.int8), np.float32(0.5), np.int32(3)),
        "of numbers": QTensor(np.ones((2, 3), np.int8), 0.5, channels=2),
        "linear": jax_qconv.prepack_linear(np.ones((4, 5), np.float32)),
        "activation": Activation.clip(-float("inf"), 2),
    }
    same(tree, through(tree, file, like=tree))


def test_what_is_loaded_of_jax_is_uncommitted_and_usable(file):
    loaded = through({"a": jnp.arange(3, dtype=jnp.bfloat16), "b": np.arange(3)}, file)
    assert not loaded["a"].committed and loaded["a"].devices() == jnp.zeros(()).devices()
    other = jax.device_put(jnp.ones((3,), jnp.bfloat16), jax.devices("cpu")[1])
    assert jax.jit(jnp.add)(loaded["a"], other).devices() == other.devices()
    loaded["b"][0] = 7


def test_names_are_readable(file):
    jax_qconv.save(file, {"params": {"conv1": PACK, "a.b": jnp.ones(2), "a": {"b": np.ones(3)}}})
    named = safetensors.load_file(file)
    assert {"params.conv1.weight", "params.conv1.binding.constants.m"} <= named.keys()
    assert named["params.a.b"].shape == (3,) and named["params.a.b#2"].shape == (2,)
    np.testing.assert_array_equal(named["params.conv1.weight"], PACK.weight)


def test_the_same_tree_makes_the_same_bytes(file):
    script = (
        "import jax_qconv, numpy as np, sys; w = np.ones((3, 3, 3, 8), np.float32)\n"
        "tree = {k: jax_qconv.prepack(w).bind(x_scale=0.5) for k in eval(sys.argv[2])}\n"
        f"jax_qconv.save(sys.argv[1], tree, note='n', plans={{{PROBLEM!r}: 'cudnn:4'}})"
    )
    written = []
    for seed, keys in enumerate(["['a', 'b', 'c']", "['c', 'b', 'a']"]):
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "JAX_PLATFORMS": "cpu"}
        subprocess.run(
            [sys.executable, "-P", "-c", script, file, keys], env=environment, check=True
        )
        written.append(file.read_bytes())
    assert written[0] == written[1]


def test_the_header_has_what_was_given(file):
    pytest.importorskip("jax_qconv._ext")
    jax_qconv.save(file, PACK, note="für später", plans={PROBLEM: "cudnn:4:cfg=26"})
    header = jax_qconv.read_header(str(file))
    expected = _io.Header(
        _io.FORMAT, jax_qconv.__version__, "für später", {PROBLEM: "cudnn:4:cfg=26"}
    )
    assert header == expected
    jax_qconv.save(file, PACK)
    assert jax_qconv.read_header(file) == dataclasses.replace(expected, note=None, plans={})


def test_sharded_arrays_are_gathered(file):
    mesh = jax.make_mesh((2,), ("k",), devices=jax.devices("cpu")[:2])
    sharding = jax.NamedSharding(mesh, jax.P("k"))
    packed = dataclasses.replace(PACK, weight=jax.device_put(PACK.weight, sharding))
    assert len(packed.weight.sharding.device_set) == 2
    jax_qconv.save(file, packed)
    loaded = jax_qconv.load(file)
    same(PACK, loaded)
    assert len(loaded.weight.sharding.device_set) == 1


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(step, error, file, monkeypatch):
    jax_qconv.save(file, PACK)
    content = file.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(*((os, step) if step == "fsync" else (pathlib.Path, step)), fail)
    with pytest.raises(type(error)):
        jax_qconv.save(file, {})
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == content


def test_a_tree_that_cannot_be_saved_leaves_the_old_file(file):
    jax_qconv.save(file, PACK)
    content = file.read_bytes()
    with pytest.raises(TypeError):
        jax_qconv.save(file, {"a": PACK, "b": object()})
    assert file.read_bytes() == content and len(list(file.parent.iterdir())) == 1


def test_a_file_is_as_readable_as_others(file):
    jax_qconv.save(file, PACK)
    other = file.with_name("other")
    other.touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        jax_qconv.save(tmp_path / "no" / "net", PACK)


def test_without_safetensors_the_error_says_what_to_install(file, monkeypatch):
    jax_qconv.save(file, PACK, note="n")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda: jax_qconv.save(file, PACK), lambda: jax_qconv.load(file)):
        with pytest.raises(ImportError, match=r"pip install 'safetensors>=0\.4\.5'"):
            call()
    assert jax_qconv.read_header(file).note == "n"


def test_orbax_takes_packs_as_they_are(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tree = {
        "conv": made("stem", "residual"),
        "free": made("transposed"),
        "x": jax_qconv.quantize(jnp.ones((1, 4, 4, 3)), 0.5),
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "net", tree)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "net", jax.eval_shape(lambda: tree))
    assert isinstance(restored["conv"], PackedConv)
    assert jax.tree.structure(tree) == jax.tree.structure(restored)
    same(tree, restored)
    same(convolved(tree["conv"]), convolved(restored["conv"]))
