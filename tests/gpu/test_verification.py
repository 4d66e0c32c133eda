"""Plans on a GPU: wrong ones are caught, named ones used or refused, verdicts remembered."""

from __future__ import annotations

import jax
import pytest
from cases import Case, Geometry

from jax_qconv import _native, _plans

GEOMETRY = Geometry((8, 14, 14, 64), (64, 3, 3, 64), padding="SAME", pads="SAME")
ACCUMULATOR = Case(GEOMETRY, out_dtype="int32")


def problem_text(out_dtype="int32") -> str:
    return (
        "x=8,14,14,64 w=64,3,3,64 strides=1,1 padding=1,1,1,1 dilation=1,1 groups=1 "
        f"out={out_dtype} activation=none slope=0.0 residual=0"
    )


def bare_plans() -> dict[str, str]:
    """cuDNN's plans of the lone convolution, and what the checker says of each."""
    verdicts = {}
    for index in (0, 28, 71):
        name = f"cudnn_bare:{index}"
        try:
            verdicts[name] = _native.extension().verify(problem_text(), name, 0)
        except RuntimeError as error:
            assert "building plan" in str(error) or "workspace" in str(error)
    return verdicts


def test_wrong_plans_of_the_lone_convolution_are_caught():
    wrong = {name: verdict for name, verdict in bare_plans().items() if verdict}
    assert wrong, "cuDNN has mended its int32 convolution: feed the checker another wrong plan"
    for verdict in wrong.values():
        assert "elements differ from the exact convolution" in verdict


def test_a_wrong_plan_named_by_the_caller_is_refused_and_the_next_call_works(account):
    name = next(name for name, verdict in bare_plans().items() if verdict)
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"'{name}' is refused.*elements differ"):
        ACCUMULATOR.run(jit=True, plan=name)
    account.same(ACCUMULATOR.run(jit=True), ACCUMULATOR.expected())


def test_a_right_plan_named_by_the_caller_is_used(account):
    name = next(name for name, verdict in bare_plans().items() if not verdict)
    account.same(ACCUMULATOR.run(jit=True, plan=name), ACCUMULATOR.expected())
    case = Case(GEOMETRY, activation="relu", residual=True)
    account.same(case.run(jit=True, plan="cudnn:4:cfg=26"), case.expected())


@pytest.mark.parametrize("name", ["cudnn:999", "cudnn:4:cfg=9999", "cudnn_bare:0"])
def test_a_plan_that_does_not_exist_is_refused(name, account):
    case = Case(GEOMETRY, activation="relu")
    with pytest.raises(jax.errors.JaxRuntimeError, match="cudnn"):
        case.run(jit=True, plan=name)
    account.same(case.run(jit=True), case.expected())


def test_verdicts_are_kept_on_disk_and_a_damaged_one_is_made_again():
    verify, plan = _native.extension().verify, "cudnn:4:cfg=26"
    assert verify(problem_text("int8"), plan, 0) == ""
    key = f"{problem_text('int8')} | {plan} | "
    kept = [
        f for f in (_native.cache_dir() / "verdicts").iterdir() if f.read_text().startswith(key)
    ]
    assert len(kept) == 1 and kept[0].read_text().endswith("\nexact")
    for file in kept:
        whole = file.read_text()
        file.write_text(whole[:-3])
        assert verify(problem_text("int8"), plan, 0) == ""
        assert file.read_text() == whole
        # A kept verdict is believed: that is what it is for.
        head, tail = whole.rsplit("\n", 2)[0], "made up"
        file.write_text("\n".join([head, fnv1a(tail), tail]))
        assert verify(problem_text("int8"), plan, 0) == tail
        file.write_text(whole)


def fnv1a(text: str) -> str:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def test_a_call_lowered_without_a_gpu_finds_its_plan_when_it_runs(account, monkeypatch):
    case = Case(GEOMETRY, activation="relu")
    monkeypatch.setattr(_plans, "local_gpu", lambda: None)
    account.same(case.run(jit=True), case.expected())


def test_a_plan_found_elsewhere_that_does_not_exist_here_is_replaced(account, monkeypatch):
    case = Case(GEOMETRY, activation="clip")
    monkeypatch.setattr(_plans, "plan_for", lambda *_, **__: "cudnn:4:cfg=9999")
    account.same(case.run(jit=True), case.expected())
