"""Compiles the train step of every config for TPU v5e slices, without a TPU, and says what it needs there.

    pip install -r requirements.txt -e ".[tpu]"
    python benchmarks/tpu_compile.py [--only=REGEX] [--again] [--out=benchmarks/tpu_compile.md] [--results=FILE]

The step is the real one: the config's augmentation, model, loss, optimiser and sharding, on a mesh over the slice's
chips; libtpu compiles it for them, and its memory is the compiler's final plan. Every case (a config on a slice, a
remat policy) has a process of its own and one line in --results (JSON); cases that are there are not repeated unless
--again. REGEX is searched for in lines such as "configs/deit_ti.py v5e:2x4 1024 attention". One case takes minutes of
one core and up to 4 GB.
"""

import json
import time
from pathlib import Path
from typing import NamedTuple

import cases
from cases import GIB, ROOT

BATCHES = {"v5e:1x1": 256, "v5e:2x4": 1024, "v5e:16x16": 4096}  # over all chips of the slice
SCENES = {  # for configs that segment or detect
    "segmenter_": (("v5e:1x1", 8), ("v5e:2x4", 8), ("v5e:2x4", 64)),
    "upernet_": (("v5e:1x1", 2), ("v5e:2x4", 16)),
    "mask_rcnn_": (("v5e:2x4", 16),),
}
CHIPS = {"v5e:1x1": 1, "v5e:2x4": 8, "v5e:16x16": 256}
FAMILIES = (
    "deit_",
    "vit_lite_",
    "cvt_",
    "cct_",
    "t2t_",
    "swin_",
    "ceit_",
    *SCENES,
)  # configs whose names begin so
POLICIES = ("none", "dots", "dots_without_batch", "attention", "full")
POLICY_CASES = (("deit_ti", 256), ("deit_s", 128), ("deit_b", 128))  # on one chip
HBM, FLOPS, BANDWIDTH, CLOCK = 15.75, 197e12, 819e9, 1.5e9  # of one v5e chip
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


class Case(NamedTuple):
    config: str
    slice: str
    batch: int
    remat: str  # "" = the config's own

    def __str__(self) -> str:
        return f"{self.config} {self.slice} {self.batch} {self.remat or 'own'}"


def main():
    args = cases.options(__file__, __doc__).parse_args()
    if args.case:
        print(json.dumps(measure(Case(*json.loads(args.case)))))
        return
    configs = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "configs").glob("*.py")) if p.name.startswith(FAMILIES)]
    slices = [
        Case(config, name, batch, "")
        for config in configs
        for name, batch in next((SCENES[f] for f in SCENES if Path(config).name.startswith(f)), BATCHES.items())
    ]
    policies = [Case(f"configs/{m}.py", "v5e:1x1", b, p) for m, b in POLICY_CASES for p in POLICIES]
    known = cases.fill(args, slices + policies, __file__, ENVIRONMENT, lambda row: f"{row['hbm'] / GIB:.2f} GiB")
    text = report([known.get(c) for c in slices], [known.get(c) for c in policies])
    Path(args.out).write_text(text)
    print(text)


def measure(case: Case) -> dict:
    """Compiles one case, in this process."""
    import hlo
    import jax
    import real_step
    from jax.experimental import topologies

    from lape_jax.parallel import sharding

    def load(remat):
        return real_step.load(case.config, case.batch, [("model.remat", remat)] if remat else [])

    config = load(case.remat)
    alone = {"chips_per_host_bounds": (1, 1, 1)} if CHIPS[case.slice] == 1 else {}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=case.slice, **alone)
    mesh = sharding.make_mesh(config.mesh, topology.devices)
    step = real_step.build(config, mesh)
    flops = real_step.matrix_flops(step)
    least = real_step.matrix_flops(real_step.build(load("none"), mesh))
    begin = time.perf_counter()
    compiled = real_step.compile_step(step)
    program, used = hlo.analyse(compiled.as_text()), compiled.memory_analysis()
    return {
        "jax": jax.__version__,
        "seconds": time.perf_counter() - begin,
        "remat": step.model.remat,
        "hbm": real_step.used_bytes(compiled),
        "arguments": used.argument_size_in_bytes,
        "temporaries": used.temp_size_in_bytes,
        "flops": flops / mesh.size,
        "least_flops": least / mesh.size,
        **program._asdict(),
    }


def report(slices: list[dict | None], policies: list[dict | None]) -> str:
    """Both tables, as Markdown."""
    return f"""# Train steps compiled for TPU v5e

Written by `python benchmarks/tpu_compile.py`, ahead of time with libtpu; nothing ran on a TPU. A chip has 16 GB, of
which {HBM} GiB are left to programs. Per chip and step:

- HBM: arguments, results and temporaries in the compiler's final plan; in brackets the arguments, that is state and
  batch. "asks for": the compiler refused.
- TFLOP: of all matrix products in loss and gradient (a multiply-add is two); in brackets how much of it remat adds.
- traffic: what the compiled program reads from and writes to HBM, padding to tiles included.
- collectives: kind x times executed, and the bytes of their results.
- estimates, not measurements: TFLOP / {FLOPS / 1e12:.0f} TFLOP/s; traffic / {BANDWIDTH / 1e9:.0f} GB/s; the compiler's
  own counts of cycles at {CLOCK / 1e9} GHz, added up as if nothing overlapped and transfers were free. A step takes at
  least as long as the largest of the first two.

## Every config

{_table(slices)}

## Remat policies

On one chip (`v5e:1x1`), with `config.model.remat` as given.

{_table(policies)}
"""


COLUMNS = (
    "config",
    "slice",
    "batch (per chip)",
    "remat",
    "HBM, GiB (arguments)",
    "TFLOP (by remat)",
    "traffic, GB",
    "collectives",
    "ms by TFLOP / traffic / cycles",
    "compiled in, s",
)


def _table(rows: list[dict | None]) -> str:
    lines = []
    for row in filter(None, rows):
        case = Case(*row["case"])
        chips = CHIPS[case.slice]
        start = (
            Path(case.config).stem,
            case.slice,
            f"{case.batch} ({case.batch // chips})",
            row.get("remat", case.remat),
        )
        lines.append((*start, *_cells(row)))
    return cases.table(COLUMNS, lines)


def _cells(row: dict) -> tuple[str, ...]:
    if "error" in row:
        return (row["error"], *("",) * 5)
    kinds = ", ".join(f"{kind} x {times:.0f}" for kind, times in row["collectives"].items())
    moved = f"{kinds} ({row['collective_bytes'] / 1e6:.0f} MB)" if kinds else "none"
    added = 100 * (row["flops"] / row["least_flops"] - 1)
    seconds = (row["flops"] / FLOPS, row["hbm_bytes"] / BANDWIDTH, row["cycles"] / CLOCK)
    return (
        f"{row['hbm'] / GIB:.2f} ({row['arguments'] / GIB:.2f})",
        f"{row['flops'] / 1e12:.3f} ({added:.1f} %)",
        f"{row['hbm_bytes'] / 1e9:.1f}",
        moved,
        " / ".join(f"{1e3 * s:.1f}" for s in seconds),
        f"{row['seconds']:.0f}",
    )


if __name__ == "__main__":
    main()
