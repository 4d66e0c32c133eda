"""Every own kernel compiles for every supported architecture, without a GPU."""

import pytest

from jax_qconv import _native


@pytest.mark.parametrize("compute_capability", [80, 86, 89, 90, 100, 120])
def test_the_checker_compiles(compute_capability):
    extension = _native.extension()
    try:
        cubin = extension.compile_check_conv(compute_capability)
    except RuntimeError as error:
        if "NVRTC" in str(error) and "can't be loaded" in str(error):
            pytest.skip(str(error))
        raise
    assert cubin[:4] == b"\x7fELF"
    for name in (b"reference_conv", b"fill", b"compare"):
        assert name in cubin
