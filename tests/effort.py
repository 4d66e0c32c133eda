"""How many random cases tests draw: few by default, as each may have to be compiled."""

import os

import hypothesis

EFFORT = int(os.environ.get("JAX_QCONV_TEST_EFFORT", "1"))
"""How many times as many as by default."""


def examples(count, **options):
    """Settings of Hypothesis for so many cases, times the effort."""
    return hypothesis.settings(max_examples=count * EFFORT, **options)
