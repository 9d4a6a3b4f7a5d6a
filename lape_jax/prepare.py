"""Looks over, downloads, shrinks and converts data sets, once, before training.

    python -m lape_jax.prepare check (--path=DIR | --source=arrays --path=DIR | --name=NAME --path=DATA_DIR) [--all]
    python -m lape_jax.prepare resize (--path=DIR | --name=NAME --path=DATA_DIR) --short=N --out=OUT
    python -m lape_jax.prepare pack (--path=DIR | --name=NAME --path=DATA_DIR) [--side=N] --out=OUT
    python -m lape_jax.prepare scenes --path=DIR --layout=ade20k|folder --out=OUT [--as=NAME] [--short=N]
    python -m lape_jax.prepare objects --path=DIR --out=OUT [--as=NAME] [--short=N]
    python -m lape_jax.prepare tfds NAME --path=DATA_DIR [--manual=DIR]
    python -m lape_jax.prepare cifar --path=OFFICIAL_FILES --out=OUT

check   says what is there and which images cannot be read, also of images/, masks/ and classes.txt (or ADE20K's files),
        and of annotations in COCO's format; exit code 2 if something cannot be used.
resize  writes a copy with the shorter side of every image reduced to N pixels, as OUT/NAME_N/1.0.0, a TFDS data set in
        array_record. The same command goes on with a copy that was interrupted. Images are turned as EXIF says, unless
        --orientation=stored, which is the default for TFDS data sets.
pack    writes whole images, decoded and reduced to fit N x N pixels (256), as the directory OUT for data.source=packed:
        a host then has nothing to do but to copy them. As with resize, the same command goes on with what was begun,
        and --orientation says which way images are turned.
scenes  writes images and maps of classes (ADEChallengeData2016, or images/, masks/ and classes.txt) as OUT/NAME/1.0.0,
        such a TFDS data set too, once it has looked at all of them; classes count from 0 and 255 is none. With --short
        images and maps of a longer shorter side are reduced to it, also those that an evaluation counts.
objects writes images and their boxes and masks (COCO, or SPLIT.json in its format) as OUT/NAME/1.0.0, such a TFDS data
        set too, once it has looked at all of them. With --short images of a longer shorter side are reduced to it.
tfds    downloads a TFDS data set into array_record, for which TFDS needs TensorFlow (pip install "lape_jax[prepare]");
        or converts one that is there as tfrecord, without.
cifar   turns the official files of CIFAR-10 or CIFAR-100 into train.npz and val.npz for data.source=arrays.

DIR holds a directory for each split and in it one for each class (--source=folder, the default without --name), or
SPLIT.npz (--source=arrays), or is what `pack` wrote. DATA_DIR is laid out as TFDS does it; --path= of it can be left
out where TFDS knows it.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lape_jax import cli
from lape_jax.config.options import whole
from lape_jax.data import canvas, exif, packed
from lape_jax.data.offline import check, cifar, pack, parts, splits
from lape_jax.tasks import TASKS
from lape_jax.tasks.task import Preparation

READING = ("check", "resize", "pack")  # commands on a data set of images with a class each
COMMANDS = ("check", "resize", "pack", "tfds", "cifar")


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    match args.command:
        case "check":
            task = next((task for task in TASKS.values() if task.recognises(args.set)), None)
            report = task.check_data if task else check.report
            report(args.set, args.splits, everything=args.all, threads=args.threads, say=say)
        case "resize":
            from lape_jax.data.offline import resize  # imports TFDS, as does `download`: half a second

            resize.copy(
                args.set, args.splits, args.out, args.new_name, short=args.short, quality=args.quality,
                orientation=args.orientation, how=how(args),
            )  # fmt: skip
        case "pack":
            pack.copy(args.set, args.splits, args.out, side=args.side, orientation=args.orientation, how=how(args))
        case "tfds":
            from lape_jax.data.offline import download

            download.prepare(args.name, args.path, args.manual, say)
            say(f"look it over: python -m lape_jax.prepare check --name={args.name} --path={shlex.quote(args.path)}")
        case "cifar":
            version, counts = cifar.convert(args.path, Path(args.out))
            say(f"{version}: {', '.join(f'{args.out}/{split}.npz: {n:,} images' for split, n in counts.items())}")
            say(f"look it over: python -m lape_jax.prepare check --source=arrays --path={shlex.quote(args.out)}")
        case name:
            of_tasks()[name].run(args, how(args))


def how(args: argparse.Namespace) -> parts.How:
    """How a copy is written; only those of images with a class each may do without some."""
    return parts.How(args.threads, getattr(args, "max_corrupt", 0), say)


def of_tasks() -> dict[str, Preparation]:
    """The commands that tasks bring, by name."""
    return {name: one for task in TASKS.values() for name, one in task.preparations.items()}


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m lape_jax.prepare", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: commands.add_parser(name) for name in (*COMMANDS, *of_tasks())}
    add = {name: one.add_argument for name, one in parsers.items()}
    place = {"type": os.path.expanduser, "default": "", "metavar": "DIR"}
    for option in add.values():
        option("--path", help="where the data set is", **place)
    for option in (add[name] for name in READING):
        option("--source", default="", help=f"kind of data set: {', '.join(splits.KINDS)}")
        option("--name", default="", help="of a TFDS data set: NAME[/CONFIG][:VERSION]")
        option("--train", default="train", help="the split that defines the classes (default %(default)s)")
    for option in (add[name] for name in (*READING, *of_tasks())):
        option("--splits", default="", metavar="A,B", help="only these")
        option("--threads", type=whole(1, 1024), default=os.cpu_count() or 1, metavar="N", help="default: one per core")
    for name in ("resize", *of_tasks()):
        required = name == "resize"
        shorter = "pixels of the shorter side, at most" + ("" if required else " (default: as it is)")
        add[name]("--short", type=whole(8, 8192), required=required, default=0, metavar="N", help=shorter)
        add[name]("--quality", type=whole(1, 95), default=90, metavar="N", help="of JPEG (default %(default)s)")
    for name in ("resize", "pack", *of_tasks()):
        default = "view; of TFDS stored" if name in READING else "view"
        help_ = f"by EXIF (default: {default})"
        add[name]("--orientation", default="", choices=exif.CHOICES, metavar="view|stored", help=help_)
    add["check"]("--all", action="store_true", help="read all images, not only some of each split")
    for option in (add["resize"], add["pack"]):
        option("--max-corrupt", type=whole(0), default=10, metavar="N", help="unreadable images left out at most")
    side = "pixels that an image fits into (default %(default)s)"
    add["pack"]("--side", type=whole(*pack.SIDES), default=canvas.SIDE, metavar="N", help=side)
    for name in ("resize", *of_tasks()):
        add[name]("--as", dest="new_name", default="", metavar="NAME", help="of the copy (default: its origin's, _N)")
    for name, one in of_tasks().items():
        one.options(parsers[name])
    add["tfds"]("name", metavar="NAME", help="NAME[/CONFIG][:VERSION]")
    add["tfds"]("--manual", help="where files are that must be downloaded by hand", **place)
    for name in ("resize", "pack", "cifar", *of_tasks()):
        add[name]("--out", required=True, help="where the result goes", **place)
    args = parser.parse_args(argv)
    if args.command in READING:
        if args.name:
            found = "tfds"
        elif packed.is_pack(args.path):
            found = "packed"
        else:
            found = "folder"
        args.set = splits.DataSet(args.source or found, args.path, args.name, args.train)
    if "orientation" in args:
        stored = args.command in READING and args.set.kind == "tfds"
        args.orientation = args.orientation or ("stored" if stored else "view")
    return args


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
