"""What the source imports, by its syntax tree: nothing is executed, and an import inside a function counts too."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """`module` is absolute; `name` is what is taken from it, or None for `import module`."""

    place: str  # file:line, for people
    module: str
    name: str | None

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def modules(root: Path, package: str) -> dict[str, Path]:
    """The modules of a flat package by name, `__init__` and `__main__` too, and the stubs of compiled ones."""
    return {path.stem: path for path in sorted((root / package).glob("*.py*")) if path.suffix in (".py", ".pyi")}


def imports_of(root: Path, path: Path) -> Iterator[Import]:
    """Every import of a file that lies directly in a package under `root`."""
    for node in ast.walk(syntax_tree(path)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        place = f"{path.relative_to(root)}:{node.lineno}"
        if isinstance(node, ast.Import):
            yield from (Import(place, alias.name, None) for alias in node.names)
        else:
            parts = [path.parent.name] if node.level else []
            module = ".".join(parts + ([node.module] if node.module else []))
            yield from (Import(place, module, alias.name) for alias in node.names)


def imported_module(imported: Import, package: str, names: dict[str, Path]) -> str | None:
    """Which module of `package` an import reaches: `__init__` for the package itself, None for another package."""
    head, _, rest = imported.module.partition(".")
    if head != package:
        return None
    if rest:
        return rest.partition(".")[0]
    return imported.name if imported.name in names else "__init__"


def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))
