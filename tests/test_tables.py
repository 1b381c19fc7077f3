"""No key of the five tables is asked for outside its table and its entry's file.

`task.kind == "regression"` knows one entry; `objective.probabilistic` works for every
entry that will come. So a key is spelled where it is data (a field's default, a value
that is written to a file) and in two places of code: the table, and the file of the
entry. Everywhere else the source's syntax tree is searched for

- comparisons with a key (==, !=, is, in, not in), and cases of a `match`;
- collections and Literals of keys, dicts and lookups by a key, `"a b".split()`;
- startswith, endswith, removeprefix and removesuffix of a name.

Most keys mean one thing, and any such use of one is a mistake. WORDS are keys that mean
other things as well: "head" and "lora" are parts of the parameter tree and sections of
a config, "none" is the absence of a penalty. For them the other side decides: a name
by which the table is asked (SELECTORS, such as `settings.method`) makes it a mistake,
and so do two keys of one table in one collection that holds more than names of PARTS.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import source_tree

# Name of each table, the module it stands in, and the names its keys go by.
TABLES = {
    "FAMILIES": ("hypelora_jax.families", "family families model_type architecture"),
    "HEADS": ("hypelora_jax.families", "kind kinds head heads"),
    "CONDITIONERS": (
        "hypelora_jax.hyper",
        "source sources condition conditions conditioning conditioner conditioners",
    ),
    "OBJECTIVES": (
        "hypelora_jax.objectives",
        "kind kinds objective objectives task tasks",
    ),
    "METHODS": ("hypelora_jax.model", "method methods"),
}
SELECTORS = {table: frozenset(names.split()) for table, (_, names) in TABLES.items()}
# Keys that are also ordinary words of the code.
WORDS = frozenset(
    "none head lora full given classes task text instance set noise".split()
)
# Top-level names of the parameter tree and sections of a config.
PARTS = frozenset(
    "backbone head cond hyper lora loss model blend data optim mesh ckpt log "
    "uncertainty condition tasks generate".split()
)
# `config.kind` says little: what it is the kind of stands before the dot.
VAGUE = frozenset(("kind", "kinds", "name", "key", "type", "value"))
AFFIXES = frozenset(("startswith", "endswith", "removeprefix", "removesuffix"))
LOOKUPS = frozenset(("get", "pop", "setdefault", "index", "count"))


class Key(NamedTuple):
    """A key of a table, and the modules that may ask for it."""

    table: str
    name: str
    homes: frozenset[str]


def entry_modules(tree: ast.Module, table: str, module: str) -> dict[str, set[str]]:
    """Where the values of a table are defined, by the imports of the table's file.

    A value is a name (`bert.FAMILY`), or a call (`bert.family()`, `Kind(bert.build)`).
    """
    bound = source_tree.bound_names(tree)
    out: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        named = isinstance(target, ast.Name) and target.id == table
        if not named or not isinstance(node.value, ast.Dict):
            continue
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            call = isinstance(value, ast.Call)
            for part in [value.func, *value.args] if call else [value]:
                full = source_tree.dotted(part, bound)
                if isinstance(key, ast.Constant) and full.startswith("hypelora_jax."):
                    own = {full.rpartition(".")[0], full} - {module}
                    out.setdefault(key.value, set()).update(own)
    return out


def keys_of_tables() -> list[Key]:
    """The keys as they are at run time, with their homes.

    The contracts of types.py are nobody's home, though an entry may be made there. A
    family says which heads it takes (`Family.heads`), so it may name heads.
    """
    out: list[Key] = []
    families: set[str] = set()
    for table, (name, _) in TABLES.items():  # FAMILIES come first
        module = importlib.import_module(name)
        homes = entry_modules(ast.parse(inspect.getsource(module)), table, name)
        for key, value in getattr(module, table).items():
            own = {name, *homes.get(key, ())}
            if inspect.isfunction(value):
                own.add(value.__module__)
            if table == "HEADS":
                own |= families
            if table == "FAMILIES":
                families |= own
            out.append(Key(table, key, frozenset(own - {"hypelora_jax.types"})))
    return out


def uses(module: str, tree: ast.Module, keys: list[Key]) -> list[str]:
    """What a module does with keys of tables whose home it is not."""
    own = {key.name for key in keys if module in key.homes}
    search = _Search([key for key in keys if key.name not in own], tree)
    return [f"{module}:{line}: {why}" for line, why in sorted(set(search.found()))]


class _Search:
    """The uses of keys in one source."""

    def __init__(self, keys: list[Key], tree: ast.Module):
        self.keys, self.tree = keys, tree
        self.strict = {key.name for key in keys} - WORDS
        self.constants = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }

    def found(self) -> Iterator[tuple[int, str]]:
        for node in ast.walk(self.tree):
            for name in self._asked(node):
                yield node.lineno, f"{name!r} in `{ast.unparse(node)[:60]}`"

    def _asked(self, node: ast.AST) -> Iterator[str]:
        """Keys a node asks for."""
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for op, one, other in zip(node.ops, sides, sides[1:], strict=False):
                yield from self._compared(op, one, other)
        elif isinstance(node, ast.Match):
            for case in node.cases:
                yield from self._matched(case.pattern, identifiers(node.subject))
        elif isinstance(node, ast.Dict):
            yield from self._held([key for key in node.keys if key is not None])
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            yield from self._listed(node.elts)
        elif isinstance(node, ast.Subscript):
            yield from self._looked_up(node.value, node.slice)
        elif isinstance(node, ast.Call):
            yield from self._called(node)

    def _compared(self, op: ast.cmpop, one: ast.AST, other: ast.AST) -> Iterator[str]:
        if isinstance(op, ast.In | ast.NotIn):
            text = self._text(one)
            if text is not None:
                yield from self._against(text, other)
                if self._selects(other, lambda key: text in key):  # "hyper" in method
                    yield text
            for element in elements(other):
                if (held := self._text(element)) is not None:
                    yield from self._against(held, one)
        elif isinstance(op, ast.Eq | ast.NotEq | ast.Is | ast.IsNot):
            for key, side in ((one, other), (other, one)):
                if (text := self._text(key)) is not None:
                    yield from self._against(text, side)

    def _matched(self, pattern: ast.pattern, subject: list[str]) -> Iterator[str]:
        if isinstance(pattern, ast.MatchValue):
            text = self._text(pattern.value)
            if text is not None and self._is_asked(text, subject):
                yield text
        elif isinstance(pattern, ast.MatchMapping):
            for key, inner in zip(pattern.keys, pattern.patterns, strict=True):
                text = self._text(key)
                if text in self.strict:
                    yield text
                yield from self._matched(inner, [text or ""])
        elif isinstance(pattern, ast.MatchClass):
            for name, inner in zip(
                pattern.kwd_attrs, pattern.kwd_patterns, strict=True
            ):
                yield from self._matched(inner, [name])
            for inner in pattern.patterns:
                yield from self._matched(inner, subject)
        else:
            inside = getattr(pattern, "patterns", [getattr(pattern, "pattern", None)])
            for inner in inside:
                if inner is not None:
                    yield from self._matched(inner, subject)

    def _held(self, nodes: list[ast.expr]) -> Iterator[str]:
        """Keys of a dict: each that means one thing, or several of one table."""
        texts = {self._text(node) for node in nodes} - {None}
        yield from texts & self.strict
        yield from self._several(texts)

    def _listed(self, nodes: list[ast.expr]) -> Iterator[str]:
        """Elements of a collection: several of one table, or nothing but keys."""
        texts = {self._text(node) for node in nodes}
        if None not in texts and texts & self.strict:
            yield from texts & self.strict
        yield from self._several(texts - {None})

    def _several(self, texts: set[str]) -> Iterator[str]:
        if texts <= PARTS:
            return
        for table in TABLES:
            held = texts & {key.name for key in self.keys if key.table == table}
            if len(held) > 1:
                yield from held

    def _looked_up(self, value: ast.expr, key: ast.expr) -> Iterator[str]:
        # METHODS["lora"] names an entry of the table and decides nothing.
        text = self._text(key)
        if text is not None and identifiers(value)[-1:] not in ([t] for t in TABLES):
            yield from self._against(text, value)

    def _called(self, node: ast.Call) -> Iterator[str]:
        if isinstance(node.func, ast.Name) and node.func.id == "dict":
            yield from self._held([ast.Constant(word.arg) for word in node.keywords])
        if not isinstance(node.func, ast.Attribute):
            return
        receiver, name = node.func.value, node.func.attr
        if name in AFFIXES and node.args:
            inside = elements(node.args[0]) or [node.args[0]]
            for text in filter(None, map(self._text, inside)):
                bare = text.strip("./_")
                if bare in self.strict or self._selects(
                    receiver, lambda key, text=text: text in key
                ):
                    yield text
        elif name in LOOKUPS and node.args:
            yield from self._looked_up(receiver, node.args[0])
        elif name == "split" and (text := self._text(receiver)):
            yield from self._listed([ast.Constant(word) for word in text.split()])

    def _against(self, text: str, other: ast.AST) -> Iterator[str]:
        """The text, if it is a key and is asked for by what it is compared with."""
        if self._is_asked(text, identifiers(other)):
            yield text

    def _is_asked(self, text: str, names: list[str]) -> bool:
        tables = {key.table for key in self.keys if key.name == text}
        return text in self.strict or any(selects(names, t) for t in tables)

    def _selects(self, other: ast.AST, wanted) -> bool:
        """Is the other side a name for keys of a table that has a wanted one?"""
        names = identifiers(other)
        tables = {key.table for key in self.keys if wanted(key.name)}
        return any(selects(names, table) for table in tables)

    def _text(self, node: ast.AST) -> str | None:
        """A string constant, or the name of one at the top of the source."""
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(node, ast.Name):
            value = self.constants.get(node.id)
        return value if isinstance(value, str) else None


def elements(node: ast.AST) -> list[ast.expr]:
    """Elements of a collection, written plainly or as frozenset((...))."""
    if isinstance(node, ast.Call) and len(node.args) == 1:
        if source_tree.dotted(node.func, {}) in ("frozenset", "set", "tuple", "list"):
            return elements(node.args[0])
    if isinstance(node, ast.Dict):
        return [key for key in node.keys if key is not None]
    return node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else []


def identifiers(node: ast.AST | None) -> list[str]:
    """Names an expression is made of: run.settings.method -> run, settings, method."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*identifiers(node.value), node.attr]
    if isinstance(node, ast.NamedExpr):
        return [*identifiers(node.target), *identifiers(node.value)]
    if isinstance(node, ast.Subscript):
        return [*identifiers(node.value), *_constant(node.slice)]
    if isinstance(node, ast.Call):
        function, args = node.func, node.args
        if isinstance(function, ast.Attribute) and function.attr in LOOKUPS and args:
            return [*identifiers(function.value), *_constant(args[0])]
        if isinstance(function, ast.Name) and function.id == "getattr":
            return [
                name for arg in args for name in (*identifiers(arg), *_constant(arg))
            ]
        if isinstance(function, ast.Name) and args:  # str(method), kind_of(task)
            return [function.id, *identifiers(args[0])]
        if isinstance(function, ast.Attribute) and hasattr(str, function.attr):
            return identifiers(function.value)  # method.lower()
        return identifiers(function)
    if isinstance(node, ast.BoolOp):
        return [name for value in node.values for name in identifiers(value)]
    return []


def _constant(node: ast.AST) -> list[str]:
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return [node.value] if text else []


def selects(names: list[str], table: str) -> bool:
    """Is the last of the names one by which keys of the table go?

    After a vague one, as in `head.kind`, the name before it says of what. A kind of
    nothing in particular may be that of any table with kinds.
    """
    if not names:
        return False
    last = set(names[-1].lower().split("_"))
    before = set(names[-2].lower().split("_")) if names[:-1] else set()
    if last & VAGUE:
        own = SELECTORS[table] - VAGUE
        return bool((last | before) & own) or (
            not before and bool(last & SELECTORS[table])
        )
    return bool(last & SELECTORS[table])


@pytest.fixture(scope="module")
def keys() -> list[Key]:
    return keys_of_tables()


@pytest.mark.parametrize("path", source_tree.files(), ids=source_tree.module_of)
def test_no_key_of_a_table_is_asked_for(path, keys):
    module = source_tree.module_of(path)
    assert uses(module, ast.parse(path.read_text()), keys) == []


def test_every_table_has_keys_and_each_key_a_home(keys):
    assert {key.table for key in keys} == set(TABLES)
    assert all(TABLES[key.table][0] in key.homes for key in keys)
    # Words among the keys that this test does not know would be refused too strictly.
    assert PARTS & {key.name for key in keys} <= WORDS


# The test of the test: tables of its own, and one small source each.

HOMES = {
    "FAMILIES": ("bert", "roberta"),
    "HEADS": ("classes", "regression"),
    "CONDITIONERS": ("none", "given"),
    "OBJECTIVES": ("classification", "regression"),
    "METHODS": ("full head lora lora_frozen_a hyper_mlp hyper_transformer".split()),
}
SAMPLE = [
    Key(table, name, frozenset({TABLES[table][0], f"{TABLES[table][0]}.{name}"}))
    for table, names in HOMES.items()
    for name in names
]


def found(source: str, module: str = "hypelora_jax.train.loop") -> list[str]:
    return uses(module, ast.parse(source), SAMPLE)


@pytest.mark.parametrize(
    "source",
    [
        'if task.kind == "regression": pass',
        'if "bert" != config.family: pass',
        'if x is "hyper_mlp": pass',
        'kind = task.kind\nif kind != "classification": pass',
        'BERT = "bert"\nif x == BERT: pass',
        'if settings.method in ("full", "head"): pass',
        'if settings.method not in ["hyper_mlp"]: pass',
        'if x in {"hyper_mlp", "other"}: pass',
        'if x in frozenset(("roberta",)): pass',
        'if "lora_frozen_a" in names: pass',
        'ADAPTED = ("lora", "lora_frozen_a")',
        'ADAPTED = ("hyper_mlp",)',
        'ADAPTED = "lora full".split()',
        'kind: Literal["classification", "regression"]',
        'match x:\n    case "bert" | "roberta": pass',
        'match x, y:\n    case (1, "regression"): pass',
        'match x:\n    case {"any": "hyper_mlp"}: pass',
        'PAD = {"roberta": 1}',
        "PAD = dict(roberta=1, bert=0)",
        'PAD = {"none": 1, "given": 0}',
        'RATES = {"full": 1, "lora": 2}',
        'RATES = {"head": 1, "lora": 2, "full": 3}',
        'x = names["regression"]',
        'x = names.get("roberta", 0)',
        'if key.startswith("bert."): pass',
        'if x.endswith(("_other", "hyper_mlp")): pass',
        'if settings.method.startswith("hyper"): pass',
        'if method.endswith("frozen_a"): pass',
        'if "hyper" in settings.method: pass',
        'x = family.removeprefix("xlm_") if family.startswith("ro") else family',
    ],
)
def test_a_key_that_is_asked_for_is_found(source):
    assert len(found(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        'if settings.method == "full": pass',
        'if own["method"] == "head": pass',
        'if record.get("method") != "lora": pass',
        'if getattr(config, "method") == "lora": pass',
        'if (method := settings.method) == "full": pass',
        'if settings.method.lower() == "full": pass',
        'if conditioning == "given": pass',
        'if condition.source != "none": pass',
        'if condition.kind == "none": pass',
        'if head.kind == "classes": pass',
        'if settings.method in ("full", "other"): pass',
        'if "lora" in settings.methods: pass',
        'x = by_method["lora"]',
        'match settings.method:\n    case "full": pass',
        'match settings:\n    case Settings(method="lora"): pass',
        'match record:\n    case {"method": "head"}: pass',
        'if method.startswith("lora"): pass',
    ],
)
def test_a_word_is_found_where_a_table_is_asked(source):
    assert len(found(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        # the parameter tree, and the sections of a config
        'tree = {"backbone": b, "head": h}',
        'own = {"head": h, "lora": f, "hyper": p}',
        'base = {n: params[n] for n in ("backbone", "head", "lora")}',
        'x = params["head"]["out"]',
        'if "lora" in params: pass',
        'if name in ("backbone", "head", "loss"): pass',
        'if path[0] == "head": pass',
        'if path.startswith("head/"): pass',
        'x = params.get("head", {})',
        'SECTIONS = {"model": M, "lora": L, "head": H, "optim": O}',
        'match path:\n    case ["head", *rest]: pass',
        # other nones, fulls and kinds; an old record's hyper.cond
        'if hyper.get("cond") != "given": pass',
        'if config.anneal == "none": pass',
        'if config.penalty != "none" or loss.kind == "none": pass',
        'if uncertainty.kind != "none": pass',
        'CHOICES = ("none", "confidence", "margin")',
        'if fields.get("bias", "none") != "none": pass',
        # data, not a question
        'settings = Settings(method="hyper_mlp")',
        'task = Task("files", "regression", (), ("pearson",), False)',
        'def f(method: str = "lora_frozen_a"): return "regression"',
        'fields = {"problem_type": "regression", "bias": "none"}',
        'entry = METHODS["lora_frozen_a"]',
        "if settings.method in METHODS: pass",
        '"""The families are bert and roberta."""',
    ],
)
def test_other_uses_are_free(source):
    assert found(source) == []


def test_the_table_and_the_file_of_an_entry_are_free_for_their_own_keys():
    source = 'if x == "roberta": pass'
    assert len(found(source)) == 1
    assert found(source, "hypelora_jax.families") == []
    assert found(source, "hypelora_jax.families.roberta") == []
    assert len(found(source, "hypelora_jax.families.bert")) == 1
    number = 'if x == "regression": pass'  # a head and an objective
    assert found(number, "hypelora_jax.objectives.regression") == []
    assert len(found('if x == "bert": pass', "hypelora_jax.families.roberta")) == 1


def test_the_file_of_an_entry_is_found_by_the_imports_of_the_table():
    tree = ast.parse(
        "from hypelora_jax.families import bert\n"
        "from hypelora_jax.families.roberta import ROBERTA\n"
        "from hypelora_jax.types import Family\n"
        'FAMILIES: dict[str, Family] = {"a": bert.FAMILY, "b": ROBERTA, '
        '"c": bert.family(3), "d": Family(1)}\n'
    )
    homes = entry_modules(tree, "FAMILIES", "hypelora_jax.families")
    assert "hypelora_jax.families.bert" in homes["a"] & homes["c"]
    assert "hypelora_jax.families.roberta" in homes["b"]
    assert homes["d"] == {"hypelora_jax.types", "hypelora_jax.types.Family"}
