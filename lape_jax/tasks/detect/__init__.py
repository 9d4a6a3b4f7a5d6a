"""Detection: boxes, classes and masks of the objects in images, with Mask R-CNN.

task.py        what ties the room together
recipes.py     the published recipe
photo.py       what a data set gives: an image and the objects in it
coco.py        files of annotations in COCO's format, and what can be wrong with them
instances.py   ... and with a single annotation
sources.py     photos by index: `digits`, `coco`, `json`, `tfds`
records.py     ... the last of these
layouts.py     data sets on disk that no config knows
prepare.py     what TFDS sets are made of
check.py       what is said of a data set before
digits.py      ... those that need no files
bitmaps.py     masks as they are stored -> bitmaps, and RLE
survey.py      what a set of photos holds
transforms.py  mirror images, sizes, crops
pipeline.py    batches of training photos, and whole photos for the evaluation, read ahead
inputs.py      what happens on the device
masks.py       masks of objects as they travel, and targets of them
assign.py      which object an anchor or a region is to find
sample.py      which of these are learned from
targets.py     what is to be answered for them
loss.py        the five losses
canvas.py      images of many sizes on few canvases
evaluate.py    whole images of any size
paste.py       masks of boxes as masks of images
scores.py      average precision, by pycocotools
predict.py     objects in a user's own images
overlays.py    objects drawn over images, curves
show.py        training images, comparisons, scores of classes
"""
