"""What the README, docs/ and docstrings tell a reader to type: every command parses, its config loads, every link leads
somewhere, and the Python in the README runs.

How commands are written there is in docs/develop.md. A usage line stands for several command lines, its forms: without
and with what is in brackets, and with each alternative. All of them are parsed by the command's own parser; nothing is
run, and no data are read.
"""

import ast
import importlib
import itertools
import json
import pkgutil
import re
import shlex
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from lape_jax import cli, models, port, prepare
from lape_jax.errors import UserError
from lape_jax.sweeps.grid import Sweep
from lape_jax.train import setup

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("benchmarks/*.md"))]
MODULES = [path for room in ("lape_jax", "configs", "benchmarks") for path in sorted(ROOT.glob(f"{room}/**/*.py"))]
NOTEBOOKS = sorted(ROOT.glob("colabs/*.ipynb"))

RUNS = ("configs/segmenter_ti_mask_ade20k.py:debug", "configs/digits.py")  # configs of runs that are only named
PYTHON = re.compile(r"`?python3? -m lape_jax\.(\w+)\b(.*)", re.DOTALL)
FENCE = re.compile(r"^ *```.*?^ *```[ \t]*$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`((?:[^`\n]|\n(?!\s*\n))+)`")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
TOKEN = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s\[\]()|"']|(?<=\S)\|(?=\S))+|\s+\|\s+|\s+|[\[\]()]""")


# ---- Which commands a text has --------------------------------------------------------------------------------------


def commands(text):
    """Every `python -m lape_jax.NAME ...` in a text: those in backticks, and all other lines that have one.

    What is in backticks and has no option is only mentioned, and stays in backticks.
    """
    fenced, prose = FENCE.findall(text), FENCE.sub("\n", text)
    spans = [" ".join(span.split()) for span in SPAN.findall(prose)]
    spans = [span if "--" in span else f"`{span}`" for span in spans]
    lines = re.sub(r"[ \t]# .*", "", "\n".join([*fenced, SPAN.sub(" ", prose)]))
    lines = re.sub(r"[ \t]*\\\n\s*|\n\s*(?=\[--)", " ", lines)  # those that go on
    parts = [part for line in [*spans, *lines.split("\n")] for part in line.split("&&")]
    return [match[0].rstrip() for match in map(PYTHON.search, parts) if match]


def docstrings(path):
    """The docstrings of a file, all in one text."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    return "\n\n".join(ast.get_docstring(node) or "" for node in nodes)


def texts():
    """(where, text) of all that is looked through."""
    yield from ((path, path.read_text()) for path in PAGES)
    yield from ((path, docstrings(path)) for path in MODULES)
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        yield path, "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


FOUND = [(str(path.relative_to(ROOT)), command) for path, text in texts() for command in commands(text)]


def forms(usage, optional):
    """The command lines that a usage line stands for, with what is in brackets or without."""
    tokens = TOKEN.findall(usage)

    def alternatives():
        results, current = [], [""]
        while tokens and tokens[0] not in ("]", ")"):
            token = tokens.pop(0)
            if token.strip() == "|":
                results, current = results + current, [""]
                continue
            if token in ("[", "("):
                inside = alternatives()
                tokens.pop(0)
                choices = inside if optional or token == "(" else [""]
            else:
                first, *others = [token] if set(token) & set("\"'") else token.split("|")
                choices = [first, *(first.rpartition("=")[0] + "=" + other for other in others)]
            current = [one + other for one, other in itertools.product(current, choices)]
        return results + current

    return alternatives()


# ---- What the command makes of it -----------------------------------------------------------------------------------


def check(command):
    """Raises UserError, as the command itself would, for one that does not fit."""
    name, usage = PYTHON.fullmatch(command.strip("`")).groups()
    if not (ROOT / "lape_jax" / f"{name}.py").exists():
        raise UserError(f"there is no command lape_jax.{name}")
    if command.endswith("`"):  # a mention
        if name == "prepare" and usage and not usage.isupper():
            check_name(usage.split()[0])
        return
    for optional in (False, True):
        for form in forms(usage, optional):
            check_line(name, [fill(word) for word in shlex.split(form) if word != "..."])


def check_name(name):
    """Raises UserError unless prepare has a command of this name."""
    try:
        prepare.parse([name])
    except UserError as error:
        if "invalid choice" in str(error):
            raise


def fill(word):
    """The word with something in place of what only stands for it."""
    word = re.sub(r"=N$", "=8", word)
    word = {"--config.key=value": "--config.ema_decay=0", "--model.KEY=VALUE": "--model.num_classes=10"}.get(word, word)
    return re.sub(r":(arg,)?arg=value$", "", word)


def check_line(name, argv):
    module = importlib.import_module(f"lape_jax.{name}")
    parsed = module.parse(argv) if hasattr(module, "parse") else cli.parse(argv, **options(module))
    args, more = parsed if isinstance(parsed, tuple) else (parsed, {})
    if hasattr(args, "weights") and bool(args.weights) == bool(args.workdir):
        raise UserError("give either --workdir or --weights")
    if hasattr(args, "model") and args.model not in ("", "NAME"):
        models.create(args.model, **more)
    if name == "sweep":
        file = "configs/digits.py:table8" if args.config.startswith("FILE.py") else args.config
        sweep = cli.call_config_file(f"{ROOT}/{file}", "sweep", Sweep)
        for cell in sweep.cells:
            load(f"configs/{cell.config}", [*cell.overrides, *more])
    elif isinstance(more, list):  # overrides of a config, or of a run's, which may be of any task
        given = [args.config] if args.config not in ("", "FILE.py") else RUNS
        load_any(given, more)


def load_any(files, overrides):
    """Raises the last UserError if the overrides suit none of the config files."""
    first, *others = files
    try:
        load(first, overrides)
    except UserError:
        if not others:
            raise
        load_any(others, overrides)


def load(file, overrides):
    config = cli.load_config(f"{ROOT}/{file}", "", overrides)
    setup.build_model(config, num_classes=10)


def options(module):
    """What the module's `if __name__ == "__main__"` hands to `cli.run`, for `cli.parse`."""
    (*_, block) = ast.parse(Path(module.__file__).read_text()).body
    code = compile(ast.Module(block.body, []), module.__file__, "exec")
    with mock.patch.object(cli, "run", return_value=0) as run, pytest.raises(SystemExit):
        exec(code, dict(vars(module)))
    given = {name: value for name, value in run.call_args.kwargs.items() if name != "assumed"}  # of the config's keys
    return {"description": "", "required": (), "options": None} | given


@pytest.mark.parametrize(
    ("where", "command"), FOUND, ids=lambda value: value.strip("`").removeprefix("python -m lape_jax.")[:60]
)
def test_command(where, command):
    try:
        check(command)
    except UserError as error:
        pytest.fail(f"{where}: {command}\n{error}", pytrace=False)


@pytest.mark.parametrize("path", [*PAGES, *MODULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_command_is_overlooked(path):
    text = path.read_text() if path.suffix == ".md" else docstrings(path)
    assert len(commands(text)) == len(re.findall(r"python3? -m\s+lape_jax\.", text))


TEXT = r"""
Text with `python -m lape_jax.convert`, and in a list of `python
-m lape_jax.prepare check --path=DIR`:

    A=1 python -m lape_jax.main --config=configs/digits.py \
        --workdir=runs/one    # and "join=default

```
cd here && .venv/bin/python -m lape_jax.overhead --model=deit_ti [--batch=N]
                                                 [--dtype=float32|bfloat16]
```
"""


def test_where_commands_are_found():
    assert commands(TEXT) == [
        "`python -m lape_jax.convert`",
        "python -m lape_jax.prepare check --path=DIR",
        "python -m lape_jax.overhead --model=deit_ti [--batch=N] [--dtype=float32|bfloat16]",
        "python -m lape_jax.main --config=configs/digits.py --workdir=runs/one",
    ]


def test_forms_of_a_usage_line():
    assert forms("x (--a=1|2 | --b) [--c]", False) == ["x --a=1 ", "x --a=2 ", "x --b "]
    assert forms("x [--a [--b=N]] FILE.py[:arg]", True) == ["x --a --b=N FILE.py:arg"]
    assert forms("""x --a="(1, 2)" --b='[c|d]'""", True) == ["""x --a="(1, 2)" --b='[c|d]'"""]


DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"main {DIGITS} --workdir=DIR --wrokdir=DIR", "did you mean '--workdir'"),
        (f"main {DIGITS}", "--workdir=DIR is missing"),
        (f"main {DIGITS}:jion=lape --workdir=DIR", "did you mean 'join'"),
        (f"main {DIGITS}:join=laep --workdir=DIR", "did you mean 'lape'"),
        ("main --config=configs/digit.py --workdir=DIR", "digits.py'"),
        (f"main {DIGITS} --workdir=DIR --config.batch_siez=8", "did you mean config.batch_size"),
        (f"main {DIGITS} --workdir=DIR --config.batch_size=-8", "it must be at least 1"),
        (f"main {DIGITS} --workdir=DIR [--config.data.crop_ratio=2]", "it must be above 0 and at most 1"),
        ("main --config=configs/images.py --workdir=DIR", "config.data.path is empty"),
        ("evaluate --workdir=DIR [--stpe=N|last|best]", "did you mean '--step'"),
        ("evaluate --workdir=DIR --weights=FILE --config=FILE.py", "either --workdir or --weights"),
        ("evaluate --workdir=DIR --config.dtype=float61", "did you mean"),
        ("predict --workdir=DIR --out=DIR", "FILE"),
        ("export --workdir=DIR [--out=FILE]", "--out=... is missing"),
        ("visualize --workdir DIR --out=DIR --overlay=N|8", "unrecognized arguments"),
        ("convert SRC DST --model=deit_ti --model.jion=lape", "did you mean 'join'"),
        ("convert SRC DST --model=deit_tj", "did you mean 'deit_ti'"),
        ("overhead --model=deit_ti --batch=many", "it must be a whole number"),
        ("prepare scenes --path=DIR --out=DATA_DIR", "required: --layout"),
        ("prepare (resize | check) --path=DIR --short=N --out=OUT", "unrecognized arguments"),
        ("prepare tfds", "required: NAME"),
        ("main", "--config=FILE is missing"),
        ("trian --workdir=DIR", "there is no command"),
        ("sweep --config=configs/digits.py:table9 --out=DIR", "did you mean 'table"),
        ("sweep --config=configs/digits.py:table7 --out=DIR --config.optimizer.rl=1", "unknown key"),
    ],
)
def test_a_command_that_does_not_fit(command, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check(f"python -m lape_jax.{command}")


def test_mentions():
    check("`python -m lape_jax.prepare scenes`")
    check("`python -m lape_jax.main`")
    with pytest.raises(UserError, match="invalid choice: 'scene'"):
        check("`python -m lape_jax.prepare scene`")
    with pytest.raises(UserError, match=r"no command lape_jax\.mian"):
        check("`python -m lape_jax.mian`")


# ---- Pages ----------------------------------------------------------------------------------------------------------


def prose(page):
    """A page without its code blocks."""
    return re.sub(r"^ {4}.*$", "", FENCE.sub("", page.read_text()), flags=re.MULTILINE)


def anchors(page):
    """What a link may have behind its #, as GitHub makes it of the headings."""
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in HEADING.findall(prose(page))
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert ROOT in target.parents, link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("room", ["pages", "lape_jax", "configs", "benchmarks"])
def test_names_in_backticks(room):
    """Modules, and what is in them; on pages files, too."""
    for path, text in texts():
        if room == ("pages" if path in PAGES else path.relative_to(ROOT).parts[0]):
            for span in SPAN.findall(FENCE.sub("\n", text)):
                if re.fullmatch(r"lape_jax(\.\w+)+", span):
                    assert pkgutil.resolve_name(span), path
                if path in PAGES and re.fullmatch(r"(lape_jax|tests|configs|benchmarks|colabs|docs)/[\w./-]*", span):
                    assert (ROOT / span).exists(), (path, span)


def test_every_page_and_figure_is_shown():
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(page))
    }
    assert {*ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("benchmarks/figures/*")} <= linked
    assert set(NOTEBOOKS) <= linked


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_tables_have_as_many_cells_in_each_row():
    for page in PAGES:
        for table in re.findall(r"(?:^\|.*\|$\n?)+", page.read_text(), re.MULTILINE):
            rows = [re.sub(r"`[^`]*`", "", row).count("|") for row in table.splitlines()]
            assert set(rows) == {rows[0]}, f"{page}: {table}"


def test_python_versions_are_the_same_everywhere():
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert classifiers == ["3.11", "3.12", "3.13"]
    for name in ("README.md", "docs/develop.md", "requirements.txt"):
        said = re.search(r"Python 3\.\d+, 3.*", (ROOT / name).read_text())[0]
        assert re.findall(r"3\.\d+", said)[: len(classifiers)] == classifiers, name


def test_the_python_of_the_readme(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    model = models.create("deit_ti", join="lape")
    variables = jax.tree.map(lambda leaf: jax.numpy.full(leaf.shape, 0.01), {"params": model.param_shapes()})
    monkeypatch.chdir(tmp_path)
    port.save("checkpoint.npz", variables, model)
    exec(code.replace("checkpoint.pth", "checkpoint.npz"), scope := {})
    assert scope["logits"].shape == (8, 1000)
    assert scope["out"]["pe"].shape == (12, 197, 192)
    jax.tree.map(np.testing.assert_array_equal, port.load("weights.safetensors", model), variables)
