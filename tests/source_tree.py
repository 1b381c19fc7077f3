"""The source tree as data: its files, its layers, and who imports whom.

The tests of the structure read it, and so does docs/architecture.py, which draws it.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "hypelora_jax"
PACKAGE = ROOT / "src" / NAME
# Low to high. The units of a layer do not import each other, and a lower layer never
# imports an upper one. A unit is a folder or a module at the top of the package.
LAYERS = (
    ("types", "errors"),
    ("trees", "keys", "files"),
    ("config",),
    ("sharding", "data", "calibration", "adapters"),
    ("families", "hyper", "objectives"),
    ("interop",),
    ("model",),
    ("run",),
    ("train",),
    ("evaluate",),
    ("inference", "report"),
    ("serve", "plan", "exchange"),
    ("commands", "api"),
    ("cli",),
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def files() -> list[Path]:
    """All Python files of the package, without the configs, which stand beside src/."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [p for p in paths if p.relative_to(PACKAGE).parts[0] != "configs"]


def module_of(path: Path, package: Path = PACKAGE) -> str:
    """Dotted name of a file of the package; an `__init__` is its package."""
    parts = [NAME, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str:
    """The folder or top module a module belongs to; `__init__` for the package."""
    return [*module.split("."), "__init__"][1]


def sources() -> dict[str, ast.Module]:
    """Each module of the package, parsed."""
    return {module_of(path): ast.parse(path.read_text()) for path in files()}


def imported(tree: ast.AST) -> set[str]:
    """Dotted names imported anywhere in a source; `from a import b` gives a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Which modules each module imports, at its top or in a function.

    `from package import name` is an import of package.name where that is a module, and
    of the package where it is not. The package itself, whose functions import what they
    need when they are called, imports nothing here.
    """
    out = {}
    for module, tree in trees.items():
        targets = imported(tree) if module != NAME else ()
        own = {t for t in targets if t == NAME or t.startswith(f"{NAME}.")}
        found = {t if t in trees else t.rpartition(".")[0] for t in own}
        out[module] = (found & set(trees)) - {module}
    return out


def unit_graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Which units each unit of LAYERS imports."""
    out: dict[str, set[str]] = {unit: set() for layer in LAYERS for unit in layer}
    for module, targets in graph(trees).items():
        unit = unit_of(module)
        if unit in out:
            out[unit] |= {unit_of(target) for target in targets} & set(out) - {unit}
    return out


def bound_names(tree: ast.AST) -> dict[str, str]:
    """What the imports of a source bind: name in the source to dotted name."""
    out = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                out[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                out[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return out


def dotted(node: ast.AST, bound: dict[str, str]) -> str:
    """Full name of `name` or `module.name` by the imports; "" for other expressions."""
    if isinstance(node, ast.Name):
        return bound.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, bound)
        return f"{before}.{node.attr}" if before else ""
    return ""


def functions(tree: ast.AST) -> list[Function]:
    """All functions of a source: methods and nested functions count as well."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines from `def` to the function's end, docstring and nested functions included;
    decorators are not.
    """
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1
