"""int8 convolution for JAX on NVIDIA GPUs: prepack weights, run fused int8 kernels."""

from importlib.metadata import version as _version

from jax_qconv import _native
from jax_qconv._activation import Activation
from jax_qconv._binding import Binding
from jax_qconv._conv import qconv
from jax_qconv._elementwise import qadd, qmul
from jax_qconv._info import Info, info
from jax_qconv._io import Header, load, read_header, save
from jax_qconv._kernels import export_kernels, load_kernels
from jax_qconv._layer_info import LayerInfo
from jax_qconv._linear import prepack_linear, qlinear
from jax_qconv._merges import tune_merges
from jax_qconv._mixed_precision import mixed_precision
from jax_qconv._native import EngineUnavailableError
from jax_qconv._observers import (
    MSE,
    AbsMax,
    Entropy,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
)
from jax_qconv._pack import Unpacked, prepack, unpack
from jax_qconv._packed_conv import PackedConv
from jax_qconv._plans import target
from jax_qconv._pool import qadaptive_avg_pool, qavg_pool, qglobal_avg_pool, qmax_pool
from jax_qconv._quantize import QTensor, dequantize, quantize, quantize_image
from jax_qconv._quantize_model import QuantizedModel, quantize_model
from jax_qconv._rearrange import (
    qchannel_shuffle,
    qconcat,
    qpad,
    qpixel_shuffle,
    qpixel_unshuffle,
)
from jax_qconv._report import LayerReport, Report, report
from jax_qconv._resize import qresize
from jax_qconv._rules import Rule
from jax_qconv._sensitivity import Sensitivity, sensitivity
from jax_qconv._table import qactivation, qgelu, requantize
from jax_qconv._tune import tune
from jax_qconv._tuning import Tuned, TuningError

__all__ = [
    "MSE",
    "AbsMax",
    "Activation",
    "Binding",
    "EngineUnavailableError",
    "Entropy",
    "Header",
    "Info",
    "LayerInfo",
    "LayerReport",
    "MinMax",
    "MovingAverage",
    "Observer",
    "PackedConv",
    "Percentile",
    "QTensor",
    "QuantizedModel",
    "Report",
    "Rule",
    "Sensitivity",
    "Tuned",
    "TuningError",
    "Unpacked",
    "dequantize",
    "export_kernels",
    "info",
    "load",
    "load_kernels",
    "mixed_precision",
    "prepack",
    "prepack_linear",
    "qactivation",
    "qadaptive_avg_pool",
    "qadd",
    "qavg_pool",
    "qchannel_shuffle",
    "qconcat",
    "qconv",
    "qgelu",
    "qglobal_avg_pool",
    "qlinear",
    "qmax_pool",
    "qmul",
    "qpad",
    "qpixel_shuffle",
    "qpixel_unshuffle",
    "qresize",
    "quantize",
    "quantize_image",
    "quantize_model",
    "read_header",
    "report",
    "requantize",
    "save",
    "sensitivity",
    "target",
    "tune",
    "tune_merges",
    "unpack",
]

__version__ = _version("jax_qconv")

_native.register()
