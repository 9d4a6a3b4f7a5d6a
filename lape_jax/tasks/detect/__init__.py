"""Detection: boxes, classes and masks of the objects in images, with Mask R-CNN."""
