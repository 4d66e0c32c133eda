"""Weights to packs and back: the same bytes whatever the layout, inside and outside jit."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from effort import examples
from hypothesis import strategies as st

from jax_qconv import prepack, unpack
from jax_qconv._spec import padded_channels

FROM_OHWI = {"HWIO": (1, 2, 3, 0), "OIHW": (0, 3, 1, 2), "OHWI": (0, 1, 2, 3)}
LAYOUTS = st.sampled_from(sorted(FROM_OHWI))
# Few shapes, as each is compiled anew.
SHAPES = st.sampled_from([(1, 1, 1, 1), (4, 1, 1, 8), (5, 3, 2, 4), (6, 3, 3, 9)])
SEEDS = st.integers(0, 2**32 - 1)


def normal(*shape):
    """Float weights or biases."""
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def quantised(w, per_channel):
    """Symmetric quantisation to [-127, 127] of float32 ``[K, R, S, C]``: integers and scales."""
    absmax = np.abs(w).max(axis=(1, 2, 3) if per_channel else None)
    scale = (absmax.astype(np.float64) / 127).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1), scale)
    inverse = (1 / scale.astype(np.float64)).astype(np.float32)
    q = np.rint(w * (inverse[:, None, None, None] if per_channel else inverse))
    return np.clip(q, -127, 127).astype(np.int8), scale


def assert_same_packs(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        oracle.assert_same(left, np.asarray(right))


@hypothesis.given(SHAPES, LAYOUTS, st.booleans(), st.integers(-60, 60), SEEDS)
@examples(12)
def test_float_weights_are_quantised_by_the_formula(shape, layout, per_channel, exponent, seed):
    rng = np.random.default_rng(seed)
    # Half steps, so that many weights are next to a tie.
    steps = np.where(rng.integers(0, 2, shape), rng.integers(-254, 255, shape) / 2, 0)
    w = (steps * rng.uniform(1, 2) * 2.0**exponent).astype(np.float32)
    bias = rng.normal(0, 1, shape[0]).astype(np.float32)
    integers, scale = quantised(w, per_channel)

    def pack(w, bias):
        return prepack(w, bias, layout=layout, per_channel=per_channel)

    arguments = jnp.asarray(w.transpose(FROM_OHWI[layout])), jnp.asarray(bias)
    packed = pack(*arguments)
    k, _, _, c = shape
    stored = padded_channels(k), *shape[1:3], padded_channels(c)
    assert packed.weight.shape == stored
    # Padded channels hold zeros.
    want = np.pad(integers, [(0, a - b) for a, b in zip(stored, shape, strict=True)])
    oracle.assert_same(packed.weight, want)
    oracle.assert_same(packed.weight_scale, scale)
    oracle.assert_same(packed.bias, bias)
    assert_same_packs(jax.jit(pack)(*arguments), packed)


@hypothesis.given(SHAPES, LAYOUTS, LAYOUTS, st.booleans(), SEEDS)
@examples(12)
def test_int8_weights_survive_packing_and_unpacking(shape, layout, other, per_channel, seed):
    rng = np.random.default_rng(seed)
    w = rng.integers(-128, 128, shape, np.int8)
    scale = rng.uniform(0.1, 1, shape[0] if per_channel else ()).astype(np.float32)
    bias = rng.normal(0, 1, shape[0]).astype(np.float32)
    packed = prepack(
        jnp.asarray(w.transpose(FROM_OHWI[layout])), bias, weight_scale=scale, layout=layout
    )
    unpacked = unpack(packed, layout=other)
    oracle.assert_same(unpacked.weight, w.transpose(FROM_OHWI[other]))
    oracle.assert_same(unpacked.weight_scale, scale)
    oracle.assert_same(unpacked.bias, bias)
    again = prepack(
        unpacked.weight, unpacked.bias, weight_scale=unpacked.weight_scale, layout=other
    )
    assert_same_packs(again, packed)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_floats_pack_like_their_float32_values(dtype):
    w = jnp.asarray(normal(3, 3, 5, 6), dtype)
    assert_same_packs(prepack(w), prepack(w.astype(jnp.float32)))


def test_weights_of_zero_have_scale_one():
    w = jnp.zeros((3, 3, 2, 4)).at[..., 1].set(0.5)
    packed = prepack(w)
    np.testing.assert_array_equal(packed.weight_scale, np.float32([1, 0.5 / 127, 1, 1]))
    np.testing.assert_array_equal(unpack(packed).weight, np.sign(w) * 127)
    np.testing.assert_array_equal(prepack(0 * w, per_channel=False).weight_scale, 1)


def test_weights_too_small_for_a_scale_become_zero():
    packed = prepack(jnp.full((1, 1, 4, 4), 1e-37))
    np.testing.assert_array_equal(packed.weight_scale, 1)
    assert not packed.weight.any()


@pytest.mark.parametrize(
    ("pad_to", "stored"), [(None, (8, 4)), ((12, None), (12, 4)), ((None, 16), (8, 16))]
)
def test_stored_channels_can_be_asked_for(pad_to, stored):
    w = normal(3, 3, 5, 3)
    packed = prepack(w, pad_to=pad_to)
    assert packed.stored_channels == stored
    assert_same_packs(unpack(packed), unpack(prepack(w)))


@pytest.mark.parametrize("pad_to", [(4, None), (10, None), (None, 0), (None, 6)])
def test_stored_channels_must_be_enough_and_aligned(pad_to):
    with pytest.raises(ValueError, match="must be a multiple of 4 and at least"):
        prepack(jnp.ones((3, 3, 5, 3)), pad_to=pad_to)


@pytest.mark.parametrize("pad_to", [32, (32,), (32, 32, 32)])
def test_stored_channels_come_as_a_pair(pad_to):
    with pytest.raises(TypeError, match="pad_to must be a pair"):
        prepack(jnp.ones((3, 3, 5, 3)), pad_to=pad_to)


def test_a_pack_knows_its_geometry():
    packed = prepack(
        jnp.ones((3, 2, 5, 3)), strides=2, padding=(1, (0, 1)), dilation=[1, 2], groups=1
    )
    assert packed.kernel_size == (3, 2)
    assert (packed.in_channels, packed.out_channels) == (5, 3)
    assert (packed.strides, packed.dilation) == ((2, 2), (1, 2))
    assert packed.padding == ((1, 1), (0, 1))
    assert packed.nbytes == 4 * 3 * 2 * 8 + 4 * 3
    assert repr(packed) == (
        "PackedConv(5 -> 3 (stored 8 -> 4), 3x2 kernel, strides=(2, 2), "
        "padding=((1, 1), (0, 1)), dilation=(1, 2), groups=1, scale per channel, bias=no)"
    )
    bound = packed.bind(x_scale=1, out_scale=1, activation="relu")
    assert repr(bound).endswith("bias=no, bound to int8 relu)")


def test_a_pack_of_shapes_reads_like_one_of_arrays():
    def pack(w, b):
        return prepack(w, b).bind(x_scale=1, out_scale=1)

    packed = pack(normal(3, 3, 5, 3), normal(3))
    shapes = jax.eval_shape(pack, normal(3, 3, 5, 3), normal(3))
    assert repr(shapes) == repr(packed)
    assert shapes.nbytes == packed.nbytes > 0


def test_a_pack_is_a_pytree_that_anything_may_fill():
    packed = prepack(jnp.ones((1, 1, 4, 4)), jnp.ones(4)).bind(x_scale=0.5)
    treedef = jax.tree.structure(packed)
    assert treedef.num_leaves == 6
    for filler in (None, 0, object()):
        filled = jax.tree.unflatten(treedef, [filler] * 6)
        assert filled.weight is filler
        assert repr(filled).startswith("PackedConv(")
    assert_same_packs(jax.jit(lambda packed: packed)(packed), packed)


BINDINGS = {
    "int8": {"x_scale": 0.3, "out_scale": 0.7, "activation": "relu"},
    "clip": {"x_scale": 0.3, "out_scale": 0.7, "activation": "relu6"},
    "residual": {"x_scale": 0.3, "out_scale": 0.7, "residual_scale": 1.1},
    "float16": {"x_scale": 0.3, "out_dtype": "float16"},
}


@pytest.mark.parametrize("name", BINDINGS)
def test_binding_gives_the_same_bytes_inside_and_outside_jit(name):
    packed = prepack(normal(3, 3, 5, 6), normal(6))
    scales = {k: jnp.float32(v) for k, v in BINDINGS[name].items() if k.endswith("scale")}
    fused = {k: v for k, v in BINDINGS[name].items() if not k.endswith("scale")}
    bound = packed.bind(**scales, **fused)
    traced = jax.jit(lambda packed, scales: packed.bind(**scales, **fused))(packed, scales)
    assert_same_packs(traced, bound)
    # A later binding replaces an earlier one.
    assert_same_packs(bound.bind(x_scale=9.0).bind(**scales, **fused), bound)


def test_an_int32_output_has_nothing_to_bind():
    with pytest.raises(ValueError, match="nothing to bind"):
        prepack(jnp.ones((1, 1, 4, 4))).bind(x_scale=1.0, out_dtype="int32")


def test_an_int8_output_needs_its_scale_and_a_float_one_has_none():
    packed = prepack(jnp.ones((1, 1, 4, 4)))
    with pytest.raises(ValueError, match="needs out_scale"):
        packed.bind(x_scale=1.0, out_dtype="int8")
    with pytest.raises(ValueError, match="out_scale is for int8 outputs only"):
        packed.bind(x_scale=1.0, out_dtype="float32", out_scale=1.0)


@pytest.mark.parametrize("name", ["x_scale", "out_scale", "residual_scale"])
def test_bound_scales_are_named_when_they_are_bad(name):
    scales = {"x_scale": 1.0, name: -1.0}
    with pytest.raises(ValueError, match=f"^{name} must be positive"):
        prepack(jnp.ones((1, 1, 4, 4))).bind(**scales)


@pytest.mark.parametrize(
    ("error", "message", "weight", "options"),
    [
        (ValueError, "layout='NCHW' is not known", jnp.ones, {"layout": "NCHW"}),
        (ValueError, "groups must be a positive int", jnp.ones, {"groups": 1.5}),
        (ValueError, r"bias must be of shape \[4\]", jnp.ones, {"bias": np.ones(3)}),
        (TypeError, "bias must be of a float dtype", jnp.ones, {"bias": np.ones(4, int)}),
        (ValueError, "goes with int8 weights", jnp.ones, {"weight_scale": 1.0}),
        (ValueError, "int8 weight needs weight_scale", np.int8, {}),
        (ValueError, r"weight_scale must be a scalar or of shape \[4\]", np.int8,
         {"weight_scale": np.ones(3, np.float32)}),
        (ValueError, "weight_scale must be positive", np.int8, {"weight_scale": 0.0}),
        (TypeError, "weight must be of a float dtype or int8", np.uint8, {}),
        (ValueError, "NaN or infinite", lambda shape: jnp.full(shape, jnp.nan), {}),
        (ValueError, "NaN or infinite", lambda shape: jnp.full(shape, jnp.inf), {}),
        (ValueError, "strides must be at least 1", jnp.ones, {"strides": 0}),
        (ValueError, "dilation must be at least 1", jnp.ones, {"dilation": 0}),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_refused(error, message, weight, options):
    shape = (1, 1, 4, 4)
    w = np.ones(shape, weight) if isinstance(weight, type) else weight(shape)
    with pytest.raises(error, match=message):
        prepack(w, **options)


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 1, 1, 4, 4), (3, 3, 0, 4)])
def test_weights_have_axes_and_elements(shape):
    with pytest.raises(ValueError, match="weight must"):
        prepack(jnp.ones(shape))


def test_sums_that_could_overflow_are_refused():
    # 131071 products of at most 128 * 128 are the most that int32 holds; channels are stored in
    # steps of 64.
    w = np.zeros((1, 1, 131072, 1), np.int8)
    with pytest.raises(ValueError, match="int32 accumulator could overflow"):
        prepack(w, weight_scale=1.0)
    with pytest.raises(ValueError, match="int32 accumulator could overflow"):
        prepack(w[:, :, :4], weight_scale=1.0, pad_to=(131072, None))
    assert prepack(w[:, :, :-64], weight_scale=1.0).in_channels == 131072 - 64


def test_packs_of_a_newer_format_are_refused():
    packed = dataclasses.replace(prepack(jnp.ones((1, 1, 4, 4))), format_version=2)
    for use in (unpack, lambda packed: packed.bind(x_scale=1.0)):
        with pytest.raises(ValueError, match="format version 2; this jax_qconv reads up to 1"):
            use(packed)


def test_what_is_no_pack_is_refused():
    with pytest.raises(TypeError, match="must be a PackedConv from prepack, got tuple"):
        unpack(tuple(unpack(prepack(jnp.ones((1, 1, 4, 4))))))


def test_unpack_knows_its_layouts():
    with pytest.raises(ValueError, match="layout='HWCN' is not known"):
        unpack(prepack(jnp.ones((1, 1, 4, 4))), layout="HWCN")


@pytest.mark.parametrize(
    ("channels", "groups", "merge", "stored"),
    [
        (128, 32, 32, 128),  # dense: few channels
        (512, 32, 4, 512),  # blocks of 64
        (264, 11, 1, 264),  # no block between one group and all of them; no whole groups of padding
        (1056, 44, 4, 1056),
        (528, 22, 2, 576),  # 48 channels: the next wider one would be 264
        (384, 2, 1, 384),
        (320, 5, 1, 320),
        (960, 960, 1, 960),  # depthwise
        (20, 20, 1, 24),
    ],
)
def test_groups_are_merged_by_a_rule_that_bounds_the_waste(channels, groups, merge, stored):
    packed = prepack(np.ones((3, 3, channels // groups, channels), np.float32), groups=groups)
    assert (packed.merge, packed.stored_channels) == (merge, (stored, stored))
    assert packed.weight.size <= max(256 * channels, 256 * stored) * 9


def test_padding_of_groups_is_whole_groups():
    weight = np.ones((3, 3, 24, 264), np.float32)
    packed = prepack(weight, groups=11, merge_groups=1, pad_to=(288, 288))
    assert packed.stored_groups == 12
    with pytest.raises(ValueError, match=r"pad_to=\(280, 280\) .* aren't whole groups of 24 -> 24"):
        prepack(weight, groups=11, merge_groups=1, pad_to=(280, 280))
    np.testing.assert_array_equal(unpack(packed).weight, unpack(prepack(weight, groups=11)).weight)
