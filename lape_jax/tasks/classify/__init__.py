"""Image classification: a class for each image.

task.py      what ties the room together
recipes.py   the published recipes
inputs.py    batches to train on and to evaluate, a resident set
loss.py      soft-target cross entropy; exact top-1 and top-5
distill.py   hard distillation
evaluate.py  every example once, on any number of devices
predict.py   images of a user's own
sheet.py     training images to look at
"""
