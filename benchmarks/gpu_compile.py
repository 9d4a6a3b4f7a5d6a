"""Compiles the train step of every config for one NVIDIA H200, without a GPU, and says what it reads and writes there.

    pip install -e ".[cuda13]"
    python benchmarks/gpu_compile.py [--only=REGEX] [--again] [--kernels=N] [--out=FILE.md] [--results=FILE.jsonl]

The step is the real one: the config's augmentation, model, loss and optimiser. Inference is what `evaluate` computes.
Every case has a process of its own and one line in --results (JSON), written when it is there; cases that are there are
not repeated unless --again. REGEX is searched for in lines such as "configs/deit_ti.py 512 train model.join=default".
--kernels=N prints for each case that is compiled the N kernels that move most. A case takes from half a minute to
several of one core, and up to 6 GB.

XLA tunes nothing without the card (`--xla_gpu_autotune_level=0`), so the sizes of tiles are its defaults: what kernels
there are and what they move is the card's program, how fast they are is not known.
"""

import itertools
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cases
from cases import GIB, ROOT

# Of one card: dense bfloat16 products, and memory; and the memory of an H100 SXM, which runs the same programs.
FLOPS, BANDWIDTH, H100 = 989e12, 4.8e12, 3.35e12
BATCHES = {  # of one card, by what a config's name begins with
    **dict.fromkeys(("deit_", "t2t_", "ceit_", "swin_"), 512),
    **dict.fromkeys(("vit_lite_", "cvt_", "cct_"), 128),
    "segmenter_": 8,
    "upernet_": 2,
    "mask_rcnn_": 2,
}
COMPARED = ("deit_ti", "deit_s", "deit_b", "vit_lite_cifar10", "segmenter_ti_mask_ade20k")
JOINS = ("default", "lape", "folded")
KEEPING = "model.remat=none"  # what "auto" finds on a card that says how much memory it has
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_gpu_autotune_level=0"}
KEPT = 12  # kernels that a row names


class Case(NamedTuple):
    config: str
    batch: int
    program: str  # "train" or "inference"
    settings: str  # "key=value,..." of config that are others than the file's; for inference model.join alone

    def __str__(self) -> str:
        return f"{self.config} {self.batch} {self.program} {self.settings or 'own'}"


def main():
    parser = cases.options(__file__, __doc__)
    parser.add_argument("--kernels", type=int, default=0)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(Case(*json.loads(args.case)))))
        return

    def say(row):
        lines = [f"{name:7.2f} GB {what}" for name, what in row["kernels"][: args.kernels]]
        return "\n  ".join((f"{row['hbm_bytes'] / 1e9:.2f} GB, {row['temporaries'] / GIB:.2f} GiB", *lines))

    steps, compared = every_config(), comparisons()
    known = cases.fill(args, dict.fromkeys([*steps, *itertools.chain(*compared)]), __file__, ENVIRONMENT, say)
    text = report([known.get(c) for c in steps], [[known.get(c) for c in group] for group in compared])
    Path(args.out).write_text(text)
    print(text, file=sys.stderr)


def every_config() -> list[Case]:
    """The train steps of the published recipes; those that take longest to compile are last."""
    return [
        Case(f"configs/{path.name}", batch, "train", KEEPING)
        for family, batch in BATCHES.items()
        for path in sorted((ROOT / "configs").glob(f"{family}*.py"))
    ]


def comparisons() -> list[list[Case]]:
    """Groups of programs that differ in the joining alone, the default's first."""
    groups = []
    for name in COMPARED:
        file, batch = f"configs/{name}.py", next(BATCHES[f] for f in BATCHES if name.startswith(f))
        groups.append(
            [Case(file, batch, "train", f"{KEEPING},model.join=default"), Case(file, batch, "train", KEEPING)]
        )
        groups.append([Case(file, batch, "inference", f"model.join={join}") for join in JOINS])
    return groups


def measure(case: Case) -> dict:
    """Compiles one case, in this process."""
    import hlo
    import jax
    import real_step
    from jax.experimental import topologies

    from lape_jax.parallel import sharding

    target = (ROOT / "benchmarks" / "h200.txt").read_text()
    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=target)
    settings = [tuple(setting.split("=")) for setting in filter(None, case.settings.split(","))]
    begin = time.perf_counter()
    if case.program == "train":
        config = real_step.load(case.config, case.batch, settings)
        step = real_step.build(config, sharding.make_mesh(config.mesh, topology.devices))
        model, flops = step.model, real_step.matrix_flops(step)
        compiled = real_step.compile_step(step)
    else:
        model, flops, compiled = real_step.inference(
            case.config, case.batch, dict(settings)["model.join"], topology.devices
        )
    text, used = compiled.as_text(), compiled.memory_analysis()
    moved = Counter()
    for kernel in hlo.kernels(text):
        moved[f"{kernel.part}: {short(kernel.operation) or kernel.name}"] += kernel.times * kernel.bytes
    return {
        "jax": jax.__version__,
        "seconds": time.perf_counter() - begin,
        **{knob: str(getattr(model, knob)) for knob in ("attention", "remat", "unroll")},
        "arguments": used.argument_size_in_bytes,
        "temporaries": used.temp_size_in_bytes,
        "flops": flops,
        **hlo.analyse(text)._asdict(),
        "kernels": [(count / 1e9, name) for name, count in moved.most_common(KEPT)],
    }


def short(operation: str) -> str:
    """JAX's name of an operation without the calls around it.

    >>> short("jit(update)/transpose(jvp(ViT))/blocks/while/body/checkpoint/attn/qkv/dot_general")
    'backward blocks/attn/qkv/dot_general'
    """
    kept = [
        name for name in operation.split("/") if not re.fullmatch(r".*\(.*\)|while|body|closed_call|checkpoint", name)
    ]
    return "backward " * ("transpose(" in operation) + "/".join(kept[-4:])


def report(steps: list[dict | None], compared: list[list[dict | None]]) -> str:
    """All tables, as Markdown."""
    return f"""# Train steps compiled for one H200

Written by `python benchmarks/gpu_compile.py`. XLA has compiled every program ahead of time for one NVIDIA H200, without
tuning; **nothing ran on a GPU**: all numbers are properties of programs, and all times are estimates. Training has all
augmentation, and bfloat16 where the config says so; inference begins with uint8 images.

- temporaries, arguments: the compiler's plan of the card's memory; arguments are state and batch.
- TFLOP: of all matrix products in loss and gradient (a multiply-add is two), remat's among them.
- traffic: what kernels read from and write to memory, slices and updates in place by what they touch. Caches are not
  modelled: what a kernel finds in the 50 MB of L2 it need not read from memory.
- A loop whose number of turns is only known when it runs counts once: augmentation has one for each layer of
  RandAugment, of which a turn serves a quarter of the batch; a sixth is what needs it on average.
- parts: in % of the traffic, by the names that modules and scopes give to operations. A kernel that does the work of
  several parts counts to that of its result; "scan" are copies between a layer and what is stacked over layers.
- at least, ms: TFLOP / {FLOPS / 1e12:.0f} TFLOP/s, and traffic / {BANDWIDTH / 1e12:.1f} TB/s (on an H100 SXM
  {BANDWIDTH / H100:.2f} times as long).

## Every published config

{cases.table(COLUMNS, [cells(row) for row in filter(None, steps)])}

## Joinings compared

x: by the default joining's program.

{cases.table(COMPARED_COLUMNS, [line for group in compared for line in ratios(group)])}

## What moves most

{kernels_left([row for row in filter(None, steps) if Path(row["case"][0]).stem in COMPARED])}
"""


COLUMNS = (
    "config",
    "batch",
    "attention, remat, unroll",
    "temporaries (arguments), GiB",
    "TFLOP",
    "traffic, GB",
    "attention / MLP / norms / scan / augmentation / other, %",
    "at least, ms: TFLOP / traffic",
    "compiled in, s",
)
COMPARED_COLUMNS = ("config", "program", "join", "temporaries, GiB", "TFLOP", "traffic, GB", "traffic, x")


def cells(row: dict) -> tuple[str, ...]:
    case = Case(*row["case"])
    start = (Path(case.config).stem, str(case.batch))
    if "error" in row:
        return (*start, row["error"], *("",) * (len(COLUMNS) - 3))
    parts = [row["parts"][part] for part in ("attention", "MLP", "norms", "scan", "augmentation", "other")]
    return (
        *start,
        f"{row['attention']}, {row['remat']}, {row['unroll']}",
        f"{row['temporaries'] / GIB:.2f} ({row['arguments'] / GIB:.2f})",
        f"{row['flops'] / 1e12:.3f}",
        f"{row['hbm_bytes'] / 1e9:.1f}",
        " / ".join(f"{100 * part / row['hbm_bytes']:.0f}" for part in parts),
        f"{1e3 * row['flops'] / FLOPS:.1f} / {1e3 * row['hbm_bytes'] / BANDWIDTH:.1f}",
        f"{row['seconds']:.0f}",
    )


def ratios(group: list[dict | None]) -> list[tuple[str, ...]]:
    """A line for each joining of a group; none if the default's program is not there."""
    default = group[0]
    lines = []
    for row in group if default and "error" not in default else ():
        if row and "error" not in row:
            case = Case(*row["case"])
            lines.append(
                (
                    f"{Path(case.config).stem} ({case.batch})",
                    case.program,
                    next(iter(re.findall(r"model\.join=(\w+)", case.settings)), "lape"),
                    f"{row['temporaries'] / GIB:.3f}",
                    f"{row['flops'] / 1e12:.4f}",
                    f"{row['hbm_bytes'] / 1e9:.2f}",
                    f"{row['hbm_bytes'] / default['hbm_bytes']:.4f}",
                )
            )
    return lines


def kernels_left(rows: list[dict]) -> str:
    """What moves most in each program, in GB a step."""
    return "\n".join(
        f"- {Path(row['case'][0]).stem}: " + "; ".join(f"{size:.2f} {name}" for size, name in row["kernels"])
        for row in rows
        if "error" not in row
    )


if __name__ == "__main__":
    main()
