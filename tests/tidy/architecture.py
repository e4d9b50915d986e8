"""The rules that hold the source together. Each yields its violations in the tree at `root`; none means kept."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.tidy.imports import Import, imported_module, imports_of, modules, syntax_tree

LAYOUT_TITLE = "General layout"


def layer_violations(root: Path, package: str) -> Iterator[str]:
    """A module imports only modules that the "General layout" of its package's docstring names before it.

    That docstring is the one place where the order is declared. `__init__` and `__main__` stand below all others: they
    may import any, and none may import them.
    """
    found = modules(root, package)
    order = declared_order(root, package)
    for module, path in found.items():
        if module in ("__init__", "__main__"):
            continue
        if module not in order:
            yield f"{path.relative_to(root)} is not in the {LAYOUT_TITLE} of {package}/__init__.py"
            continue
        allowed = order[: order.index(module)]
        for imported in imports_of(root, path):
            target = imported_module(imported, package, found)
            if target is not None and target not in allowed:
                yield f"{imported.place} imports {package}.{target}, which is not above it"


def declared_order(root: Path, package: str) -> list[str]:
    """The package's modules in the order in which its "General layout" first names them.

    A name begins a line of a table (two spaces or .py follow it) or is `name` in backticks; one that is no module (yet) is
    passed over.
    """
    docstring = ast.get_docstring(syntax_tree(root / package / "__init__.py")) or ""
    layout = docstring.partition(LAYOUT_TITLE)[2]
    names = re.findall(r"`(\w+)(?:\.py)?`|^ *(\w+)(?:\.py\b|  )", layout, re.MULTILINE)
    found = modules(root, package)
    return list(dict.fromkeys(name for pair in names for name in pair if name in found))


def package_violations(root: Path) -> Iterator[str]:
    """shmpool knows nobody in this repository; worker knows of shmpool what `shmpool.__all__` exports."""
    for path in modules(root, "shmpool").values():
        for imported in imports_of(root, path):
            if imported.package in ("worker", "tests", "tools"):
                yield f"{imported.place} imports {imported.package}: shmpool stands alone"

    exported = exports(root, "shmpool")
    for path in modules(root, "worker").values():
        for imported in imports_of(root, path):
            if imported.package in ("tests", "tools"):
                yield f"{imported.place} imports {imported.package}"
            if imported.package == "shmpool" and not is_public(imported, exported):
                yield f"{imported.place} reaches past shmpool's exports: {imported.module}.{imported.name}"
        for attribute in attributes_of(path, "shmpool"):
            if attribute.attr not in exported:
                yield f"{path.relative_to(root)}:{attribute.lineno} uses shmpool.{attribute.attr}, not exported"


def is_public(imported: Import, exported: set[str]) -> bool:
    return imported.module == "shmpool" and (imported.name is None or imported.name in exported)


def exports(root: Path, package: str) -> set[str]:
    """The names in `__all__`, which is assigned once, a literal list or tuple."""
    for node in syntax_tree(root / package / "__init__.py").body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return set(ast.literal_eval(value))
            case ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.expr() as value):
                return set(ast.literal_eval(value))
    return set()


def attributes_of(path: Path, name: str) -> Iterator[ast.Attribute]:
    """Every `name.attribute` in a file."""
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name:
            yield node


def owner_violations(root: Path, library: str, owner: str) -> Iterator[str]:
    """In shmpool and worker only the file `owner` imports `library`."""
    for package in ("shmpool", "worker"):
        for path in modules(root, package).values():
            for imported in imports_of(root, path):
                if reaches(imported, library) and path != root / owner:
                    yield f"{imported.place} imports {library}, which belongs to {owner}"


def reaches(imported: Import, library: str) -> bool:
    """Also `from multiprocessing import shared_memory` and `import multiprocessing.shared_memory`."""
    spellings = (imported.module, f"{imported.module}.{imported.name}")
    return any(spelling == library or spelling.startswith(f"{library}.") for spelling in spellings)
