"""The real layers that tests and benchmarks share."""

from jax_qconv._networks import NETWORKS, RESNET50, Layer

__all__ = ["NETWORKS", "RESNET50", "Layer"]
