"""What can't be saved, doesn't fit or was damaged is refused, by its name."""

import collections
import dataclasses
import json
import struct

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from packs import PACK, PROBLEM, made, same

import jax_qconv
from jax_qconv import QTensor, _io, _spec, _trees

safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize(
    "plans", [{"a convolution": "cudnn:4"}, {PROBLEM: "fast"}, {PROBLEM + " x=1": "cudnn:"}]
)
def test_bad_plans_are_refused(plans, file):
    pytest.importorskip("jax_qconv._ext")
    with pytest.raises(ValueError):
        jax_qconv.save(file, PACK, plans=plans)
    assert not file.exists()


def test_a_note_is_text(file):
    with pytest.raises(TypeError, match="note must be a string"):
        jax_qconv.save(file, PACK, note=3)


class Point(collections.namedtuple("Point", "x")):
    pass


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Point(3), "Point"),
        (collections.OrderedDict(), "OrderedDict"),
        ({1: 2}, "the key 1 of type int"),
        (object(), "object"),
        (1j, "complex"),
        (b"", "bytes"),
        (np.ma.masked_array([1]), "MaskedArray"),
        (jax.ShapeDtypeStruct((), jnp.int8), "ShapeDtypeStruct"),
        (np.array(["a"]), "dtype str"),
        (np.str_("a"), "dtype str"),
        (np.ones(2, complex), "complex128"),
        (jnp.ones(2, jnp.int4), "int4"),
        (jax.random.key(0), "key_data"),
        (jax.eval_shape(lambda: PACK), "its weight must be an array"),
        (jax.tree.map(lambda v: v.astype(jnp.bfloat16), PACK), "packed.weight must be int8"),
        (dataclasses.replace(PACK, strides=[1, 1]), r"its strides must be tuple\[int, ...\]"),
        (dataclasses.replace(PACK, groups=True), "its groups must be int"),
        (dataclasses.replace(PACK, binding=3), "its binding must be Binding or None"),
        (dataclasses.replace(PACK, format_version=_spec.FORMAT_VERSION + 1), "format version"),
        (QTensor(jnp.ones(3), 1.0), "int8"),
        (jax_qconv.quantize(jnp.ones((2, 3)), 1.0).in_axes(), "int8|axis"),
        (QTensor([1, 2], 1.0), "its values must be an array"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_saved_is_named(value, words, file):
    with pytest.raises((TypeError, ValueError), match=rf"(?s)net\.0\.layer.*({words})"):
        jax_qconv.save(file, {"net": [{"layer": value}]})
    assert not file.parent.exists() or not list(file.parent.iterdir())


def test_traced_arrays_are_refused(file):
    with pytest.raises(ValueError, match="net is traced; save outside"):
        jax.jit(lambda x: jax_qconv.save(file, {"net": x}))(1.0)


def test_donated_arrays_are_refused(file):
    x = jnp.ones(3)
    x.delete()
    with pytest.raises(ValueError, match="net was deleted"):
        jax_qconv.save(file, {"net": x})


def test_arrays_of_other_processes_are_refused(file, monkeypatch):
    # Here all devices are of this process.
    monkeypatch.setattr(_trees, "is_concrete", lambda array: False)
    with pytest.raises(ValueError, match=r"net lies in part.*process_allgather"):
        jax_qconv.save(file, {"net": jnp.ones(3)})


# What can't be loaded


def rewritten(file, change=lambda fields: None, arrays=lambda arrays: None):
    """A good file with another header or other arrays."""
    tree = {"conv": PACK, "b": [jnp.ones((2,), jnp.bfloat16), 1.5]}
    content, named = _trees.flatten(tree)
    fields = {"format": _io.FORMAT, "version": "9.9", "note": None, "plans": {}, "tree": content}
    fields = change(fields) or fields
    arrays(named)
    safetensors.save_file(named, file, {_io.KEY: json.dumps(fields)})
    return tree


def test_a_rewritten_file_is_as_good(file):
    tree = rewritten(file)
    same(tree, jax_qconv.load(file))


def node(fields, name):
    """The JSON of a node or field of the pack."""
    at = fields["tree"]["dict"]["conv"]["PackedConv"]
    for part in name.split("."):
        at = at[part]
    return at


def pack(**changes):
    return lambda fields: (
        node(fields, "weight") and fields["tree"]["dict"]["conv"]["PackedConv"].update(changes)
    )


def leaf(**changes):
    return lambda fields: fields["tree"]["dict"]["b"][0]["array"].update(changes)


def tree(value):
    return lambda fields: fields | {"tree": value}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f | {"format": _io.FORMAT + 1}, r"by jax_qconv 9\.9; .*update it"),
        (lambda f: f | {"format": "1"}, "no file that jax_qconv.save wrote"),
        (lambda f: [1], "no file that jax_qconv.save wrote"),
        (lambda f: {"format": 1}, "damaged header"),
        (lambda f: f | {"plans": {"a": 1}}, "damaged header"),
        (lambda f: f | {"plans": None}, "damaged header"),
        (lambda f: f | {"note": 1}, "damaged header"),
        (pack(format_version=_spec.FORMAT_VERSION + 1, new=1), "conv is.*update jax_qconv"),
        (pack(new=1), "conv is no PackedConv that fits: a PackedConv has no field 'new'"),
        (pack(strides=[1, 1]), r"conv.*its strides must be tuple\[int, \.\.\.\]"),
        (pack(strides={"tuple": []}), "its strides must be one to three ints"),
        (pack(strides={"tuple": [1]}), "conv is no PackedConv"),
        (pack(dilation={"tuple": [1, 0]}), "its dilation must be at least 1"),
        (pack(padding="FULL"), "padding='FULL'"),
        (pack(padding={"tuple": [{"tuple": [0, 1]}]}), "conv is no PackedConv.*padding"),
        (pack(groups=0), "must be positive"),
        (pack(groups=64), "conv is no PackedConv that fits"),
        (pack(groups=1.0), "its groups must be int, got float"),
        (pack(out_channels=64), "packed.weight must be of shape"),
        (pack(weight=None), "conv.*packed.weight"),
        (pack(weight=[]), "conv.*its weight must be an array"),
        (pack(binding="relu"), "its binding must be Binding or None"),
        (pack(form={"Blocks": {"kernel": {"tuple": []}}}), "conv.form is no Blocks"),
        (
            lambda f: node(f, "binding.Binding.epilogue.Epilogue").update(out_dtype="int2"),
            "conv.binding.epilogue is no Epilogue that fits: its out_dtype",
        ),
        (
            lambda f: node(f, "binding.Binding.epilogue.Epilogue.activation.Activation").update(
                kind="celu"
            ),
            "conv.binding.epilogue.activation is no Activation.*'celu'",
        ),
        (
            lambda f: node(f, "binding.Binding.constants.Constants").pop("m") and None,
            "conv.binding.constants is no Constants.*'m'",
        ),
        (leaf(dtype="float16"), r"b\.0 is bfloat16\[2\], but must be float16\[2\]"),
        (leaf(shape=[3]), r"b\.0 is bfloat16\[2\], but must be bfloat16\[3\]"),
        (leaf(name="c"), r"b\.0 has no array: 'c' is missing"),
        (leaf(name=[]), r"b\.0 has no array"),
        (leaf(name="conv.bias"), "b.0 is float32|conv.bias has no array|has no array"),
        (leaf(of="torch"), r"b\.0 is.*'torch'"),
        (leaf(of="number"), r"b\.0 is.*'number'"),
        (leaf(more=1), r"b\.0 is described"),
        (tree(None), "arrays that belong nowhere: b.0, conv.bias"),
        (tree({"pickle": "x"}), "the tree itself is a 'pickle'"),
        (tree({"os.system": {"command": "x"}}), "the tree itself is a 'os.system'"),
        (tree({"dict": {"a": {}}}), "a is {}, which says nothing"),
        (tree({"tuple": {}}), "'tuple'"),
        (tree({"float": "1"}), "'float'"),
        (tree({"float": []}), "'float'"),
        (tree({"PackedConv": []}), "'PackedConv'"),
    ],
)
def test_a_header_that_does_not_fit_is_named(change, words, file):
    rewritten(file, change)
    with pytest.raises(ValueError, match=rf"(?s)net\.safetensors.*({words})"):
        jax_qconv.load(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("conv.bias"), "conv.bias has no array: 'conv.bias' is missing"),
        (lambda a: a.update(more=np.ones(1)), "arrays that belong nowhere: more"),
        (lambda a: a.update({"b.0": a["b.0"][:1]}), r"b\.0 is bfloat16\[1\], but must be"),
        (
            lambda a: a.update({"conv.weight": a["conv.weight"].astype(np.int32)}),
            r"conv.weight is int32\[8, 3, 3, 8\], but must be int8\[8, 3, 3, 8\]",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, words, file):
    rewritten(file, arrays=change)
    with pytest.raises(ValueError, match=rf"(?s)net\.safetensors.*({words})"):
        jax_qconv.load(file)


def test_a_dtype_of_others_is_named(file, monkeypatch):
    rewritten(file)
    monkeypatch.delitem(_trees.DTYPES, "bfloat16")
    with pytest.raises(ValueError, match=r"b\.0 is of dtype BF16, which jax_qconv doesn't save"):
        jax_qconv.load(file)


def test_both_cast_and_described_so_is_refused_by_the_pack(file):
    def change(fields):
        node(fields, "bias.array")["dtype"] = "float16"

    def cast(arrays):
        arrays["conv.bias"] = arrays["conv.bias"].astype(np.float16)

    rewritten(file, change, cast)
    with pytest.raises(ValueError, match=r"conv is no PackedConv that fits: packed.bias"):
        jax_qconv.load(file)


def test_fields_that_were_added_since_have_their_defaults(file):
    tree = rewritten(file, lambda fields: node(fields, "binding.Binding").pop("input_size") and 0)
    same(tree, jax_qconv.load(file))


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 40, b"PK\3\4" * 30])
def test_other_files_are_refused(content, file):
    file.write_bytes(content)
    for read in (jax_qconv.load, jax_qconv.read_header):
        with pytest.raises(ValueError, match=r"no file that jax_qconv\.save"):
            read(file)


def test_files_of_others_are_refused(file):
    for meta in (None, {"format": "pt"}):
        safetensors.save_file({"a": np.ones(3)}, file, meta)
        for read in (jax_qconv.load, jax_qconv.read_header):
            with pytest.raises(ValueError, match=r"no file that jax_qconv\.save"):
                read(file)


def test_no_cut_or_lengthened_file_is_loaded(file):
    rewritten(file)
    content = file.read_bytes()
    for end in (*range(0, len(content) - 1, 97), len(content) - 1):
        file.write_bytes(content[:end])
        with pytest.raises(ValueError, match="cut short"):
            jax_qconv.load(file)
    file.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="cut short or was changed"):
        jax_qconv.load(file)


@hypothesis.given(data=st.data())
@hypothesis.settings(suppress_health_check=list(hypothesis.HealthCheck), max_examples=200)
def test_whatever_is_damaged_is_a_value_error_or_nothing(data, tmp_path):
    file = tmp_path / "net"
    if not file.exists():
        rewritten(tmp_path / "net")
        (tmp_path / "good").write_bytes(file.read_bytes())
    content = bytearray((tmp_path / "good").read_bytes())
    (head,) = struct.unpack("<Q", content[:8])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, head + 7))] = data.draw(st.sampled_from(b'0129[]{}",:aT'))
    file.write_bytes(content)
    try:
        jax_qconv.load(file)
    except ValueError as error:
        assert str(file) in str(error)


def test_too_deep_trees_are_refused(file):
    deep = json.dumps({"format": 1, "version": "", "note": None, "plans": {}, "tree": []})
    safetensors.save_file({}, file, {_io.KEY: deep.replace("[]", "[" * 50000 + "]" * 50000)})
    with pytest.raises(ValueError, match="no file that"):
        jax_qconv.load(file)


def test_a_missing_file_is_an_os_error(file):
    for read in (jax_qconv.load, jax_qconv.read_header):
        with pytest.raises(FileNotFoundError):
            read(file)


def test_64_bits_of_jax_need_them_here(file):
    with jax.enable_x64(True):
        saved = {"a": jnp.arange(3)}
        jax_qconv.save(file, saved)
        same(saved, jax_qconv.load(file))
    with pytest.raises(ValueError, match=r"a is int64\[3\]; JAX has 64 bits"):
        jax_qconv.load(file)


# like=

LIKE = {"conv": PACK, "x": [jnp.ones((2, 3)), 1, None], "t": (jnp.int8(3),)}


def test_like_takes_shapes_and_other_values(file):
    other = jax.tree.map(lambda leaf: leaf + 1, LIKE)
    jax_qconv.save(file, LIKE)
    for like in (LIKE, other, jax.eval_shape(lambda: LIKE)):
        same(LIKE, jax_qconv.load(file, like=like))


def changed(**items):
    return LIKE | items


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ([], "the tree itself is a dict in the file, but a list"),
        (changed(more=1), "more is missing"),
        ({name: LIKE[name] for name in ("conv", "x")}, "t is in the file, but not in `like`"),
        (changed(t=[1]), "t is a tuple in the file, but a list"),
        (changed(t=()), "t is of 1 items in the file, but of 0"),
        (changed(t=(jnp.int32(3),)), r"t\.0 is int8\[\] in the file, but int32\[\]"),
        (changed(x=[jnp.ones((2, 4)), 1, None]), r"x\.0 is float32\[2, 3\].*float32\[2, 4\]"),
        (changed(x=[jnp.ones((2, 3)), 1.0, None]), r"x\.1 is int32\[\].*float32\[\]"),
        (changed(x=[jnp.ones((2, 3)), 1, 1]), r"x\.2 is None in the file, but int32\[\]"),
        (changed(x=[jnp.ones((2, 3)), None, None]), r"x\.1 is int32\[\].*but None"),
        (changed(x=[jnp.ones((2, 3)), "1", None]), r"x\.1 is int32\[\].*but a str"),
        (changed(conv=None), "conv is a PackedConv in the file, but None"),
        (changed(conv={}), "conv is a PackedConv in the file, but a dict"),
        (changed(conv=made("plain")), "conv.binding is a Binding in the file, but None"),
        (changed(conv=made("plain", "clip")), "conv.binding.epilogue is Epilogue.*relu|clip"),
        (changed(conv=made("plain", "relu6", bias=False)), "conv.bias is float32.*but None"),
        (changed(conv=made("stem", "relu6")), r"conv.in_channels is 5 in the file, but 3"),
        (
            changed(conv=dataclasses.replace(PACK, strides=(2, 2))),
            r"conv.strides is \(1, 1\) in the file, but \(2, 2\)",
        ),
        (
            changed(conv=dataclasses.replace(PACK, weight=PACK.weight[..., :4])),
            r"conv.weight is int8\[8, 3, 3, 8\] in the file, but int8\[8, 3, 3, 4\]",
        ),
    ],
)
def test_like_names_the_first_place_that_differs(like, words, file):
    jax_qconv.save(file, LIKE)
    with pytest.raises(ValueError, match=words):
        jax_qconv.load(file, like=like)
