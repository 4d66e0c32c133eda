"""Every kind of convolution and epilogue against the oracle, bit for bit."""

import cases
import hypothesis
import jax
import numpy as np
import oracle
import pytest
from cases import Case, Geometry
from effort import examples
from hypothesis import strategies as st

import jax_qconv as q

FEW = examples(6)
EVERY_EPILOGUE = {
    "zero_points": st.sets(st.sampled_from(["x", "out", "residual"])).map(sorted).map(tuple),
    "residual_mode": st.sampled_from(["add", "add_after_activation", "average"]),
    "activation": st.sampled_from(
        ["none", "relu", "clip", "leaky_relu", "prelu", "hard_sigmoid", "hard_swish"]
    ),
}


def fitting(case: Case) -> Case:
    """Without what the call of the case doesn't have."""
    present = {"x": True, "out": case.out_dtype == "int8", "residual": case.residual}
    kept = tuple(name for name in case.zero_points if present[name])
    return cases.dataclasses.replace(case, zero_points=kept)


def check(case: Case, *, bound: bool = False) -> None:
    case = fitting(case)
    oracle.assert_same(case.run(jit=True, bound=bound), case.expected())


@FEW
@hypothesis.given(case=cases.cases(**EVERY_EPILOGUE), bound=st.booleans())
def test_zero_points_residuals_and_activations(case, bound):
    check(case, bound=bound)


@FEW
@hypothesis.given(case=cases.cases(geometry=cases.grouped(), **EVERY_EPILOGUE), bound=st.booleans())
def test_groups(case, bound):
    check(case, bound=bound)


@FEW
@hypothesis.given(
    case=cases.cases(geometry=cases.transposed(), **EVERY_EPILOGUE), bound=st.booleans()
)
def test_transposed(case, bound):
    check(case, bound=bound)


@FEW
@hypothesis.given(
    case=cases.cases(
        geometry=st.sampled_from([1, 3]).flatmap(lambda rank: cases.geometries(rank=rank)),
        **EVERY_EPILOGUE,
    ),
    bound=st.booleans(),
)
def test_one_and_three_spatial_axes(case, bound):
    check(case, bound=bound)


@FEW
@hypothesis.given(
    case=cases.cases(
        geometry=cases.stems(), pack=st.just((("space_to_depth", True),)), **EVERY_EPILOGUE
    )
)
def test_space_to_depth(case):
    check(case)


@pytest.mark.parametrize("merge", [1, 2, 4, 8])
@pytest.mark.parametrize("zero_points", [(), ("x",)], ids=["symmetric", "zero-point"])
def test_merged_groups_give_the_same_bytes(merge, zero_points):
    geometry = Geometry((2, 6, 6, 128), (128, 3, 3, 16), padding="SAME", pads="SAME", groups=8)
    case = Case(geometry, zero_points=zero_points, pack=(("merge_groups", merge),))
    check(case)


@pytest.mark.parametrize(
    ("out_dtype", "zero_points"), [("int32", ()), ("int32", ("x",)), ("float32", ("x",))]
)
@pytest.mark.parametrize("transpose", [False, True])
def test_bare_and_float_outputs(out_dtype, zero_points, transpose):
    pads = ((1, 1), (1, 1))
    geometry = Geometry(
        (2, 5, 7, 5), (6, 4, 4, 5), (2, 2), padding=1, pads=pads, transpose=transpose
    )
    check(Case(geometry, bias=False, out_dtype=out_dtype, zero_points=zero_points))


@pytest.mark.parametrize("kernel", [(9, 9), (1, 3)])
def test_the_border_of_small_and_large_kernels(kernel):
    geometry = Geometry((1, 9, 8, 3), (4, *kernel, 3), padding="SAME", pads="SAME")
    check(Case(geometry, zero_points=("x",)))


@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("out_zero_point", [None, -20])
def test_smooth_activations_are_those_of_the_real_function(kind, out_zero_point):
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (2, 6, 6, 8), np.int8)
    w = rng.integers(-127, 128, (3, 3, 8, 16), np.int8)
    packed = q.prepack(w, weight_scale=2.0**-12)
    real = q.qconv(q.QTensor(x, 0.05), packed, out_dtype="float32")
    want = {
        "sigmoid": jax.nn.sigmoid,
        "tanh": np.tanh,
        "silu": jax.nn.silu,
        "gelu": lambda y: jax.nn.gelu(y, approximate=False),
        "gelu_tanh": lambda y: jax.nn.gelu(y, approximate=True),
    }[kind](real)
    got = q.qconv(q.QTensor(x, 0.05), packed, out_dtype="float32", activation=kind)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    quantised = q.qconv(
        q.QTensor(x, 0.05), packed, out_scale=0.02, out_zero_point=out_zero_point, activation=kind
    )
    steps = np.rint(np.asarray(want, np.float64) / 0.02) + (out_zero_point or 0)
    assert np.abs(np.asarray(quantised.unpadded()) - np.clip(steps, -128, 127)).max() <= 1
    assert len(np.unique(np.asarray(quantised.unpadded()))) > 30


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_an_input_without_a_batch_is_one_of_a_batch(rank):
    rng = np.random.default_rng(0)
    x = cases.int8(rng, (2, *[6] * rank, 5), "any")
    r = cases.int8(rng, (2, *[6] * rank, 7), "any")
    packed = q.prepack(rng.normal(size=(*[3] * rank, 5, 7)).astype(np.float32))

    def call(x, r):
        return q.qconv(q.QTensor(x, 0.1), packed, residual=q.QTensor(r, 0.2), out_scale=0.5)

    whole, one = call(x, r), call(x[1], r[1])
    assert one.shape == (*[6] * rank, 7)
    oracle.assert_same(one.unpadded(), np.asarray(whole.unpadded())[1])


def test_floats_are_quantised_on_the_way_in():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 6, 5)).astype(np.float32)
    packed = q.prepack(rng.normal(size=(3, 3, 5, 7)).astype(np.float32))
    for zero_point in (None, 5):
        bound = packed.bind(x_scale=0.03, x_zero_point=zero_point)
        want = q.qconv(q.quantize(x, 0.03, zero_point=zero_point), bound)
        oracle.assert_same(q.qconv(x, bound), np.asarray(want))
        got = q.qconv(x, packed, x_scale=0.03, x_zero_point=zero_point)
        oracle.assert_same(got, np.asarray(want))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 4), (4, 4), (1, 5)])
def test_transposed_sizes_are_those_of_lax(kernel, padding):
    x, w = np.ones((1, 5, 6, 3), np.float32), np.ones((*kernel, 3, 4), np.float32)
    want = jax.eval_shape(lambda x, w: jax.lax.conv_transpose(x, w, (2, 3), padding), x, w)
    packed = q.prepack(w, strides=(2, 3), padding=padding, transpose=True)
    assert q.qconv(x, packed, x_scale=1.0).shape == want.shape


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_flipped_kernel_is_that_of_lax_conv_transpose(padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, (2, 5, 6, 3)).astype(np.float32)
    w = rng.integers(-127, 128, (3, 4, 3, 4), np.int8)
    want = jax.lax.conv_transpose(x, w.astype(np.float32), (2, 2), padding, precision="highest")
    packed = q.prepack(w[::-1, ::-1], weight_scale=1.0, strides=2, padding=padding, transpose=True)
    np.testing.assert_array_equal(q.qconv(x, packed, x_scale=1.0), want)
