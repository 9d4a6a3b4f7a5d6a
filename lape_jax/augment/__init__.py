"""On-device augmentation: jitted, batch-wise, a pure function of images and key."""
