"""Two images learned by heart by a tiny Mask R-CNN: box AP should pass 90, mask AP 80.

    pip install -r requirements.txt -e ".[all]"
    python benchmarks/overfit.py [--steps=300] [--workdir=DIR]

The images are the first two of the built-in digits, written as PNG with a JSON in COCO's format: so files, boxes, masks
as RLE, training and evaluation are all in it. Ends with exit code 1 if the detector has not learned them.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from lape_jax import cli
from lape_jax.tasks.detect.digits import DigitPhotos
from lape_jax.train.loop import train_and_evaluate

CONFIG = Path(__file__).parents[1] / "configs" / "mask_rcnn_vit_adapter_ti_coco.py"
LEAST = {"val/box_ap": 90, "val/mask_ap": 80}
SETTINGS = {
    "batch_size": 2,
    "warmup_steps": 20,
    "log_percent": 10,
    "eval_percent": 100,
    "checkpoint_percent": 100,
    "optimizer.lr": 2e-3,
    "augment.flip": False,
    "detect.short": (96,),
    "report": False,
    "model.width": 32,
    "model.channels": 32,
    "model.hidden": 64,
    "model.detections": 20,
    "model.drop_path": 0.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workdir", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        write_photos(Path(directory), 2)
        settings = SETTINGS | {"total_steps": args.steps, "data.source": "json", "data.path": directory}
        config = cli.load_config(f"{CONFIG}:debug", "", [(key, str(value)) for key, value in settings.items()])
        results = train_and_evaluate(config, args.workdir or Path(directory) / "run")
    print(", ".join(f"{name.removeprefix('val/')} {results[name]:.1f} (to be above {LEAST[name]})" for name in LEAST))
    sys.exit(int(any(results[name] <= least for name, least in LEAST.items())))


def write_photos(root: Path, count: int) -> None:
    """The first so many images as files, in COCO's format, to learn from and to be judged by."""
    photos = DigitPhotos("train")
    images, annotations = [], []
    for number in range(count):
        photo = photos[number]
        objects = photo.objects
        Image.fromarray(photo.image()).save(root / f"{number}.png")
        size = {"height": objects.height, "width": objects.width}
        images.append({"id": number, "file_name": f"{number}.png", **size})
        for box, label, mask in zip(objects.boxes, objects.labels, objects.masks, strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": int(label), "iscrowd": 0}
            annotation |= {"bbox": box.tolist(), "area": int(mask.sum())}
            annotation["segmentation"] = {"size": list(size.values()), "counts": run_lengths(mask)}
            annotations.append(annotation)
    categories = [{"id": label, "name": name} for label, name in enumerate(DigitPhotos.classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(content))


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: column by column, how many zeros, how many ones, and so on."""
    runs = np.diff(np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=2, append=2)))
    return [0] * int(mask[0, 0]) + runs.tolist()


if __name__ == "__main__":
    main()
