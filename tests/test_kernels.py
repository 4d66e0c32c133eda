"""Sets of compiled kernels: what goes into a file, and what comes out of it, without a compiler."""

import concurrent.futures
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qconv
from jax_qconv import __main__, _kernels, _native, _plan_model, _plan_store
from jax_qconv._collect import problems_of
from jax_qconv._plan_store import Entry, Target

extension = pytest.importorskip("jax_qconv._ext")

NO_CUDA = "this is no CUDA"
"""A source that NVRTC, where it is, refuses: a cubin for it was loaded."""
CHECKER = extension.hash(extension.checker_source())
KERNELS = {CHECKER: b"the checker", extension.hash(NO_CUDA): b"\x7fELF\n\0 and so on"}
X = jax.ShapeDtypeStruct((2, 14, 14, 32), jnp.int8)


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    """Whatever GPU and driver there are, and whatever a test loads."""
    pretend(monkeypatch, compute_capabilities=lambda: [], driver_version=lambda: None)
    yield
    shutil.rmtree(_native.cache_dir() / "loaded", ignore_errors=True)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "net.kernels"


def contents(cubins=KERNELS, compute_capability=90):
    return _kernels._Set(compute_capability, "0.0.1", "13.0", cubins).to_bytes()


def resealed(content, **changes):
    """The content with another header, and the digest that goes with it."""
    head, _, rest = content[: -_kernels.DIGEST_BYTES].partition(b"\n")
    whole = json.dumps(json.loads(head) | changes).encode() + b"\n" + rest
    return whole + hashlib.sha256(whole).digest()


def test_a_loaded_kernel_is_found_before_nvrtc_is_asked(file):
    file.write_bytes(contents())
    with pytest.raises(RuntimeError):
        extension.find_kernels(NO_CUDA, 90)
    assert jax_qconv.load_kernels(str(file)) == len(KERNELS)
    assert extension.find_kernels(NO_CUDA, 90) == KERNELS[extension.hash(NO_CUDA)]


def test_a_kernel_is_for_one_architecture_only(file):
    file.write_bytes(contents(compute_capability=80))
    jax_qconv.load_kernels(file)
    with pytest.raises(RuntimeError):
        extension.find_kernels(NO_CUDA, 90)


def test_other_processes_find_what_one_has_loaded(file):
    file.write_bytes(contents())
    jax_qconv.load_kernels(file)
    script = "import jax_qconv._native as n, sys; "
    script += f"sys.stdout.buffer.write(n.extension().find_kernels({NO_CUDA!r}, 90))"
    environment = os.environ | {"JAX_QCONV_CACHE_DIR": str(_native.cache_dir())}
    command = [sys.executable, "-P", "-c", "import jax_qconv; " + script]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout == KERNELS[extension.hash(NO_CUDA)]


def test_loading_again_writes_nothing(file):
    file.write_bytes(contents())
    jax_qconv.load_kernels(file)
    kept = sorted((_native.cache_dir() / "loaded").iterdir())
    before = [path.stat().st_ino for path in kept]
    jax_qconv.load_kernels(file)
    assert [path.stat().st_ino for path in kept] == before and len(kept) == len(KERNELS)


def test_a_kept_kernel_that_was_damaged_is_not_taken_and_loading_mends_it(file):
    file.write_bytes(contents())
    jax_qconv.load_kernels(file)
    for kept in (_native.cache_dir() / "loaded").iterdir():
        kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(RuntimeError):
        extension.find_kernels(NO_CUDA, 90)
    jax_qconv.load_kernels(file)
    assert extension.find_kernels(NO_CUDA, 90) == KERNELS[extension.hash(NO_CUDA)]


def test_threads_that_load_and_look_see_whole_kernels(tmp_path):
    cubins = [bytes([i]) * 100_000 for i in (1, 2)]
    files = [tmp_path / name for name in ("one", "two")]
    for path, cubin in zip(files, cubins, strict=True):
        path.write_bytes(contents(dict.fromkeys(KERNELS, cubin)))
    jax_qconv.load_kernels(files[0])

    def work(index):
        jax_qconv.load_kernels(files[index % 2])
        return extension.find_kernels(NO_CUDA, 90)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(64))) <= set(cubins)
    assert len(list((_native.cache_dir() / "loaded").iterdir())) == len(KERNELS)


def pretend(monkeypatch, **functions):
    """The extension with some other functions."""
    fake = types.SimpleNamespace(**{**vars(_native.extension()), **functions})
    monkeypatch.setattr(_native, "extension", lambda: fake)


def refusal(file, content):
    """What is said of a file of which nothing may have been taken."""
    file.write_bytes(content)
    with pytest.raises(ValueError, match="export") as caught:
        jax_qconv.load_kernels(file)
    assert str(file) in str(caught.value)
    assert not (_native.cache_dir() / "loaded").exists()
    return str(caught.value)


def test_a_file_that_was_cut_short_anywhere_is_refused(file):
    whole = contents()
    for length in range(len(whole)):
        assert "set of kernels" in (said := refusal(file, whole[:length])) or "cut short" in said


def test_a_byte_that_changed_anywhere_is_noticed(file):
    whole = contents()
    for index in range(len(whole)):
        changed = bytearray(whole)
        changed[index] ^= 1
        refusal(file, bytes(changed))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"PK\x03\x04", b"[]\n", b"3\n", b'{"format": 1, "plans": {}}\n', b"[" * 10**5],
    ids=["empty", "line", "zip", "list", "number", "table-of-plans", "deep"],
)
def test_something_else_is_named_as_such(file, content):
    assert "is no set of kernels" in refusal(file, content)


def test_a_newer_format_is_refused_with_what_is_read(file):
    # Whatever else a newer format changes.
    head = {"kind": _kernels.KIND, "format": _kernels.FORMAT + 1}
    said = refusal(file, json.dumps(head).encode())
    assert f"format {_kernels.FORMAT + 1}" in said and f"up to {_kernels.FORMAT}" in said
    assert jax_qconv.__version__ in said


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": {"../../../evil": 11, "b" * 16: 16}},
        {"sizes": {"/tmp/evil": 11}},
        {"sizes": {"a" * 16: 1}},
        {"sizes": {"a" * 16: 10**12}},
        {"sizes": {"a" * 16: -1}},
        {"sizes": {"a" * 16: True}},
        {"sizes": ["a" * 16]},
        {"sizes": None},
        {"compute_capability": "90"},
        {"compute_capability": 9},
        {"nvrtc": "new"},
        {"nvrtc": None},
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused_though_its_digest_is_right(file, changes):
    assert "damaged" in refusal(file, resealed(contents(), **changes))


def test_kernels_of_another_version_are_refused_with_both_versions(file):
    said = refusal(file, contents({"a" * 16: b"another checker"}))
    assert "jax_qconv 0.0.1" in said and jax_qconv.__version__ in said


def test_kernels_for_other_gpus_are_refused_with_the_remedy(file, monkeypatch):
    pretend(monkeypatch, compute_capabilities=lambda: [90, 90])
    said = refusal(file, contents(compute_capability=80))
    assert "sm_80" in said and "are sm_90;" in said and "compute_capability=90" in said
    pretend(monkeypatch, compute_capabilities=lambda: [90, 80])
    assert jax_qconv.load_kernels(file) == len(KERNELS)


def test_kernels_for_a_newer_driver_are_refused_with_the_remedy(file, monkeypatch):
    pretend(monkeypatch, driver_version=lambda: (12, 8))
    said = refusal(file, contents())
    assert "NVRTC 13.0" in said and "CUDA 12.8" in said and "jax_qconv[cuda12]" in said
    pretend(monkeypatch, driver_version=lambda: (13, 0))
    assert jax_qconv.load_kernels(file) == len(KERNELS)


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(file):
    file.write_bytes(contents())
    (_native.cache_dir() / "loaded").write_text("in the way")
    with pytest.raises(OSError, match="JAX_QCONV_CACHE_DIR") as caught:
        jax_qconv.load_kernels(file)
    assert str(_native.cache_dir()) in str(caught.value) and str(file) in str(caught.value)
    (_native.cache_dir() / "loaded").unlink()


def test_a_missing_file_is_missing(file):
    with pytest.raises(FileNotFoundError):
        jax_qconv.load_kernels(file)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """What was compiled by a made-up NVRTC, and an empty store of plans."""
    compiled = []

    def compile_kernels(source, compute_capability, file_name):
        compiled.append((file_name, compute_capability))
        return f"{file_name} for {compute_capability} {extension.hash(source)}".encode()

    pretend(monkeypatch, compile_kernels=compile_kernels, nvrtc_version=lambda: "12.9")
    monkeypatch.setattr(_plan_store, "root", lambda: tmp_path / "plans")
    return compiled


def conv(x, groups=1, **options):
    kernel = np.ones((3, 3, 32 // groups, 32), np.float32)
    packed = jax_qconv.prepack(kernel, groups=groups, merge_groups=1)
    packed = packed.bind(x_scale=1.0, out_scale=1.0)
    return jax_qconv.qconv(jax_qconv.QTensor(x, 1.0), packed, **options).values


def depthwise(x, **options):
    return conv(x, groups=32, **options)


def exported(file, fn, **options):
    """The hashes of the sources in a file."""
    count = jax_qconv.export_kernels(file, fn, X, **options)
    sources = list(_kernels._Set.from_bytes(file.read_bytes(), file).cubins)
    assert len(sources) == count
    return sources


def hashes(problem, plans):
    return {extension.hash(extension.own_kernel(problem, plan)["source"]) for plan in plans}


def test_cudnns_plans_need_the_kernels_that_verify_them(compiled, file):
    assert exported(file, lambda x: conv(conv(x))) == [CHECKER]
    assert compiled == [("check_conv.cu", 90)]


def test_without_a_stored_plan_those_that_are_tried_are_exported(compiled, file):
    (problem,) = map(str, problems_of(depthwise, X))
    plans = extension.own_plans(problem)
    found = exported(file, lambda x: depthwise(depthwise(conv(x))))
    assert set(found) == hashes(problem, plans[:6]) | {CHECKER}
    assert len(compiled) == len(found) == 7


def test_what_the_model_or_a_similar_convolution_chooses_is_exported(compiled, file, monkeypatch):
    def pointwise(x, activation):
        packed = jax_qconv.prepack(np.ones((1, 1, 32, 64), np.float32))
        packed = packed.bind(x_scale=1.0, out_scale=1.0, activation=activation)
        return jax_qconv.qconv(jax_qconv.QTensor(x, 1.0), packed).values

    wanted, other = (
        problem
        for activation in ("relu", "relu6")
        for problem in problems_of(functools.partial(pointwise, activation=activation), X)
    )
    modelled, tuned = (f"pointwise:0:rows={rows},cols=32,run=2" for rows in (32, 64))
    entry = {"plan": tuned, "us": 1.0, "tried": "all", "date": "2026-01-01", "version": "0.1.0"}
    table = _plan_store.Table(Target("A", 90, "9.19.0"), {str(other): entry})
    monkeypatch.setattr(_plan_store, "shipped", lambda: (table,))
    monkeypatch.setattr(_plan_model, "rank", lambda problem, capability: {modelled: 1.0, "a": 2.0})
    found = set(exported(file, functools.partial(pointwise, activation="relu")))
    plans = [*extension.own_plans(str(wanted))[:3], modelled, tuned]
    assert found == hashes(str(wanted), plans) | {CHECKER}


def test_plans_that_are_stored_for_the_architecture_are_exported_too(compiled, file):
    (problem,) = map(str, problems_of(depthwise, X))
    stored, other = extension.own_plans(problem)[7:9]
    for plan, gpu, capability in (
        (stored, "A", 90),
        (other, "B", 80),
        ("cudnn:4:cfg=26", "C", 90),
        ("depthwise:0:rows=14,cols=56", "D", 90),  # of another version: it isn't possible
    ):
        ranking = [{"plan": plan, "us": 1.0, "rejected": None}]
        target = Target(gpu, capability, "9.19.0")
        _plan_store.save(Entry.of_ranking(problem, target, ranking, tried="all"))
    found = set(exported(file, depthwise))
    assert hashes(problem, [stored]) <= found and not hashes(problem, [other]) & found
    assert len(found) == 8
    assert hashes(problem, [other]) <= set(exported(file, depthwise, compute_capability=80))


def test_a_plan_that_is_named_needs_no_other(compiled, file):
    (problem,) = map(str, problems_of(depthwise, X))
    last = extension.own_plans(problem)[-1]
    assert set(exported(file, lambda x: depthwise(x, plan=last))) == (
        hashes(problem, [last]) | {CHECKER}
    )
    # The name of none in particular.
    assert len(exported(file, lambda x: depthwise(x, plan="cudnn"))) == 7
    with pytest.raises(ValueError, match="too large for the registers"):
        exported(file, lambda x: depthwise(x, plan="depthwise:0:rows=14,cols=56"))


def test_the_order_of_a_program_does_not_change_the_bytes(compiled, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    jax_qconv.export_kernels(one, lambda x: (depthwise(x), depthwise(x[:1])), X)
    jax_qconv.export_kernels(two, lambda x: (depthwise(x[:1]), depthwise(x), conv(x)), X)
    assert one.read_bytes() == two.read_bytes()


def test_what_is_exported_is_loaded(compiled, file):
    jax_qconv.export_kernels(file, depthwise, X, compute_capability=86)
    jax_qconv.load_kernels(file)
    for source in exported(file, depthwise, compute_capability=86):
        (kept,) = [
            path.read_bytes()
            for path in (_native.cache_dir() / "loaded").iterdir()
            if path.read_bytes().startswith(f"{source} sm_86\n".encode())
        ]
        assert kept.endswith(f".cu for 86 {source}".encode())


def test_a_function_without_kernels_is_an_error_and_leaves_no_file(compiled, file):
    with pytest.raises(ValueError, match="no convolution here needs a kernel"):
        jax_qconv.export_kernels(file, lambda x: conv(x, implementation="reference"), X)
    assert not file.exists()


@pytest.mark.parametrize("value", [9, "90", 9.0, True, None])
def test_the_architecture_is_checked(compiled, file, value):
    with pytest.raises(ValueError, match="a number such as 90 for sm_90"):
        jax_qconv.export_kernels(file, conv, X, compute_capability=value)


def test_exporting_without_nvrtc_says_how_to_get_it(file, monkeypatch):
    def nvrtc_version():
        raise RuntimeError("NVRTC can't be loaded; `pip install 'jax_qconv[cuda13]'`")

    pretend(monkeypatch, nvrtc_version=nvrtc_version)
    with pytest.raises(jax_qconv.EngineUnavailableError, match=r"exporting kernels: .*cuda13"):
        jax_qconv.export_kernels(file, conv, X)


def test_the_command_line_exports_and_loads(compiled, file, capsys):
    export = ["kernels", "export", str(file), "--model", "resnet18", "unet", "--batch", "1,8"]
    assert __main__.main([*export, "--compute-capability", "86"]) is None
    assert capsys.readouterr().out == f"{len(compiled)} written to {file}.\n"
    # Both begin with a layer that has a kernel of its own.
    assert {("check_conv.cu", 86), ("stem.cu", 86)} <= set(compiled)
    assert __main__.main(["kernels", "load", str(file)]) is None
    assert capsys.readouterr().out == f"{len(compiled)} taken over.\n"
    file.write_bytes(b"?")
    complaint = __main__.main(["kernels", "load", str(file)])
    assert complaint.startswith("jax_qconv kernels load: ") and str(file) in complaint


@pytest.mark.parametrize("arguments", [[], ["export"], ["export", "F"], ["load"]], ids=str)
def test_the_command_line_is_checked(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        __main__.main(["kernels", *arguments])
    assert caught.value.code == 2
    assert "usage: python -m jax_qconv kernels" in capsys.readouterr().err
