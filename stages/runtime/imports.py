"""Which of a project's files run when a module is imported: found in the source, so that nothing has to be imported."""

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

from rank_e.errors import RankEError
from rank_e.io.files import sha256_of


class Sources:
    """The Python files under a project's folder and what they import, each read once.

    `named` maps a file that imports by name at run time to the modules that it will find there. A module of which the
    folder holds no file is a library's: not the project's code.
    """

    def __init__(self, project: Path, named: Mapping[str, Iterable[str]]) -> None:
        self.project = project
        self.named = named
        self.imports, self.files, self.sha256 = cache(self._imports), cache(self._files), cache(self._sha256)

    def closure(self, module: str, outside: Collection[str] = ()) -> set[str]:
        """The files, relative to the project, that importing `module` runs, and calling what is in it may run.

        Not those `outside`, nor what these alone import.
        """
        found: set[str] = set()
        left = self.files(module).difference(outside)
        while left:
            found |= left
            left = set().union(*map(self.imports, left)) - found - set(outside)
        return found

    def _sha256(self, path: str) -> str:
        return sha256_of(self.project / path)

    def _files(self, module: str) -> set[str]:
        """The module's file and the `__init__.py` of each package on the way to it."""
        parts = module.split(".")
        stems = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        paths = [f"{stem}{end}" for stem in stems for end in (".py", "/__init__.py")]
        return {path for path in paths if (self.project / path).is_file()}

    def _imports(self, path: str) -> set[str]:
        """The files that one file imports, anywhere in it; RankEError if it is not Python."""
        try:
            tree = ast.parse((self.project / path).read_bytes(), Path(path).name)
        except (SyntaxError, ValueError) as error:
            raise RankEError(f"{path} is not Python: {error}; fix it") from error
        modules = set(self.named.get(path, ()))
        for node in _statements(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                package = path.rpartition("/")[0].replace("/", ".")
                module = resolve_name("." * node.level + (node.module or ""), package)
                # `from package import name`: a name may be a module of its own.
                modules |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        return set().union(*map(self.files, modules))


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements below a node, however deep; expressions, which hold none, are passed over."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            if isinstance(child, ast.stmt):
                yield child
            yield from _statements(child)
