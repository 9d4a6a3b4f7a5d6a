"""Training speed on this machine's accelerator: images a second and MFU, beside timm's DeiT under torch.compile.

    python benchmarks/throughput.py [--only=REGEX] [--seconds=2] [--repeats=5] [--minutes=N] [--out=FILE.jsonl]
    python benchmarks/throughput.py --cpu-smoke        # does it run at all? tiny models, no numbers worth reading

Ours is the real train step of configs/deit_{ti,s,b}.py and configs/vit_lite_cifar10.py in bfloat16, with optimiser and
gradient norm; each line says what feeds it:

    synthetic   the same uint8 batch each time, augmented on the device by the config's recipe
    resident    a data set of random pixels on the device, cropped and augmented there, many steps per dispatch
    bare        the same uint8 batch, only normalised: what is to be compared with timm's, whose batch is normalised

timm's is its model of that name with AdamW (fused), soft-target cross entropy and the same stochastic depth, under
bfloat16 autocast and torch.compile; it needs `pip install torch timm` and a CUDA device. Every case has a process of
its own, so that it finds the whole memory free; its batch is halved until it fits. A number is the median of --repeats
turns of at least --seconds, without compilation. Goals, for one H100: 1.2 times timm's images a second; MFU of 25, 40
and 50 % for DeiT-Ti, S and B; 60,000 images a second for ViT-Lite-7/4 on CIFAR. Lines of JSON go to --out
(runs/throughput.jsonl) as they come; the table is printed last. All cases together take the better part of an hour,
most of it compilation; those that the goals need come first, and --minutes ends the run, with its table, in time. REGEX
is searched for in lines such as "deit_ti lape bare cudnn none bfloat16".
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
MFU_GOALS = {"deit_ti": 0.25, "deit_s": 0.40, "deit_b": 0.50}
TIMM_GOAL, CIFAR_GOAL = 1.2, 60_000
TIMM = {
    "deit_ti": "deit_tiny_patch16_224",
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
}
CIFAR = "vit_lite_7_4"
BATCHES = {"deit_ti": 1024, "deit_s": 512, "deit_b": 256, CIFAR: 128}
DATA_SET = {"deit": 4096, "vit": 50_000}  # images of a resident data set
BARE = (("policy", "none"), ("flip", False), ("erase_prob", 0.0), ("mixup", 0.0), ("cutmix", 0.0))
WAYS = (("xla", "none"), ("xla", "attention"), ("cudnn", "none"))  # attention and remat of the bare steps
COMPILE_MODES = ("default", "reduce-overhead")  # of torch.compile
DISPATCH = 8  # steps of a DeiT that one dispatch makes on resident data: a second or two
OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|OutOfMemoryError|CUDNN_STATUS_ALLOC_FAILED")


class Case(NamedTuple):
    model: str
    join: str  # a joining method, or "timm"
    feed: str
    attention: str = "xla"
    remat: str = "none"  # of timm: the mode of torch.compile
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return " ".join(self)


def cases() -> list[Case]:
    """All, those first without which nothing can be said of a goal."""
    found = [Case(CIFAR, "lape", "resident"), Case(CIFAR, "default", "resident")]
    for model in MFU_GOALS:
        found += [Case(model, "lape", "bare", "cudnn"), Case(model, "timm", "bare", "sdpa", COMPILE_MODES[0])]
    for model in MFU_GOALS:
        found += [Case(model, "timm", "bare", "sdpa", mode) for mode in COMPILE_MODES]
        found += [Case(model, "lape", "bare", attention, remat) for attention, remat in WAYS]
        fed = [(join, feed) for feed in ("synthetic", "resident") for join in ("default", "lape")]
        found += [Case(model, join, feed, remat="attention") for join, feed in fed]
    found += [Case(CIFAR, join, "resident", dtype="float32") for join in ("default", "lape")]
    return list(dict.fromkeys(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=0, help="on one device; 0 = 1024, 512, 256 and 128")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--out", default="runs/throughput.jsonl")
    parser.add_argument("--cpu-smoke", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        name, batch = json.loads(args.case)
        case = Case(*name)
        print(json.dumps((measure_timm if case.join == "timm" else measure)(case, batch, args)))
        return
    if args.cpu_smoke:
        args.seconds, args.repeats = 0.01, 2
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows, end = [], time.monotonic() + 60 * args.minutes
    for case in cases():
        if re.search(args.only, str(case)):
            rows.append({"case": case, **fitting(case, args, end)})
            with out.open("a") as file:
                file.write(json.dumps({"time": time.strftime("%Y-%m-%d %H:%M:%S"), **rows[-1]}) + "\n")
            said = rows[-1].get("error") or f"{rows[-1]['img_per_sec']:,.0f} img/s at batch {rows[-1]['batch']}"
            print(f"{case}: {said}", flush=True)
    print(f"\n{report(rows, 'these models have no size: no goals' if args.cpu_smoke else '')}")


def fitting(case: Case, args: argparse.Namespace, end: float) -> dict:
    """The result of `case` with the largest batch that fits, of those that halving finds; or {"error": why not}.

    At `end` of time.monotonic() there has to be an answer.
    """
    batch = 8 if args.cpu_smoke else args.batch or BATCHES[case.model]
    flags = [f"--seconds={args.seconds}", f"--repeats={args.repeats}"] + ["--cpu-smoke"] * args.cpu_smoke
    cpu = {"JAX_PLATFORMS": "cpu"} if args.cpu_smoke else {}
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", **os.environ, **cpu}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    while True:
        command = [sys.executable, __file__, *flags, f"--case={json.dumps([case, batch])}"]
        left = end - time.monotonic()
        timeout = None if math.isinf(left) else max(left, 0)
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"error": f"no result within --minutes={args.minutes:g}"}
        if done.returncode == 0:
            return {"batch": batch, **json.loads(done.stdout.splitlines()[-1])}
        if not OUT_OF_MEMORY.search(done.stderr) or batch <= 8:
            return {"error": reason(done)}
        batch //= 2


def reason(done: subprocess.CompletedProcess) -> str:
    """Why a process failed, in one line: its last error, or else the last line that it wrote."""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return next((line for line in reversed(lines) if re.match(r"[\w.]+Error: ", line)), lines[-1])[:300]


# ---- One case, in a process of its own -------------------------------------------------------------------------------


def load(case: Case, batch: int, smoke: bool):
    """The config of a case; `smoke`: of a model of no size."""
    from lape_jax import cli
    from lape_jax.tasks import config as configs

    name = "vit_lite_cifar10" if case.model == CIFAR else case.model
    join = "lape" if case.join == "timm" else case.join
    config = configs.resolve(cli.read_config_file(f"{ROOT}/configs/{name}.py:batch={batch},join={join}"))
    config.dtype = case.dtype
    config.model.remat = case.remat
    if case.join != "timm":
        config.model.attention = case.attention
    if case.attention == "cudnn":
        config.model.attn_dropout = 0.0
    if case.feed == "bare":
        config.augment.update(dict(BARE))
    config.optimizer.min_lr = 0.0  # which small batches would have above their peak
    config.data.resident = case.feed == "resident"
    if case.model != CIFAR:
        config.steps_per_dispatch = DISPATCH
    if smoke:
        config.data.image_size = 32
        config.model.width, config.model.depth, config.model.heads, config.model.patch_size = 16, 2, 2, 8
        config.steps_per_dispatch = 2
    return config


def measure(case: Case, batch: int, args: argparse.Namespace) -> dict:
    """Times our train step on all devices; `batch` is that of one."""
    import jax
    import numpy as np
    import real_step

    from lape_jax.data import order
    from lape_jax.parallel import sharding
    from lape_jax.parallel.arrays import place
    from lape_jax.train import chrono, feed
    from lape_jax.train import state as states

    if jax.default_backend() == "cpu" and not args.cpu_smoke:
        sys.exit("no accelerator here: --cpu-smoke tries the benchmark out")
    batch *= jax.device_count()
    config = load(case, batch, args.cpu_smoke)
    mesh = sharding.make_mesh(config.mesh)
    step = real_step.build(config, mesh)
    state = states.create(step.init, step.state, seed=0)
    count = 2 * batch if args.cpu_smoke else max(batch, DATA_SET[case.model.partition("_")[0]])
    rng = np.random.default_rng(0)
    images = count if case.feed == "resident" else batch
    data = {
        "image": rng.integers(0, 256, (images, *step.model.input_shape), np.uint8),
        "label": rng.integers(0, step.model.num_classes, images).astype(np.int32),
        "mask": np.ones(images, np.float32),
    }
    shardings = jax.tree.map(lambda leaf: leaf.sharding, step.state)
    if case.feed == "resident":
        most = config.steps_per_dispatch
        resident = feed.Resident(
            step.update,
            data,
            shardings,
            mesh,
            indices=lambda step: order.batch_indices(0, step, batch, images),
            batch_size=batch,
            max_steps=most,
        )
        dispatches = 0

        def advance():
            nonlocal state, dispatches
            state = resident.run(state, dispatches * most, most)
            dispatches += 1
    else:
        most, rows = 1, sharding.batch_sharding(mesh, batch)
        data = {name: place(array, rows) for name, array in data.items()}
        compiled = real_step.compile_step(step)

        def advance():
            nonlocal state
            state = compiled(state, data)

    rates = timed(advance, lambda: jax.block_until_ready(state.step), batch * most, args)
    loss = float(state.sums["loss"] / state.sums["examples"])
    if not math.isfinite(loss):
        sys.exit(f"the loss is {loss}")
    flops = chrono.training_flops(step.model, step.state.variables)
    peak = chrono.peak_flops(jax.devices())
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    return {
        **rates,
        "flops_per_image": flops,
        "mfu": rates["img_per_sec"] * flops / peak,
        "peak": peak,
        "device": device,
    }


def timed(advance, wait, images: int, args: argparse.Namespace) -> dict:
    """Median, least and most images a second over the repeats; `advance` makes steps with so many `images`."""
    advance()
    wait()  # compiled
    begin = time.perf_counter()
    advance()
    wait()
    calls = max(1, math.ceil(args.seconds / (time.perf_counter() - begin)))
    rates = []
    for _ in range(args.repeats):
        begin = time.perf_counter()
        for _ in range(calls):
            advance()
        wait()
        rates.append(calls * images / (time.perf_counter() - begin))
    return {"img_per_sec": statistics.median(rates), "least": min(rates), "most": max(rates)}


def measure_timm(case: Case, batch: int, args: argparse.Namespace) -> dict:
    """Times timm's model of the same name on one CUDA device."""
    try:
        import timm
        import torch
    except ModuleNotFoundError as error:
        sys.exit(f"not compared with timm: {error.name} is not installed")
    if not torch.cuda.is_available() and not args.cpu_smoke:
        sys.exit("not compared with timm: torch sees no CUDA device")
    device = torch.device("cpu" if args.cpu_smoke else "cuda")
    tiny = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2} if args.cpu_smoke else {}
    torch.set_float32_matmul_precision("high")
    model = timm.create_model(TIMM[case.model], drop_path_rate=0.1, **tiny).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=not args.cpu_smoke)
    forward = torch.compile(model, **({"backend": "eager"} if args.cpu_smoke else {"mode": case.remat}))
    side = tiny.get("img_size", 224)
    images = torch.randn(batch, 3, side, side, device=device)
    targets = torch.softmax(torch.randn(batch, 1000, device=device), dim=1)

    def advance():
        with torch.autocast(device.type, torch.bfloat16):
            logits = forward(images)
        loss = -(targets * torch.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    rates = timed(advance, lambda: args.cpu_smoke or torch.cuda.synchronize(), batch, args)
    name = "cpu" if args.cpu_smoke else torch.cuda.get_device_name()
    return {**rates, "device": f"1 x {name}, torch {torch.__version__}, timm {timm.__version__}"}


# ---- What came out ---------------------------------------------------------------------------------------------------


def report(rows: list[dict], instead: str = "") -> str:
    """Every case as a Markdown table, and what there are goals for, or something said `instead` of it."""
    head = (
        "model",
        "join",
        "feed",
        "attention",
        "remat, or mode of torch.compile",
        "dtype",
        "batch",
        "img/s (range)",
        "MFU",
    )
    lines = [head, ("---",) * len(head)]
    measured = {Case(*row["case"]): row for row in rows if "error" not in row}
    for row in rows:
        case = Case(*row["case"])
        cells = (row["error"], "") if "error" in row else (_speed(row), _mfu(case, row, measured))
        lines.append((*case, str(row.get("batch", "")), *cells))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    devices = "\n".join(sorted({row["device"] for row in measured.values()}))
    return f"{devices}\n\n{table}\n\n{instead or goals(measured)}"


def goals(measured: dict[Case, dict]) -> str:
    """One line per ratio or number that there is a goal for."""
    lines = []
    for model, goal in {**MFU_GOALS, CIFAR: None}.items():
        ours = {case: row for case, row in measured.items() if case.model == model and case.join != "timm"}
        theirs = [row["img_per_sec"] for case, row in measured.items() if (case.model, case.join) == (model, "timm")]
        bare = [row["img_per_sec"] for case, row in ours.items() if case.feed == "bare"]
        if theirs and bare:
            lines.append(f"{model}: {max(bare) / max(theirs):.2f} x timm, the fastest of each (goal {TIMM_GOAL})")
        if goal and ours:
            mfu, case = max((row["mfu"], case) for case, row in ours.items())
            lines.append(f"{model}: MFU of {100 * mfu:.1f} % at best, {case} (goal {100 * goal:.0f})")
        if model == CIFAR and ours:
            best = max(row["img_per_sec"] for row in ours.values())
            lines.append(f"{model}: {best:,.0f} img/s (goal {CIFAR_GOAL:,} on an H100)")
        for case, row in ours.items():
            if case.join == "lape" and (default := ours.get(case._replace(join="default"))):
                ratio = row["img_per_sec"] / default["img_per_sec"]
                lines.append(f"{model}, {case.feed}, {case.dtype}: LaPE at {ratio:.3f} of the speed of default")
    return "\n".join(lines)


def _speed(row: dict) -> str:
    return f"{row['img_per_sec']:,.0f} ({row['least']:,.0f} to {row['most']:,.0f})"


def _mfu(case: Case, row: dict, measured: dict[Case, dict]) -> str:
    """Of timm's model with the FLOPs of ours, and the peak that ours was measured by."""
    ours = next((r for c, r in measured.items() if c.model == case.model and "mfu" in r), None)
    mfu = row.get("mfu") or (ours and row["img_per_sec"] * ours["flops_per_image"] / ours["peak"])
    return f"{100 * mfu:.1f} %" if mfu else ""


if __name__ == "__main__":
    main()
