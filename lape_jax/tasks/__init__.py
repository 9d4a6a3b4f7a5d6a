"""What can be learned: one room for each task, and what they share.

task.py      what a task answers
config.py    the whole config: keys of all tasks, and whether a run could start from them
images.py    images that a user names
classes.py   colours and scores of classes
classify/    a class for each image
segment/     a class for each pixel
detect/      boxes, classes and masks of objects

Nothing outside knows a task by name: it looks it up here, and asks it.
"""

from ml_collections import ConfigDict

from lape_jax.tasks.classify.task import Classify
from lape_jax.tasks.detect.task import Detect
from lape_jax.tasks.segment.task import Segment
from lape_jax.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Classify(), Segment(), Detect())}


def of(config: ConfigDict) -> Task:
    """The task of a run."""
    return TASKS[config.task]


def scores() -> dict[str, str]:
    """The metric, in percent, by which runs of each task are compared, and what a reader calls it."""
    return dict(task.score for task in TASKS.values())
