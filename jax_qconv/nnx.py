"""`QConv` for Flax NNX: an int8 convolution in the place of `flax.nnx.Conv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from jax_qconv._activation import Activation
from jax_qconv._binding import resolve_out_dtype
from jax_qconv._conv import qconv
from jax_qconv._packed_conv import PackedConv
from jax_qconv._quantize import QTensor

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("jax_qconv.nnx needs Flax; `pip install 'jax_qconv[flax]'`.") from error

from jax_qconv import _flax


class Quantized(nnx.Variable[PackedConv]):
    """The variable that holds a `PackedConv`.

    Not an `nnx.Param`, because integers have no gradient and optimisers can't update them;
    ``nnx.split(model, Quantized, ...)`` separates the packs from the rest.
    """


class QConv(nnx.Module):
    """int8 convolution with fused bias, residual, activation and rounding.

    Stands where `flax.nnx.Conv` stood, with the same names in the same order. Arguments of
    `flax.nnx.Conv` that have no meaning here (mask, dtypes, precision, initialisers, rngs)
    don't exist. The numerics are those of `jax_qconv.qconv`.

    `from_float` makes one of a trained `flax.nnx.Conv`. The constructor makes one of zero
    weights, for `nnx.eval_shape` and as the target of a checkpoint's restoration. The weights
    are a bound `PackedConv` in the attribute ``packed``, a `Quantized` variable; calls neither
    pack nor fold anything.

    What the constructor makes has no zero points, which no argument asks for. Where a checkpoint
    has some, make the target with `from_float` of a convolution of zeros, with zero points of any
    value; or put a pack in by ``layer.packed.set_value(packed.bind(x_zero_point=...))``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: str | int | Sequence[Any] = "SAME",
        input_dilation: int | Sequence[int] | None = 1,
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        activation: Activation | str | None = None,
        residual: bool = False,
        out_dtype: Any = "int8",
        implementation: str | None = None,
    ) -> None:
        """Make a convolution of zero weights.

        Args:
            in_features: input channels.
            out_features: output channels.
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

        Raises:
            TypeError, ValueError: on arguments that an int8 convolution can't honour.
        """
        for name, count in (("in_features", in_features), ("out_features", out_features)):
            _flax.check_count(name, count)
        self.in_features = in_features
        self.out_features = out_features
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.input_dilation = input_dilation
        self.kernel_dilation = kernel_dilation
        self.feature_group_count = feature_group_count
        self.use_bias = use_bias
        self.activation = activation
        self.residual = residual
        self.out_dtype = out_dtype
        self.implementation = implementation
        layer = self._layer
        # As tuples: with lists the graph definition could not be hashed.
        self.kernel_size, self.strides = layer.kernel_size, layer.strides
        self.padding, self.kernel_dilation = layer.padding, layer.kernel_dilation
        self.packed = Quantized(layer.zeros(in_features))

    @property
    def _layer(self) -> _flax.Layer:
        return _flax.Layer.of_module(self, features=self.out_features)

    def __call__(
        self, x: QTensor | jax.Array, residual: QTensor | None = None
    ) -> QTensor | jax.Array:
        """Convolve.

        Args:
            x: ``[N, H, W, C; int8]`` with the scale that the weights were packed for, or a
                bare int8 array.
            residual: ``[N, P, Q, out_features; int8]``, if and only if the attribute of that
                name is True.

        Returns:
            ``[N, P, Q, out_features]``: a `QTensor` for int8 outputs, else an array of
            ``out_dtype``.
        """
        packed = self._layer.check(self.packed.get_value())
        return qconv(x, packed, residual=residual, implementation=self.implementation)

    @classmethod
    def from_float(
        cls,
        conv: nnx.Conv,
        *,
        x_scale: Any,
        out_scale: Any = None,
        residual_scale: Any = None,
        x_zero_point: Any = None,
        out_zero_point: Any = None,
        residual_zero_point: Any = None,
        slopes: Any = None,
        activation: Activation | str | None = None,
        out_dtype: Any = None,
        implementation: str | None = None,
    ) -> QConv:
        """Quantise and pack a trained `flax.nnx.Conv`.

        Its dtype, param_dtype, precision, promote_dtype and preferred_element_type, which say
        how float results are rounded, go with the float computation; the rest is honoured or
        refused. A pack with one scale per tensor, or with other channel padding, is made with
        `prepack` and put in by ``layer.packed.set_value``.

        Args:
            conv: the trained convolution; stays as it is.
            x_scale: ``[; float32]`` scale of the input.
            out_scale: ``[; float32]`` scale of an int8 output; None for a float one.
            residual_scale: ``[; float32]`` scale of the residual, or None without one.
            x_zero_point: ``[; int32]`` zero point of the input, such as that of
                `jax_qconv.quantize_image`, or None.
            out_zero_point: ``[; int32]`` zero point of an int8 output, or None.
            residual_zero_point: ``[; int32]`` zero point of the residual, or None.
            slopes: ``[out_features; float32]`` factors of ``"prelu"`` for negative values; else
                None.
            activation: as for the constructor.
            out_dtype: as for the constructor, but None means int8 where out_scale is given,
                else float32.
            implementation: as for the constructor.

        Returns:
            A `QConv` that holds the packed weights.

        Raises:
            TypeError, ValueError: if ``conv`` is not an `nnx.Conv`, has what an int8
                convolution can't honour, or doesn't go with the scales.
        """
        if not isinstance(conv, nnx.Conv):
            raise TypeError(f"conv must be a flax.nnx.Conv, got {type(conv).__name__}.")
        if conv.mask is not None:
            raise ValueError("conv has a mask; multiply its kernel by the mask and set it to None.")
        if conv.conv_general_dilated is not lax.conv_general_dilated:
            raise ValueError("conv has its own conv_general_dilated, which has no int8 form.")
        layer = cls(
            conv.in_features,
            conv.out_features,
            conv.kernel_size,
            conv.strides,
            padding=conv.padding,
            input_dilation=conv.input_dilation,
            kernel_dilation=conv.kernel_dilation,
            feature_group_count=conv.feature_group_count,
            use_bias=conv.use_bias,
            activation=activation,
            residual=residual_scale is not None,
            out_dtype=resolve_out_dtype(out_dtype, out_scale),
            implementation=implementation,
        )
        packed = layer._layer.pack(
            conv.kernel.get_value(),
            None if conv.bias is None else conv.bias.get_value(),
            x_scale=x_scale,
            out_scale=out_scale,
            residual_scale=residual_scale,
            x_zero_point=x_zero_point,
            out_zero_point=out_zero_point,
            residual_zero_point=residual_zero_point,
            slopes=slopes,
        )
        layer.packed.set_value(packed)
        return layer
