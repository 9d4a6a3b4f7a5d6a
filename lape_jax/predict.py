"""Predicts what is on images of your own: their classes, the class of each pixel, or objects, as the run has learned.

    python -m lape_jax.predict IMAGE_OR_DIR ... --workdir=DIR --out=DIR [--step=N|last|best] [--ema=true]
    python -m lape_jax.predict IMAGE_OR_DIR ... --weights=FILE --config=FILE.py --out=DIR [--config.key=value ...]

Of a directory all images in and below it are taken, but hidden ones and those in --out. They are turned as EXIF says,
as a viewer shows them (--config.data.orientation=stored: as they are stored), and resized and cut as in evaluation.
Of a workdir the best checkpoint predicts, or the newest if none was evaluated. In --out, as they come:

classification
    predictions.csv     a line for each image: the five most probable classes, and their probabilities
    predictions.jsonl   the same as an object on each line
segmentation
    NAME.png            an indexed PNG of the image's size. A pixel's value is the number of its class, from 0, also of
                        ADE20K, whose own files count from 1
    NAME_overlay.png    the image under the colours of the classes. NAME is the image's without its suffix, or with it
                        where there are several of it, such as a.jpg and a.png
    legend.png          these colours, of all classes that were found
    classes.txt         the names of the classes, the first being that of number 0

detection
    NAME_overlay.png    the image under the objects that were found with a score of at least detect.shown
    detections.json     all that was found, in COCO's format of data sets, with scores

An image that cannot be read is named and left out; the others are done, and the exit code is 2.
"""

import argparse
import os
import sys
from pathlib import Path

from ml_collections import ConfigDict

from lape_jax import cli, tasks
from lape_jax.errors import UserError
from lape_jax.port.files import write_all
from lape_jax.tasks.images import find
from lape_jax.train import trained


def main(config: ConfigDict, args: argparse.Namespace) -> None:
    out = Path(args.out)
    images = find(args.files, out)
    task = tasks.of(config)
    task.check_places(images, out)
    found = trained.load(config, args)
    print(found.origin, flush=True)
    write_all(out, {})
    done = task.predict(found.candidate(), images, out)
    print(f"{out}: {done} of {len(images)} images")
    if done < len(images):
        raise UserError(f"{len(images) - done} of {len(images)} images cannot be read: see the warnings")


def options(parser: argparse.ArgumentParser) -> None:
    trained.add_options(parser, ema=True)
    parser.add_argument("--out", default="", metavar="DIR", type=os.path.expanduser, help="directory to write to")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", type=os.path.expanduser, help="images, and directories of images"
    )


if __name__ == "__main__":
    assumed = {"data.orientation": "view"}
    sys.exit(cli.run(main, description=__doc__, required=("out",), options=options, assumed=assumed))
