"""The figures of README.md as text, all of them from a summary; what it lacks is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

SHOWN = (
    "3x224x224_7x7_to64_s2",
    "64x56x56_3x3",
    "64x56x56_1x1_to256",
    "128x28x28_3x3",
    "256x14x14_3x3",
    "256x14x14_1x1_to1024",
    "512x7x7_3x3",
)
"""Layers in README.md: the kinds of ResNet-50, the first one included."""

RIVALS = {
    "jax_bf16": "JAX bf16",
    "torch_bf16": "PyTorch bf16",
    "seed": "PyTorch int8",
    "xla_int8": "XLA int8",
    "qwix": "qwix",
}
"""Whom the layers are compared with, by their names in the summary."""

NETS = {
    "int8": "jax_qconv, int8",
    "int8_constants": "jax_qconv, int8, weights as constants",
    "int8_coarse": "jax_qconv, int8, channels padded by prepack's rule",
    "int8_without_graph": "jax_qconv, int8, without CUDA graphs",
    "int8_merged": "jax_qconv, int8, depthwise channels in dense blocks",
    "bf16": "JAX bf16",
    "bf16_graph": "JAX bf16, convolutions in CUDA graphs",
    "bf16_blocks": "JAX bf16, space-to-depth stem",
    "bf16_blocks_graph": "JAX bf16, space-to-depth stem, CUDA graphs",
    "bf16_blocks_graph_constants": (
        "JAX bf16, space-to-depth stem, CUDA graphs, weights as constants"
    ),
    "bf16_shifts": "JAX bf16, depthwise as sums of shifted images",
    "bf16_shifts_graph": "JAX bf16, depthwise as sums of shifted images, CUDA graphs",
    "torch_bf16": "PyTorch bf16, eager",
    "torch_bf16_graph": "PyTorch bf16, CUDA graph",
    "torch_bf16_compiled": "PyTorch bf16, `torch.compile`, CUDA graph",
    "seed": "PyTorch `quantized::conv2d`, eager",
    "xla_int8": "JAX int8 through XLA",
    "xla_int8_fused": "JAX int8 through XLA, fusion of convolutions",
    "qwix": "qwix int8, float32 between layers",
}
"""Systems of whole networks, by their names in resnet50.json and efficientnet_lite0.json."""

NETWORKS = {"resnet50": "ResNet-50", "efficientnet_lite0": "EfficientNet-Lite0"}
"""Whole networks, by their names in the summary."""

MODELS = NETWORKS | {"mobilenet_v2": "MobileNet-v2", "vgg16": "VGG-16", "unet": "U-Net"}
"""Networks that `quantize_model` made, by their names in the summary."""

KINDS = {
    "depthwise": {
        "share_of_copy_bandwidth": ("depthwise: bytes a second over those of a copy", "min"),
        "speedup_vs_jax_bf16": ("depthwise: times as fast as JAX bf16", "min"),
        "speedup_vs_jax_bf16_shifts": (
            "depthwise: times as fast as shifted images in JAX bf16",
            "min",
        ),
    },
    "groups": {
        "speedup_vs_cudnn_grouped": ("groups: times as fast as cuDNN's grouped kernel", "min"),
        "speedup_vs_jax_bf16": ("groups: times as fast as JAX bf16", "min"),
        "over_best_merge": ("groups: time over that of the best merge", "max"),
    },
    "transposed": {"speedup_vs_jax_bf16": ("transposed: times as fast as JAX bf16", "min")},
    "zero_points": {"slowdown": ("zero point of the input: time over that without one", "max")},
}
"""Other kinds of convolution: by name of a figure what it says, and which is its worst."""

PICTURES = {
    "layers_b128.png": ("layers", "All layers at batch 128: int8, others, the roofline"),
    "roofline.png": ("layers", "Operations a second of each layer, below the roofline"),
    "resnet50.png": ("resnet50", "Images a second of ResNet-50 by each system"),
}
"""By file: the JSON file that it is drawn from (see plots.py), and what it shows."""

Summary = dict[str, Any]


def pictures(summary: Summary) -> dict[str, str]:
    """The pictures that there are, with the JSON files that they are drawn from."""
    there = {"layers"} | ({"resnet50"} if "resnet50.exact" in summary else set())
    return {picture: source for picture, (source, _) in PICTURES.items() if source in there}


def digest(source: bytes) -> str:
    """What a picture keeps of the JSON file that it was drawn from."""
    return hashlib.sha256(source).hexdigest()


def section(summary: Summary, folder: str) -> str:
    """The section; ``folder`` is that of the results, as seen from README.md."""
    blocks = [
        [_origin(summary, folder)],
        list(_suites(summary)),
        list(_layers(summary)),
        *(list(_network(summary, network)) for network in NETWORKS),
        list(_models(summary)),
        list(_kinds(summary)),
        list(_notes(summary)),
        [f"![{PICTURES[picture][1]}]({folder}/{picture})" for picture in pictures(summary)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _origin(summary: Summary, folder: str) -> str:
    sha, _, dirty = summary["commit"].partition("-")
    reached = [f"copies reached {summary['copy_gbps'] / 1000:.2f} TB/s"]
    if "int8_tops" in summary:
        reached.append(f"int8 matrix products {summary['int8_tops']:,.0f} TOPS")
    if "clocks.min_sm_mhz" in summary:
        low, high = (summary[f"clocks.{end}_sm_mhz"] for end in ("min", "max"))
        reached.append(f"clocks of {low:.0f} to {high:.0f} MHz were seen")
    return (
        f"Measured by `bash tests/bench/run_gpu.sh` on one {summary['device']} on "
        f"{summary['date']}, JAX {summary['jax']}, cuDNN {summary['cudnn']}, commit {sha[:12]}"
        f"{dirty and ' with changes'}; {', '.join(reached)}. "
        f"[layers.json]({folder}/layers.json) has every layer and every sample, and says in "
        "`method` how time was taken."
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Of Markdown; so many columns are aligned to the left."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * left}{'---:|' * (len(heads) - left)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _cell(summary: Summary, key: str, form: str, missing: str = "-") -> str:
    value = summary.get(key)
    return missing if value is None else format(value, form)


def _batches(summary: Summary, prefix: str) -> list[int]:
    """Batch sizes that there are figures of, the largest first."""
    keys = [key.removeprefix(prefix) for key in summary if key.startswith(f"{prefix}b")]
    return sorted({int(key.split(".")[0][1:]) for key in keys}, reverse=True)


def _suites(summary: Summary) -> Iterator[str]:
    """How many times as fast as others, a line for each network and batch size."""
    names = sorted({key.split(".")[1] for key in summary if key.startswith("suites.")})
    networks = {"resnet50": "layers."} | {name: f"suites.{name}." for name in names}
    places = [(n, b, f"{p}b{b}.") for n, p in networks.items() for b in _batches(summary, p)]
    # Else they are those of `resnet50_plain`.
    places = [place for place in places if summary.get(f"{place[2]}with_residuals", True)]
    rivals = {
        name: title
        for name, title in RIVALS.items()
        if any(f"{place}geomean_speedup_vs_{name}" in summary for *_, place in places)
    }

    def row(network: str, batch: int, place: str) -> Iterator[str]:
        yield f"`{network}`"
        for value in (batch, summary[f"{place}layers"], summary[f"{place}exact"]):
            yield str(value)
        over = _cell(summary, f"{place}geomean_over_roofline", ".2f")
        yield over if over == "-" else f"{over} ({summary[f'{place}over_roofline_layers']})"
        for rival in rivals:
            mean = _cell(summary, f"{place}geomean_speedup_vs_{rival}", ".2f")
            least = _cell(summary, f"{place}min_speedup_vs_{rival}", ".2f")
            yield mean if mean == "-" else f"{mean} ({least})"

    yield (
        "Times as fast as others: the geometric mean of a network's distinct convolutions (least "
        "in brackets). Over roofline: time over the roofline of what a copy and an int8 matrix "
        "product reached in the same run (of so many layers), of `resnet50` without residuals and "
        "stem."
    )
    yield ""
    heads = ["convolutions of", "batch", "layers", "exact", "over roofline"]
    heads += [f"vs {title}" for title in rivals.values()]
    yield from table(heads, [list(row(*place)) for place in places])


def _layers(summary: Summary) -> Iterator[str]:
    """Some layers of ResNet-50, at the largest batch size and the least."""
    batches = _batches(summary, "layers.")
    heads = ["ResNet-50 layer", "batch", "int8, µs", "JAX bf16, µs", "speed-up", "of the roofline"]
    shown = dict.fromkeys([batches[0], batches[-1]]) if batches else []
    forms = {"us": ".1f", "jax_bf16_us": ".1f", "speedup_vs_jax_bf16": ".2f"}
    forms |= {"share_of_roofline": ".0%"}
    yield from table(
        heads,
        [
            [f"`{name}`", str(batch)]
            + [
                _cell(summary, f"layers.b{batch}.{name}.{key}", form, "failed")
                for key, form in forms.items()
            ]
            for batch in shown
            for name in SHOWN
        ],
    )


def _network(summary: Summary, network: str) -> Iterator[str]:
    """A whole network, a line for each system."""
    batches = _batches(summary, f"{network}.")
    if not batches:
        return

    def key(name: str, batch: int, figure: str) -> str:
        return f"{network}.b{batch}.{name}_{figure}"

    heads = [f"{NETWORKS[network]}, whole forward pass"]
    heads += [title for b in batches for title in (f"batch {b}, ms", "images/s")]
    yield from table(
        heads,
        [
            [title]
            + [
                _cell(summary, key(name, batch, figure), form)
                for batch in batches
                for figure, form in {"ms": ".3f", "images_per_s": ",.0f"}.items()
            ]
            for name, title in NETS.items()
            if any(key(name, batch, "ms") in summary for batch in batches)
        ],
    )


def _models(summary: Summary) -> Iterator[str]:
    """Networks that `quantize_model` made of plain Flax, a line for each and batch size."""
    forms = {"images_per_s": ",.0f", "jax_bf16_images_per_s": ",.0f"}
    forms |= {"speedup_vs_jax_bf16": ".2f", "share_of_hand_written": ".0%"}
    rows = [
        [title, str(batch), "yes" if summary[f"models.{model}.exact"] else "no"]
        + [_cell(summary, f"models.{model}.b{batch}.{key}", form) for key, form in forms.items()]
        for model, title in MODELS.items()
        for batch in _batches(summary, f"models.{model}.")
    ]
    if rows:
        heads = ["made by `quantize_model`", "batch", "exact", "int8, images/s"]
        heads += ["JAX bf16, images/s", "speed-up", "of int8 by hand"]
        yield from table(heads, rows)


def _kinds(summary: Summary) -> Iterator[str]:
    """Other kinds of convolution, a line for each comparison and batch size."""
    rows = [
        [
            what,
            *(str(value) for value in (batch, summary[f"{place}layers"], summary[f"{place}exact"])),
            f"{summary[f'{place}geomean_{name}']:.2f} ({summary[f'{place}{worst}_{name}']:.2f})",
        ]
        for kind, figures in KINDS.items()
        for name, (what, worst) in figures.items()
        for batch in _batches(summary, f"{kind}.")
        if f"{(place := f'{kind}.b{batch}.')}geomean_{name}" in summary
    ]
    if rows:
        heads = ["other kinds of convolution", "batch", "layers", "exact", "mean (worst)"]
        yield from table(heads, rows)


def _notes(summary: Summary) -> Iterator[str]:
    for network, of_network in NETWORKS.items():
        for batch in _batches(summary, f"{network}."):
            rivals = {
                title: summary[key]
                for name, title in RIVALS.items()
                if (key := f"{network}.b{batch}.speedup_vs_{name}") in summary
            }
            if rivals:
                times = ", ".join(f"{value:.2f} times {title}" for title, value in rivals.items())
                yield f"- {of_network} at batch {batch}, as fast as the best variant of: {times}."
    if "models.resnet50.quantise_seconds" in summary:
        seconds = summary["models.resnet50.quantise_seconds"]
        yield f"- `quantize_model` of ResNet-50 with 512 images: {seconds:.1f} s."
    if "startup.cold_s" in summary:
        cold, warm, programs = (
            summary[f"startup.{name}_s"] for name in ("cold", "warm", "warm_with_programs")
        )
        yield (
            f"- From the start of a process to ResNet-50's first result: {cold:.1f} s, "
            f"{warm:.1f} s with plans kept from earlier, {programs:.1f} s with JAX's compiled "
            "programs too."
        )
    if "plans.model.held_out.geomean" in summary:
        problems, geomean, worst = (
            summary[f"plans.model.held_out.{name}"] for name in ("problems", "geomean", "worst")
        )
        yield (
            f"- The model that picks plans untuned: on {problems} convolutions it wasn't fitted "
            f"to, its picks take {geomean:.2f} times as long as the best plans found (worst "
            f"{worst:.2f})."
        )
    compared, wrong = (summary[f"programs.elements_{name}"] for name in ("compared", "wrong"))
    yield f"- Of {compared:,} outputs of the timed programs {wrong:,} differed from the reference."
    if "gpu_tests.passed" in summary:
        passed, failed, error, skipped, compared = (
            summary[f"gpu_tests.{name}"]
            for name in ("passed", "failed", "error", "skipped", "elements_compared")
        )
        yield (
            f"- GPU tests: {passed} passed, {failed + error} failed, {skipped} skipped; they "
            f"compared {compared:,} outputs bit for bit."
        )
    absent = {
        "GPU tests": "gpu_tests.passed",
        "the whole of ResNet-50": "resnet50.exact",
        "the time to the first result": "startup.cold_s",
        "the model's picks": "plans.model.held_out.geomean",
        "the seed": "layers.b128.geomean_speedup_vs_seed",
    }
    missing = [what for what, key in absent.items() if key not in summary]
    if missing:
        yield f"- Not measured here: {', '.join(missing)}."
