"""Checks shape types while tests run: an import hook as jaxtyping's, but only for functions that have such types.

jaxtyping's own wraps every function of a package, which took a third of the time of all tests.
"""

import ast
import importlib.abc
import importlib.machinery
import inspect
import sys
import typing

import beartype
import jaxtyping


def has_shape_types(annotation) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape_types, typing.get_args(annotation)))


def checked(value):
    """A function that checks arguments and result at each call, or a dataclass its fields, if they have shape types."""
    if not any(map(has_shape_types, inspect.get_annotations(value).values())):
        return value
    return jaxtyping.jaxtyped(value, typechecker=beartype.beartype)


_CHECKED = ast.parse(f"__import__('sys').modules[{__name__!r}].checked", mode="eval").body


def _decorate(statements: list[ast.stmt]) -> None:
    """Makes `checked` the innermost decorator of every function, whose annotations others hide, and the outermost of
    every class, which `dataclass` has to see first.
    """
    for node in statements:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list.append(_CHECKED)
        elif isinstance(node, ast.ClassDef):
            node.decorator_list.insert(0, _CHECKED)
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            _decorate(getattr(node, part, []))


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):  # no cache of bytecode, which would be that of the plain module
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        _decorate(tree.body)
        return compile(tree, path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, package: str):
        self.package = package

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] != self.package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install(package: str) -> None:
    """From now on, what is imported of `package` is checked."""
    sys.meta_path.insert(0, _Finder(package))
