"""The user's own factories, `package.module:factory`, looked at without running them: a module may import torch."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

GIVEN = 2
"""A factory gets a folder and a device, for a dataset the image size; then the section's other keys by name."""


def factory_problems(where: str, kind: str, keys: Collection[str]) -> Iterator[str]:
    """Lines for a factory that is not there, or does not take these keys; nothing where only a call could tell."""
    module, _, name = kind.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # stages run in the project's folder
    try:
        importlib.invalidate_caches()  # the file may be younger than this process's list of its folder
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    finally:
        sys.path.remove(here)
    if spec is None or spec.origin is None:
        yield f"{where} = {kind}: there is no module {module}; correct the path"
        return
    if not spec.origin.endswith(".py"):
        return  # compiled: only an import could tell
    try:
        tree = ast.parse(Path(spec.origin).read_bytes(), Path(spec.origin).name)
    except (SyntaxError, ValueError) as error:
        yield f"{where} = {kind}: {module} is not Python: {error}; fix it"
        return
    bound = list(_bound(tree))
    plain = (node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.decorator_list)
    function = next((node for node in plain if node.name == name), None)
    if function is not None and bound.count(name) == 1:  # bound again, or decorated, it takes what only a call tells
        yield from _misfits(where, kind, function.args, keys)
    elif not {name, "*"} & set(bound):
        yield f"{where} = {kind}: {module} has no {name}; correct the path"


def _bound(tree: ast.Module) -> Iterator[str]:
    """Every name that a module binds somewhere; * where it takes over all of another's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def _misfits(where: str, kind: str, takes: ast.arguments, keys: Collection[str]) -> Iterator[str]:
    """What a function cannot be called with, and what it misses."""
    places = [item.arg for item in (*takes.posonlyargs, *takes.args)]
    by_name = {item.arg for item in (*takes.args, *takes.kwonlyargs)} - set(places[:GIVEN])
    needed = set(places[GIVEN : len(places) - len(takes.defaults)])
    needed |= {item.arg for item, value in zip(takes.kwonlyargs, takes.kw_defaults, strict=True) if value is None}
    if len(places) < GIVEN and takes.vararg is None:
        yield f"{where} = {kind}: takes {', '.join(places) or 'nothing'}; make it take a folder, a device and the keys"
    elif wrong := sorted(set(keys) - by_name) if takes.kwarg is None else []:
        yield f"{where} = {kind}: takes no {', '.join(wrong)}; correct the keys, or the function"
    elif missing := sorted(needed - set(keys)):
        yield f"{where} = {kind}: needs {', '.join(missing)}; give it as a key"
