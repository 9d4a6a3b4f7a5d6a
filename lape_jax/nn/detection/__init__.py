"""What detectors are made of: boxes, anchors, suppression, features of regions, and the heads that look at them."""
