"""What is task-specific about training: loss, metrics, evaluation."""

SCORES = {"val/top1": "top-1", "val/miou": "mIoU"}  # of each task the metric, in percent, that runs are compared by
