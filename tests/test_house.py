"""The rooms of lape_jax: imports go down, no task knows another, and nothing outside them knows a task by name."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lape_jax"
# From top to bottom: what stands on a line may import what stands below it, and nothing of its own line but itself.
FLOORS = (
    ("commands",),
    ("sweeps",),
    ("train",),
    ("tasks",),
    ("parallel", "config", "analysis"),
    ("port",),
    ("models",),
    ("data", "augment", "nn"),
    ("atomic", "interpolation"),
    ("errors",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LONGEST = 300  # lines of a file
# big_vision looks for a model and for what loads its weights in one module, which a user's file names.
ALLOWED = {("models/big_vision_vit.py", "port")}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def room(path: str) -> str:
    """The room of a file or of a module, both as paths below the package; commands are the files beside the rooms."""
    first = path.split("/")[0].removesuffix(".py")
    return first if first in FLOOR else "commands"


def imported(path: str) -> set[str]:
    """What a file imports of lape_jax, as paths below the package; of `from a import b` both a and a/b."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.replace(".", "/") for name in names if name.split(".")[0] == "lape_jax"}
    below = {name.removeprefix("lape_jax").lstrip("/") for name in found} - {""}
    return {name for name in below if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


def task_of(path: str) -> str | None:
    """The task whose room a path lies in."""
    parts = path.split("/")
    return parts[1] if parts[0] == "tasks" and len(parts) > 1 and (PACKAGE / "tasks" / parts[1]).is_dir() else None


def wrong(path: str, targets: set[str]) -> list[str]:
    """Which of the targets a file must not import, and why."""
    here, faults = room(path), []
    for target in sorted(targets):
        there = room(target)
        if here != there and FLOOR[there] <= FLOOR[here] and (path, there) not in ALLOWED:
            faults.append(f"{path} imports {target}: {there} does not lie below {here}")
        if task_of(target) and task_of(path) not in (None, task_of(target)):
            faults.append(f"{path} imports {target}: one task's room knows another's")
        if task_of(target) and here in ("train", "sweeps"):
            faults.append(f"{path} imports {target}: {here} knows a task")
    return faults


def test_the_rooms_are_those_that_are_there():
    there = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert there == set(FLOOR) - {"commands", "atomic", "interpolation", "errors"}


def test_imports_go_down():
    assert [fault for path in FILES for fault in wrong(path, imported(path))] == []


def test_commands_know_no_task():
    for path in FILES:
        if room(path) == "commands":
            assert {task_of(target) for target in imported(path)} <= {None}, path


def test_what_would_be_wrong_is_seen():
    assert wrong("nn/join.py", {"models/vit"}) == ["nn/join.py imports models/vit: models does not lie below nn"]
    assert wrong("data/order.py", {"nn/peg"}) == ["data/order.py imports nn/peg: nn does not lie below data"]
    assert len(wrong("tasks/classify/loss.py", {"tasks/segment/loss"})) == 1
    assert len(wrong("train/loop.py", {"tasks/segment"})) == 1
    assert wrong("train/loop.py", {"tasks", "tasks/task", "parallel/hosts", "train/feed"}) == []
    assert {"train/setup", "train/drive"} <= imported("train/loop.py")


def asked(path: str) -> list[str]:
    """Comparisons in a file that look at the task of a config."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Compare):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            if any(side.endswith(".task") for side in sides):
                found.append(f"{path}: {' '.join(sides)}")
    return found


def test_nothing_outside_asks_which_task_it_is():
    agree = "train/teacher.py: theirs.task config.task"  # whether two runs have the same, not which
    outside = [path for path in FILES if not path.startswith("tasks/")]
    assert [found for path in outside for found in asked(path)] == [agree]


def test_files_are_short():
    lines = {path: len((PACKAGE / path).read_text().splitlines()) for path in FILES}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}
