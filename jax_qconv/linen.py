"""`QConv` for Flax Linen: an int8 convolution in the place of `flax.linen.Conv`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jax_qconv._activation import Activation
from jax_qconv._conv import qconv
from jax_qconv._packed_conv import PackedConv
from jax_qconv._quantize import QTensor

try:
    import flax.linen as nn
except ImportError as error:
    raise ImportError("jax_qconv.linen needs Flax; `pip install 'jax_qconv[flax]'`.") from error

from jax_qconv import _flax

COLLECTION = "quantized"
"""Variable collection of the packed weights, beside Flax's ``"params"``."""


class QConv(nn.Module):
    """int8 convolution with fused bias, residual, activation and rounding.

    Stands where `flax.linen.Conv` stood, with the same names in the same order. Fields of
    `flax.linen.Conv` that have no meaning here (mask, dtypes, precision, initialisers) don't
    exist. The numerics are those of `jax_qconv.qconv`.

    Its only variable is a bound `PackedConv`, ``packed`` in the collection ``"quantized"``: not
    in ``"params"``, because integers have no gradient and optimisers can't update them.
    `from_float` makes it from the parameters of a trained `flax.linen.Conv`. Nothing is packed
    or folded in `apply`. `init` makes one of zero weights, for `jax.eval_shape` and as the
    target of a checkpoint's restoration::

        net = Net()                                          # its setup: self.stem = QConv(...)
        stem = net.bind({}).stem.from_float(params["stem"], x_scale=0.02, out_scale=0.05)
        y = net.apply({"quantized": {"stem": stem}}, quantize(x, 0.02))

    What `init` makes has the zero points of its input and its residual, but none of its output,
    which no field asks for. Where a checkpoint has one, the target is made with `from_float` of
    zeros (or any pack is bound by hand, and put in that place)::

        target = jax.eval_shape(lambda: layer.from_float(zeros, x_scale=1.0, out_scale=1.0,
                                                         out_zero_point=0))

    Attributes:
        features: output channels.
        kernel_size: (height, width); an int for a 1-D convolution, three ints for a 3-D one.
        strides: of the window, an int or one for each axis.
        padding: ``"SAME"``, ``"VALID"``, an int, (height, width) or
            ((top, bottom), (left, right)); Flax's other modes are refused.
        input_dilation: only 1.
        kernel_dilation: an int or one for each axis.
        feature_group_count: groups, which divide both channel counts.
        use_bias: whether the trained convolution has a bias.
        activation: ``"relu"``, ``"silu"`` and so on, an `Activation`, or None.
        residual: whether calls take a residual, added before the activation.
        out_dtype: ``"int8"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        implementation: ``"cudnn"`` or ``"reference"``, which is then used or refused; None
            means cuDNN on CUDA and the reference elsewhere.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    padding: str | int | Sequence[Any] = "SAME"
    input_dilation: int | Sequence[int] | None = 1
    kernel_dilation: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    _: dataclasses.KW_ONLY
    activation: Activation | str | None = None
    residual: bool = False
    out_dtype: Any = "int8"
    implementation: str | None = None

    @nn.compact
    def __call__(
        self, x: QTensor | jax.Array, residual: QTensor | None = None
    ) -> QTensor | jax.Array:
        """Convolve.

        Args:
            x: ``[N, H, W, C; int8]`` with the scale that the weights were packed for, or a
                bare int8 array.
            residual: ``[N, P, Q, features; int8]``, if and only if the field of that name is
                True.

        Returns:
            ``[N, P, Q, features]``: a `QTensor` for int8 outputs, else an array of
            ``out_dtype``.
        """
        layer = _flax.Layer.of_module(self, features=self.features)

        def zeros() -> PackedConv:
            given = {}
            for name, q in (("x", x), ("residual", residual)):
                if isinstance(q, QTensor):
                    given |= {f"{name}_scale": q.scale, f"{name}_zero_point": q.zero_point}
            return layer.zeros(x.shape[-1], **given)

        packed = layer.check(self.variable(COLLECTION, "packed", zeros).value)
        return qconv(x, packed, residual=residual, implementation=self.implementation)

    @nn.nowrap
    def from_float(
        self,
        conv_params: Mapping[str, Any],
        *,
        x_scale: Any,
        out_scale: Any = None,
        residual_scale: Any = None,
        x_zero_point: Any = None,
        out_zero_point: Any = None,
        residual_zero_point: Any = None,
        slopes: Any = None,
    ) -> dict[str, PackedConv]:
        """Quantise and pack the parameters of a trained `flax.linen.Conv`.

        A pack with one scale per tensor, or with other channel padding, is made with `prepack`
        and goes to the same place.

        Args:
            conv_params: ``{"kernel": [R, S, C, features; float], "bias": [features; float]}``,
                the entry of that layer in the collection ``"params"``.
            x_scale: ``[; float32]`` scale of the input.
            out_scale: ``[; float32]`` scale of an int8 output; None for a float one.
            residual_scale: ``[; float32]`` scale of the residual, or None without one.
            x_zero_point: ``[; int32]`` zero point of the input, such as that of
                `jax_qconv.quantize_image`, or None.
            out_zero_point: ``[; int32]`` zero point of an int8 output, or None.
            residual_zero_point: ``[; int32]`` zero point of the residual, or None.
            slopes: ``[features; float32]`` factors of ``"prelu"`` for negative values; else None.

        Returns:
            The entry of this layer in the collection ``"quantized"``.

        Raises:
            TypeError, ValueError: if the parameters or scales don't fit the fields.
        """
        expected = {"kernel", "bias"} if self.use_bias else {"kernel"}
        if set(conv_params) != expected:
            raise ValueError(
                f"conv_params must hold {sorted(expected)} where use_bias={self.use_bias}, got "
                f"{sorted(conv_params)}."
            )
        conv_params = nn.unbox(conv_params)
        packed = _flax.Layer.of_module(self, features=self.features).pack(
            conv_params["kernel"],
            conv_params.get("bias"),
            x_scale=x_scale,
            out_scale=out_scale,
            residual_scale=residual_scale,
            x_zero_point=x_zero_point,
            out_zero_point=out_zero_point,
            residual_zero_point=residual_zero_point,
            slopes=slopes,
        )
        return {"packed": packed}
