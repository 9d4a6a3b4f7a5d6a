"""The picture of a report in the README: the curves of a run beside the sheet of its training images.

    python -m lape_jax.main --config=configs/digits.py --workdir=runs/digits
    python benchmarks/report_picture.py --workdir=runs/digits --out=benchmarks/figures/report.png

The first command trains for about a minute on two CPU cores; the second puts two of the figures in its report together.
"""

import argparse
from pathlib import Path

from PIL import Image

HEIGHT, GAP = 480, 24  # pixels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    parts = []
    for name in ("curves", "images"):
        with Image.open(args.workdir / "figures" / f"{name}.png") as image:
            width = round(image.width * HEIGHT / image.height)
            parts.append(image.convert("RGB").resize((width, HEIGHT), Image.Resampling.LANCZOS))
    picture = Image.new("RGB", (sum(part.width for part in parts) + GAP, HEIGHT), "white")
    picture.paste(parts[0], (0, 0))
    picture.paste(parts[1], (parts[0].width + GAP, 0))
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
