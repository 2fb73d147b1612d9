"""The floors of the house as data, and a reader of imports that finds whoever points up."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OURS = frozenset({"highwall", "toolkit", "targets", "benchmarks", "twin_client", "twin_server", "tests", "tools"})
TORCH = frozenset({"torch", "torchvision", "onnxscript", "safetensors"})
ANYTHING = None


@dataclass(frozen=True)
class Floor:
    """What a room may import: of ours (a name covers what lies below it) and of other people's packages."""

    ours: frozenset[str]
    others: frozenset[str] | None = ANYTHING
    others_inside_functions: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Room -> floor; the longest name that covers a module decides. The table of CONTRIBUTING.md, made exact.
FLOORS = {
    "highwall": Floor(_names("targets.runtime.errors targets.runtime.guard"), others=frozenset()),
    "benchmarks": Floor(_names("benchmarks toolkit twin_client targets")),
    "benchmarks.suite": Floor(_names("benchmarks.suite targets.runtime"), never=TORCH),
    "toolkit": Floor(_names("toolkit targets")),
    "toolkit.scan": Floor(_names("toolkit.scan targets"), never=TORCH),
    "twin_client": Floor(_names("twin_client targets.runtime"), never=TORCH),
    "twin_client.protocol": Floor(_names("twin_client.protocol"), others=_names("msgspec")),
    "targets": Floor(_names("targets"), never=TORCH),
    "targets.runtime": Floor(
        _names("targets.runtime"),
        others=_names("numpy onnxruntime"),
        others_inside_functions=_names("PIL rasterio cryptography ai_edge_litert tflite_runtime"),
    ),
}


@dataclass(frozen=True)
class Import:
    """One imported module: its full name, the line, and whether importing the file leaves it alone."""

    name: str
    line: int
    deferred: bool


def violations(root: Path) -> list[str]:
    """Every import under `root` that its floor forbids, as `FILE:LINE: ROOM may not import NAME`."""
    found = []
    for path in sources(root):
        module = module_name(path.relative_to(root))
        room, floor = floor_of(module)
        for item in imports(path, module, root):
            if not allows(floor, item):
                found.append(f"{path.relative_to(root)}:{item.line}: {room} may not import {item.name}")
    return found


def sources(root: Path) -> list[Path]:
    """Every Python file of our rooms under `root`."""
    rooms = sorted({name.partition(".")[0] for name in FLOORS} - {"highwall"})
    files = [path for room in rooms for path in sorted((root / room).rglob("*.py"))]
    return [path for path in [root / "highwall.py", *files] if path.exists()]


def module_name(path: Path) -> str:
    """`toolkit/data/__init__.py` -> `toolkit.data`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> tuple[str, Floor]:
    """The room that covers `module`, and its floor."""
    room = max((name for name in FLOORS if _covers(name, module)), key=len)
    return room, FLOORS[room]


def allows(floor: Floor, item: Import) -> bool:
    """Whether `floor` permits one import."""
    package = item.name.partition(".")[0]
    if package in OURS:
        return any(_covers(name, item.name) for name in floor.ours)
    if package in sys.stdlib_module_names:
        return True
    if package in floor.never:
        return False
    return floor.others is ANYTHING or package in floor.others | (
        floor.others_inside_functions if item.deferred else frozenset()
    )


def imports(path: Path, module: str, root: Path) -> Iterator[Import]:
    """Every import in a file, at any depth, `import_module("literal")` included; relative names made full."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8"), str(path)), False)]
    while pending:
        node, deferred = pending.pop()
        for name in _imported(node, package, root):
            yield Import(name, node.lineno, deferred)
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            pending.append((child, inside or _for_types_only(node, child)))


def _imported(node: ast.AST, package: str, root: Path) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=base, names=names, level=level):
            parents = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            base = ".".join([*parents, *([base] if base else [])])
            return [_deepest(base, alias.name, root) for alias in names]
        case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]):
            return [name] if called in ("import_module", "__import__") else []
    return []


def _for_types_only(node: ast.AST, child: ast.AST) -> bool:
    """Whether `child` stands under `if TYPE_CHECKING:`, where nothing is ever imported at run time."""
    names = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, ast.If) and ast.unparse(node.test) in names and child in node.body


def _deepest(base: str, name: str, root: Path) -> str:
    """`from base import name` may name a module or something inside one; the disk knows which."""
    inner = root.joinpath(*base.split("."), name)
    return f"{base}.{name}" if inner.is_dir() or inner.with_suffix(".py").exists() else base


def _covers(name: str, module: str) -> bool:
    return module == name or module.startswith(f"{name}.")
