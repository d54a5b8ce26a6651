"""The floor plan of CONTRIBUTING.md, kept by tests: few rooms, modules of a size to read, one name for one thing."""

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "wsiseg"
MODULES = sorted(path for path in SOURCE.rglob("*.py"))
MOST_LINES, FEW_LINES, MOST_SMALL_MODULES, MOST_FUNCTION_LINES, MOST_ENTRIES, LAYERS = 300, 50, 6, 50, 20, 8
MOST_WHEEL_BYTES = 30_000_000

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def parsed() -> Iterator[tuple[str, ast.Module]]:
    """Yield every module with its name as in an import."""
    for path in MODULES:
        yield ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts), ast.parse(path.read_text())


def test_a_newcomer_reads_the_method_from_a_short_list() -> None:
    assert len([path for path in SOURCE.iterdir() if path.name != "__pycache__"]) <= MOST_ENTRIES


def test_no_module_is_too_long_to_read() -> None:
    assert {path.name: lines_of(path) for path in MODULES if lines_of(path) > MOST_LINES} == {}


def test_every_fault_that_is_planted_stands_in_the_code_once() -> None:
    modules = tomllib.loads((ROOT / "scripts" / "faults.toml").read_text())["module"]
    texts = {module["file"]: (SOURCE / module["file"]).read_text() for module in modules}
    strays = [text for module in modules for text, _ in module["faults"] if texts[module["file"]].count(text) != 1]
    assert strays == []


def test_few_modules_are_too_short_to_find() -> None:
    small = [path for path in MODULES if lines_of(path) < FEW_LINES and not path.name.startswith("__")]
    assert len(small) <= MOST_SMALL_MODULES, [str(path.relative_to(SOURCE)) for path in small]


def test_no_function_is_longer_than_a_screen() -> None:
    functions = [
        (f"{module}.{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for module, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [(name, lines) for name, lines in functions if lines > MOST_FUNCTION_LINES] == []


def test_docstrings_say_return_or_compute_rather_than_give() -> None:
    begun = [
        f"{module}:{getattr(node, 'lineno', 1)}"
        for module, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, Documented) and (ast.get_docstring(node) or "").startswith("Give")
    ]
    assert begun == []


def test_what_a_user_installs_is_small_and_has_no_torch() -> None:
    files = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < MOST_WHEEL_BYTES
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [name for name in needed if name.startswith(("torch", "timm", "onnx>"))] == []


def test_every_package_says_what_it_is() -> None:
    packages = [path for path in MODULES if path.name == "__init__.py"]
    assert [str(path) for path in packages if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_no_two_classes_in_different_modules_bear_one_name() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module, tree in parsed():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_imports_go_down_eight_floors_without_exception() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (floors,) = [contract for contract in contracts if contract["type"] == "layers"]
    assert len(floors["layers"]) == LAYERS
    assert [contract["name"] for contract in contracts if contract.get("ignore_imports")] == []
