"""Cached candidates: code that decides one's bytes, wherever it lies, decides its name too."""

import ast
from pathlib import Path

import pytest

from toolkit import cache
from toolkit.quantize.recipes import RUNTIMES

HERE = Path(cache.__file__).parent.parent
# In the compiler's reach, and in no candidate: what it costs and where it is counted is found anew in every build.
ELSEWHERE = {
    *("targets/__init__.py", "targets/board.py", "toolkit/__init__.py", "toolkit/cache.py", "toolkit/cost.py"),
    *(f"targets/emulator/{name}.py" for name in ("__init__", "counts", "guest", "layout")),
}


def imported(path: Path) -> set[str]:
    """Every module of ours that the file may import, inside functions too; some may be names within a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] in ("toolkit", "targets")}


def closure(*modules: str) -> set[str]:
    """The files, named from the root, that importing `modules` may come to read."""
    files: set[str] = set()
    waiting = list(modules)
    while waiting:
        base = HERE / waiting.pop().replace(".", "/")
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        name = str(path.relative_to(HERE))
        if path.is_file() and name not in files:
            files.add(name)
            waiting += imported(path)
    return files


def test_all_that_the_compiler_reaches_is_in_the_key_or_plainly_of_no_matter() -> None:
    reached = closure("toolkit.compiler", *(f"toolkit.quantize.{runtime}" for runtime in RUNTIMES))
    assert {"toolkit/compiler.py", "toolkit/export/tflite.py", "toolkit/temperature.py"} <= reached
    covered = {name for name in reached if any(name == room or name.startswith(f"{room}/") for room in cache.ROOMS)}
    assert sorted(reached - covered - ELSEWHERE) == []
    assert all((HERE / room).exists() for room in cache.ROOMS)


@pytest.mark.parametrize("name", ["toolkit/temperature.py", "toolkit/baselines/unet.py", "toolkit/models.py"])
def test_a_changed_file_is_another_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache._code.__wrapped__()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path == HERE / name))
    assert cache._code.__wrapped__() != before
