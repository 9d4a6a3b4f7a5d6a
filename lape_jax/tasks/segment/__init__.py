"""Semantic segmentation: a class for each pixel.

task.py        what ties the room together
recipes.py     the published recipes
scene.py       what a data set gives: an image and its map
sources.py     scenes by index: `digits`, `ade20k`, `folder`, `tfds`
records.py     ... those that TFDS prepared as array_record
digits.py      ... those that need no files
prepare.py     files turned into such records, once
masks.py       the files of a scene -> pixels and labels
values.py      what values in the files of maps seem to mean
survey.py      what a set of scenes holds
check.py       ... on disk, for `python -m lape_jax.prepare check`
transforms.py  sizes, crops, mirror images and colours
inputs.py      what of it a config asks for
pipeline.py    batches of training scenes, and whole scenes for the evaluation, read ahead
groups.py      what decays
loss.py        cross entropy of pixels, and mIoU from a matrix of confusions
limits.py      how narrow an image may be
sliding.py     windows over an image, and how their logits become those of its pixels
tiles.py       logits of windows become classes of pixels, tile by tile
evaluate.py    whole images of any size
predict.py     maps of a user's own images
overlays.py    maps over images, beside each other, legends
show.py        training crops, comparisons
"""
