"""What is task-specific about training: loss, metrics, evaluation."""
