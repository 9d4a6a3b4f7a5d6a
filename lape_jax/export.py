"""Exports a trained model for use elsewhere, ready for inference.

    python -m lape_jax.export --workdir=DIR --out=FILE [--format=stablehlo|safetensors|npz] [--step=N|last|best]
                                [--fold=true] [--ema=true]
    python -m lape_jax.export --weights=FILE --config=FILE.py --out=FILE ...

stablehlo    one function, images -> logits, with its weights inside: images of any number, as uint8 (b, height, width,
             channels); logits (b, classes), or of a model that segments (b, height, width, classes), for windows of
             one size; or of one that detects, a dict of boxes, scores, labels, masks and valid, for canvases of
             training's size. Runs wherever JAX does, without lape_jax:
             `jax.export.deserialize(open(FILE, "rb").read()).call(images)`
safetensors, npz   the weights under the names of PyTorch; safetensors with the metadata model, join, pe, image_size,
             mean, std, num_classes, classes and settings (all attributes of the model)

--fold=true turns LaPE into constants first: the same logits with less work (stablehlo only, as PyTorch has no names
for it). --ema=true takes the EMA of the weights. What was written is read again and compared. Of a
workdir the best checkpoint is exported, or the newest if none was evaluated.
"""

import argparse
import os
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lape_jax import atomic, cli, port, tasks
from lape_jax.augment.photometric import normalise
from lape_jax.config.options import truth
from lape_jax.errors import UserError, nearest
from lape_jax.parallel import fit
from lape_jax.train import trained

FORMATS = {"stablehlo": (".stablehlo",), "safetensors": (".safetensors",), "npz": (".npz",)}
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-5  # of answers, relative to the largest: XLA may order sums in another way in a program of its own


def main(config: ConfigDict, args: argparse.Namespace) -> None:
    path = Path(args.out)
    form = args.format or path.suffix.removeprefix(".")
    if form not in FORMATS:
        raise UserError(f"--format={nearest(form, FORMATS)}")
    if not path.name.endswith(FORMATS[form]):
        raise UserError(f"--out={args.out} should end in {FORMATS[form][0]}, as --format={form} says")
    if args.fold and form != "stablehlo":
        raise UserError("--fold=true needs --format=stablehlo: PyTorch has no names for a folded model")
    found = trained.load(config, args)
    print(found.origin, flush=True)
    model, variables = found.model, jax.device_get(found.variables)
    if args.fold:
        size = image_shape(config, model)[:2]
        model, variables = port.fold(variables, model, None if size == model.input_shape[:2] else size)
    if form == "stablehlo":
        export_program(path, model, variables, config)
    else:
        export_weights(path, model, variables, found.texts())
    size = path.stat().st_size / 1e6
    kind = f"{type(model).__name__}{f' with join {model.joining}' if hasattr(model, 'joining') else ''}"
    print(f"{path}: {size:.1f} MB, {kind}, read again and compared")


def image_shape(config: ConfigDict, model: nn.Module) -> tuple[int, ...]:
    """Height, width and channels of the images that the program is for: those of training."""
    return tasks.of(config).shapes(config, model.input_shape)["image"].shape


def export_program(path: Path, model: nn.Module, variables: dict, config: ConfigDict) -> None:
    """Writes what `model` answers as StableHLO with a batch of any size, and compares what it gives with the model."""
    variables = jax.tree.map(jnp.asarray, variables)
    model = fit.portable(model)

    def answer(images):
        return model.apply(variables, normalise(images, config.data.mean, config.data.std), train=False)[0]

    (size,), shape = jax.export.symbolic_shape("b"), image_shape(config, model)
    images = jax.ShapeDtypeStruct((size, *shape), jnp.uint8)
    program = jax.export.export(jax.jit(answer), platforms=PLATFORMS)(images)
    atomic.write(path, bytes(program.serialize()))
    again = jax.export.deserialize(bytearray(path.read_bytes()))
    for count in (1, 3):
        images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
        answers = jax.device_get((jax.jit(answer)(images), again.call(images)))
        for expected, found in zip(*map(jax.tree.leaves, answers), strict=True):
            error, largest = np.abs(found - 1.0 * expected).max(), np.abs(1.0 * expected).max()
            if not error <= TOLERANCE * largest:  # so that NaN is refused
                raise RuntimeError(
                    f"the program in {path} is off by {error:.1e}, and the largest of its numbers is {largest:.1e}"
                )


def export_weights(path: Path, model: nn.Module, variables: dict, texts: dict[str, str]) -> None:
    """Writes the weights under PyTorch's names, and compares what can be read again bit by bit."""
    port.save(path, variables, model, metadata=texts if path.suffix == ".safetensors" else None)
    again = port.load(path, model)
    same = jax.tree.map(lambda one, other: np.asarray(one).tobytes() == other.tobytes(), variables, again)
    if not all(jax.tree.leaves(same)):
        raise RuntimeError(f"the weights in {path} are not those that were written")


def options(parser: argparse.ArgumentParser) -> None:
    trained.add_options(parser, ema=True)
    parser.add_argument("--format", default="", help=f"{' | '.join(FORMATS)}; without it, what --out ends in")
    parser.add_argument("--out", default="", metavar="FILE", type=os.path.expanduser, help="file to write")
    parser.add_argument("--fold", type=truth, default=False, help="true: turn LaPE into constants")


if __name__ == "__main__":
    sys.exit(cli.run(main, description=__doc__, required=("out",), options=options))
