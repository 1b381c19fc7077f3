"""Sizes, names and circles of the source, and the way from the command to the step.

How it counts: a file's lines are all of its lines. A function's lines go from `def` to
its end, docstring included; methods and nested functions count as functions too, so the
lines of a nested one count twice. A package's files are the Python files of its folder,
`__init__.py` included; a package inside it counts for itself.
"""

import ast
import graphlib
import importlib.util
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import source_tree
from source_tree import NAME, PACKAGE

MAX_TOP, MAX_PACKAGE, MAX_FILE, MAX_FUNCTION, MAX_HOPS = 8, 12, 300, 60, 6
MEDIAN_FILE, MEDIAN_FUNCTION = 130, 9
# Riddles for a reader: a file, a class or a function is named by a noun of the field.
BANNED = frozenset(
    "afterwards notes store stored saved restored folder posthoc overview beside exits "
    "assemble emit ordered shelf journal".split()
)
# Only run/ spells these. A config.json is also a model's, read and written for others.
RUN_FILES = {
    name: {"run"}
    for name in (
        "metrics.jsonl predictions.npz metrics.json calibrator.json summary.json "
        "seeds.json laplace.npz report.html manifest.json selection.json "
        "commit_success.txt .lock"
    ).split()
} | {"config.json": {"run", "interop", "exchange"}}
# An item of the list "From the command to the step" in docs/architecture.md.
HOP = re.compile(r"^(\d+)\. `([\w.]+)`", re.M)


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return source_tree.sources()


# Sizes


def crowded(paths: list[Path], package: Path = PACKAGE) -> list[str]:
    """Packages with more files than they may have."""
    counts = Counter(path.parent for path in paths)
    out = []
    for folder, count in counts.items():
        limit = MAX_TOP if folder == package else MAX_PACKAGE
        commands = folder.parts[len(package.parts) :][:1] == ("commands",)
        if count > limit and not commands:
            out.append(f"{folder.relative_to(package)}: {count} files, at most {limit}")
    return out


def repeated_stems(paths: list[Path], package: Path = PACKAGE) -> list[str]:
    """Names that more than one file has; those of commands/ are free."""
    inside = [path.relative_to(package) for path in paths]
    stems = Counter(p.stem for p in inside if p.parts[0] != "commands")
    return [stem for stem, n in stems.items() if n > 1 and stem != "__init__"]


def test_packages_stay_small():
    assert crowded(source_tree.files()) == []


def test_no_two_files_share_a_name():
    assert repeated_stems(source_tree.files()) == []


def test_files_stay_short():
    sizes = {p: len(p.read_text().splitlines()) for p in source_tree.files()}
    long = {str(p): n for p, n in sizes.items() if n > MAX_FILE}
    assert long == {}
    assert statistics.median(sizes.values()) <= MEDIAN_FILE


def test_functions_stay_short(trees):
    found = [(m, f) for m, tree in trees.items() for f in source_tree.functions(tree)]
    sizes = {f"{m}.{f.name}:{f.lineno}": source_tree.length(f) for m, f in found}
    assert {name: n for name, n in sizes.items() if n > MAX_FUNCTION} == {}
    assert statistics.median(sizes.values()) <= MEDIAN_FUNCTION


def test_sizes_are_counted_as_the_docstring_says():
    root = Path("p")
    paths = [root / f"{n}.py" for n in range(9)]
    paths += [root / "a" / f"{n}_a.py" for n in range(12)]
    paths += [root / "a" / "b" / f"{n}_b.py" for n in range(13)]
    paths += [root / "commands" / f"{n}_c.py" for n in range(13)]
    assert [line.split(":")[0] for line in crowded(paths, root)] == [".", "a/b"]
    names = ("a/__init__", "b/__init__", "a/x", "b/x", "c/y", "commands/y")
    assert repeated_stems([root / f"{n}.py" for n in names], root) == ["x"]
    tree = ast.parse(
        "@decorator\ndef f():\n    def g():\n        pass\n\n    return g\n\n\n"
        "class C:\n    async def h(self): pass\n"
    )
    lengths = {f.name: source_tree.length(f) for f in source_tree.functions(tree)}
    assert lengths == {"f": 5, "g": 2, "h": 1}


# Circles


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; [] where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other(trees):
    assert circle(source_tree.graph(trees)) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from hypelora_jax.a import x", True),
        ("from hypelora_jax import a", True),
        ("import hypelora_jax.a", True),
        ("def f():\n    from hypelora_jax.a import x", True),
        ("from hypelora_jax.a import c", False),  # a module, which imports nothing
        ("from hypelora_jax import __version__", False),
    ],
)
def test_a_circle_is_found(line, found):
    texts = {
        "hypelora_jax": "def load():\n    from hypelora_jax import b",
        "hypelora_jax.a": "from hypelora_jax.b import y",
        "hypelora_jax.a.c": "",
        "hypelora_jax.b": line,
    }
    graph = source_tree.graph({name: ast.parse(text) for name, text in texts.items()})
    assert bool(circle(graph)) is found


# Names and docstrings


def words(name: str) -> list[str]:
    """Words of a name: `of_runView` is of, run, view."""
    return re.findall(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]*", name)


def banned_names(module: str, tree: ast.Module) -> list[str]:
    """Names of the file, its classes and functions that hold a banned word."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [n.name for n in ast.walk(tree) if isinstance(n, kinds)]
    held = [module.rpartition(".")[2], *names]
    return [n for n in held if BANNED & {word.lower() for word in words(n)}]


def is_introduced(package: str, docstring: str | None) -> bool:
    """Does the docstring of a package say what it is for and what may not come in?"""
    sentences = re.findall(r"\w\S*[.!?](?=\s|$)", docstring or "")
    return len(sentences) >= 2 and (docstring or "").strip(". \n") != package


def run_files(module: str, tree: ast.Module) -> list[str]:
    """Names of files of a run that the module spells and may not."""
    unit = source_tree.unit_of(module)
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            for name, units in RUN_FILES.items():
                spelled = text == name or text.endswith(f"/{name}")
                if spelled and not re.search(r"\s", text) and unit not in units:
                    out.append(f"{module}:{node.lineno}: {text}")
    return out


def test_names_are_nouns_of_the_field(trees):
    found = {module: banned_names(module, tree) for module, tree in trees.items()}
    assert {module: names for module, names in found.items() if names} == {}


def test_each_package_says_what_it_is_for(trees):
    inits = [path for path in source_tree.files() if path.stem == "__init__"]
    inside = [m for m in map(source_tree.module_of, inits) if m != NAME]
    assert len(inside) > 10
    said = {p: ast.get_docstring(trees[p]) for p in inside}
    wrong = [p for p in inside if not is_introduced(p.rpartition(".")[2], said[p])]
    assert wrong == []


def test_only_run_spells_the_files_of_a_run(trees):
    assert [line for m, tree in trees.items() for line in run_files(m, tree)] == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def saved_runs(): pass", 1),
        ("class RestoredRun: pass", 1),
        ("class C:\n    def _emit(self): pass", 1),
        ("async def folderOf(): pass", 1),
        ("def storey(): pass\ndef emitted(): pass\nsaved = 1", 0),
    ],
)
def test_a_banned_name_is_found(source, count):
    assert len(banned_names("hypelora_jax.run.lock", ast.parse(source))) == count
    assert len(banned_names("hypelora_jax.run.notes", ast.parse(""))) == 1


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('path / "metrics.jsonl"', 1),
        ('path / f"eval/{split}/predictions.npz"', 1),
        ('path / ".lock"', 1),
        ('path / "config.json"', 1),
        ('"""Reads DIR/metrics.jsonl and eval/SPLIT/metrics.json"""', 0),
        ('help = "written to DIR/report/report.html"', 0),
        ('path / "my_metrics.json"', 0),
    ],
)
def test_a_spelled_file_of_a_run_is_found(source, count):
    tree = ast.parse(source)
    assert len(run_files("hypelora_jax.report.runs", tree)) == count
    assert run_files("hypelora_jax.run.paths", tree) == []


def test_a_docstring_that_says_nothing_is_found():
    assert not is_introduced("train", None)
    assert not is_introduced("train", "train.")
    assert not is_introduced("train", "The step, its optimizer and the loop of epochs.")
    assert is_introduced("train", "The loop of epochs.\n\nNo report comes in here.")


# tests/


def missing_long(text: str, tests: Path) -> list[str]:
    """Entries of the list LONG of a conftest.py that are no file or folder of tests."""
    lists = [
        ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LONG"
    ]
    assert len(lists) == 1 and lists[0], "one list LONG"
    return [name for name in lists[0] if not (tests / name).exists()]


def test_what_takes_long_is_there():
    tests = source_tree.ROOT / "tests"
    assert missing_long((tests / "conftest.py").read_text(), tests) == []


def test_a_missing_long_test_is_found(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "test_step.py").touch()
    text = 'LONG = ("train/test_step.py", "train", "test_step.py")'
    assert missing_long(text, tmp_path) == ["test_step.py"]


# docs/architecture.md


@pytest.fixture(scope="module")
def architecture():
    """The module docs/architecture.py, which draws the imports into its page."""
    path = source_tree.ROOT / "docs" / "architecture.py"
    spec = importlib.util.spec_from_file_location("architecture", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawing_is_that_of_the_code(architecture, trees):
    text = architecture.PAGE.read_text()
    drawn = architecture.page(text, source_tree.unit_graph(trees))
    assert drawn == text, "run python docs/architecture.py"


def test_the_drawing_shows_every_unit_and_arrow(architecture):
    graph = {unit: set() for layer in source_tree.LAYERS for unit in layer}
    graph["cli"] = {"commands", "errors"}
    drawn = architecture.drawing(graph)
    assert all(f"│ {unit} │" in drawn for unit in graph)
    assert "        cli ──▶ commands errors" in drawn.splitlines()
    assert drawn.count("──▶") == 1
    text = f"a\n{architecture.BEGIN}\nold\n{architecture.END}\nb\n"
    made = architecture.page(text, graph)
    assert drawn in made and "old" not in made and made.endswith("\nb\n")
    assert architecture.page(made, graph) == made
    with pytest.raises(ValueError, match="needs one line"):
        architecture.page("a\nb\n", graph)


def test_where_to_add_something_names_what_is_there(architecture):
    """Each path in the table exists, and each table it names stands in that file."""
    section = architecture.PAGE.read_text().partition("\n## Where do I add")[2]
    rows = [row for row in section.splitlines() if row.startswith("| a")]
    assert len(rows) == 15
    for row in rows:
        names = re.findall(r"`([\w./]+)`", row)
        paths = [n for n in names if "/" in n or n.endswith(".py")]
        roots = [source_tree.ROOT if p.startswith("docs/") else PACKAGE for p in paths]
        files = [root / path for root, path in zip(roots, paths, strict=True)]
        assert [str(file) for file in files if not file.exists()] == []
        text = "".join(file.read_text() for file in files if file.is_file())
        assert [n for n in set(names) - set(paths) if n not in text] == [], row


def test_the_page_has_a_paragraph_for_every_room(architecture):
    rooms = architecture.PAGE.read_text().partition("\n## Rooms\n")[2]
    rooms = rooms.partition("\n## ")[0]
    units = [unit for layer in source_tree.LAYERS for unit in layer]
    assert [u for u in units if not re.search(rf"`[^`]*\b{u}(/|\.py)", rooms)] == []


# CHANGELOG.md


def missing_names(text: str, trees: dict[str, ast.Module]) -> list[str]:
    """New names of the table of moved imports that are not in the source."""
    out = []
    for new in re.findall(r"^\| `[\w.]+` \| `([\w.]+)` \|$", text, re.M):
        module, _, name = f"{NAME}.{new}".rpartition(".")
        if f"{NAME}.{new}" not in trees and name not in _defined(trees.get(module)):
            out.append(new)
    return out


def _defined(tree: ast.Module | None) -> set[str]:
    nodes = tree.body if tree else []
    names = {n.name for n in nodes if hasattr(n, "name")}
    targets = [
        t for n in nodes for t in getattr(n, "targets", [getattr(n, "target", 0)])
    ]
    return names | {t.id for t in targets if isinstance(t, ast.Name)}


def test_moved_imports_lead_to_what_is_there(trees):
    text = (source_tree.ROOT / "CHANGELOG.md").read_text()
    assert text.count("\n| `") > 50
    assert missing_names(text, trees) == []


def test_a_moved_import_to_nowhere_is_found():
    trees = {"hypelora_jax.a": ast.parse("class C: pass\nX = 1\nY: int = 2")}
    names = ("a", "a.C", "a.X", "a.Y", "a.Z", "b", "b.C")
    text = "\n".join(f"| `old` | `{name}` |" for name in names)
    assert missing_names(text, trees) == ["a.Z", "b", "b.C"]


# From the command to the step


def hops(page: str) -> list[str]:
    """The numbered list that follows the heading, by full names."""
    section = page.partition("\n## From the command to the step\n")[2]
    found = HOP.findall(section.partition("\n## ")[0])
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [name for _, name in found]


def definitions(tree: ast.Module) -> list[source_tree.Function | ast.ClassDef]:
    """Functions and classes of a module; to make an object is to call its class."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [*source_tree.functions(tree), *classes]


def calls(function: str, module: str, tree: ast.Module) -> set[str]:
    """Full names of what a function calls, and what the functions of its own module
    that it calls do.
    """
    bound = source_tree.bound_names(tree)
    bound |= {f.name: f"{module}.{f.name}" for f in definitions(tree)}
    bodies = {bound[f.name]: f for f in definitions(tree)}
    out: set[str] = set()
    waiting = [function]
    while waiting:
        new = set(_called(bodies[waiting.pop()], bound)) - out
        out |= new
        waiting += [name for name in new if name in bodies]
    return out


def _called(
    definition: source_tree.Function | ast.ClassDef, bound: dict[str, str]
) -> Iterator[str]:
    for node in ast.walk(definition):
        if isinstance(node, ast.Call):
            yield source_tree.dotted(node.func, bound)
        elif isinstance(node, source_tree.Function):
            yield from (source_tree.dotted(d, bound) for d in node.decorator_list)


def missing_hops(names: list[str], trees: dict[str, ast.Module]) -> list[str]:
    """What the code does not do as the list says.

    A hop is called by the one before it. A function that only prepares what an earlier
    one hands on calls nothing of the list: then an earlier one calls the next.
    """
    out = []
    called: set[str] = set()
    for name, following in zip(names, names[1:], strict=False):
        module = name.rpartition(".")[0]
        if module not in trees:
            return [*out, f"{name}: no module {module}"]
        own = {f"{module}.{f.name}" for f in definitions(trees[module])}
        if name not in own:
            return [*out, f"{name}: nothing of that name in {module}"]
        called |= calls(name, module, trees[module])
        if following not in called:
            out.append(f"{following} is not called by {name} or a hop before it")
    return out


def test_six_hops_lead_from_the_command_to_the_step(trees):
    page = (source_tree.ROOT / "docs" / "architecture.md").read_text()
    names = hops(page)
    assert names[0] == "hypelora_jax.commands.train.run" and names[-1] == "jax.jit"
    assert len(names) <= MAX_HOPS
    assert missing_hops(names, trees) == []


def test_a_wrong_hop_is_found():
    texts = {
        "hypelora_jax.commands.train": "from hypelora_jax.train import loop, session\n"
        "def run(args): train(args)\n"
        "def train(args): _one(args)\n"
        "def _one(args): loop.train(session.open_session(args))\n",
        "hypelora_jax.train.session": "def open_session(args): return args",
        "hypelora_jax.train.loop": "from hypelora_jax.train.step import build_step\n"
        "def train(session): step = build_step(session)\n",
        "hypelora_jax.train.step": "import functools, jax\n"
        "def build_step(session):\n"
        "    @jax.jit\n    def step(x): return x\n    return step\n",
    }
    trees = {name: ast.parse(text) for name, text in texts.items()}
    page = "\n## From the command to the step\n\n" + "\n".join(
        f"{i}. `{name}` does it" for i, name in enumerate(RIGHT, 1)
    )
    assert hops(page + "\n\n## Rooms\n\n1. `other`") == list(RIGHT)
    assert missing_hops(list(RIGHT), trees) == []
    leap = [*RIGHT[:3], *RIGHT[4:]]  # without the loop nothing calls build_step
    assert len(missing_hops(leap, trees)) == 1
    absent = [n.replace("build_step", "make_step") for n in RIGHT]
    assert "make_step is not called" in missing_hops(absent, trees)[0]
    assert "nothing of that name" in missing_hops(absent, trees)[1]
    gone = [n.replace("train.loop", "train.loops") for n in RIGHT]
    assert "no module" in missing_hops(gone, trees)[-1]


RIGHT = (
    "hypelora_jax.commands.train.run",
    "hypelora_jax.commands.train.train",
    "hypelora_jax.train.session.open_session",
    "hypelora_jax.train.loop.train",
    "hypelora_jax.train.step.build_step",
    "jax.jit",
)
