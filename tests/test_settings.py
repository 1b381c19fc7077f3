import dataclasses
import json
import re

import pytest

from hypelora_jax.commands.shared import names
from hypelora_jax.config import loading, ranges
from hypelora_jax.config import settings as settings_lib
from hypelora_jax.config.settings import SECTIONS, Settings, from_dict
from hypelora_jax.errors import UserError


def test_json_of_settings_gives_the_settings_back():
    tree = {"method": "lora", "lora": {"rank": 4, "layers": [0, 2], "targets": ["q"]}}
    settings = from_dict(tree)
    assert settings.lora.layers == (0, 2) and settings.lora.targets == ("q",)
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(settings)))) == settings
    assert hash(settings) == hash(from_dict(tree))  # static arguments must hash


def test_patterns_are_dicts_on_the_command_line_and_in_files_and_pairs_in_json():
    wanted = (("query", 4), (r"layer\.1\..*", 2))
    flag = "--config.lora.rank_pattern=" + repr(dict(wanted))
    flags = [flag, "--config.loss.class_weights=1,9.5", "--config.lora.exclude=v"]
    settings = loading.load_settings("common", flags)
    assert settings.lora.rank_pattern == wanted and settings.lora.exclude == "v"
    assert settings.loss.class_weights == (1, 9.5)
    config = loading.load_config("common")
    config.lora.rank_pattern = dict(wanted)
    assert from_dict(config.to_dict()).lora.rank_pattern == wanted
    saved = json.loads(json.dumps(dataclasses.asdict(settings)))
    assert saved["lora"]["rank_pattern"] == [list(pair) for pair in wanted]
    assert from_dict(saved) == settings and hash(from_dict(saved)) == hash(settings)


@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        (["=None"], None),
        (["=none"], None),
        (["=0,1"], (0, 1)),
        (["=0,1", "=None"], None),
        (["=None", "=0,1"], (0, 1)),
    ],
)
def test_none_is_understood_where_it_is_the_default(flags, layers):
    flags = [f"--config.lora.layers{flag}" for flag in flags]
    settings = loading.load_settings("common", ["--config.uncertainty.dropout=None"])
    assert settings.uncertainty.dropout is None
    assert loading.load_settings("common", flags).lora.layers == layers


def test_names_with_commas_are_a_list_of_names():
    flags = ["--config.lora.targets=q, value", "--config.lora.exclude=k,o"]
    settings = loading.load_settings("common", flags)
    assert settings.lora.targets == ("q", "value")
    assert settings.lora.exclude == ("k", "o")
    regex = loading.load_settings("common", ["--config.lora.targets=.*(q|v){1,2}"])
    assert regex.lora.targets == ".*(q|v){1,2}"


def test_nothing_given_is_the_defaults():
    assert from_dict({}) == Settings()


CHOICES = {
    f"{section}.{field}" if section else field: allowed
    for section, kind in {"": Settings, **SECTIONS}.items()
    for field, hint in ranges.hints(kind).items()
    if (allowed := ranges.choices(hint))
}


def of_path(name: str, value: object) -> dict:
    section, _, field = name.rpartition(".")
    return {section: {field: value}} if section else {field: value}


@pytest.mark.parametrize("name", [*CHOICES, *names.TABLES])
def test_a_value_outside_the_choices_is_refused_with_the_choices(name):
    with pytest.raises(UserError, match=f"config.{name} is 'nonsense'") as caught:
        names.check(from_dict(of_path(name, "nonsense")))
    wanted = (CHOICES | names.TABLES)[name]
    assert str(caught.value).endswith(f"; expected one of {', '.join(wanted)}")


def test_a_name_of_a_table_is_for_the_table_to_refuse():
    assert len(CHOICES) == 21 and not CHOICES.keys() & names.TABLES.keys()
    for name in names.TABLES:
        from_dict(of_path(name, "of a table that is not imported here"))


def test_conditions_that_are_given_were_a_kind_of_sites_once():
    old = {"hyper": {"cond": "given", "cond_dim": 5}}
    settings = from_dict(old)
    given = {"source": "given", "join": "replace", "width": 5}
    assert settings == from_dict({"hyper": {"cond_dim": 5}, "condition": given})
    assert settings.hyper.cond == "learned"
    assert old["hyper"]["cond"] == "given", "the record is left as it is"


def test_a_deleted_field_is_read_at_its_old_default_alone(monkeypatch):
    gone = {"lora.magic": 3, "hyper.shape": (1, 2), "luck": "none"}
    monkeypatch.setattr(settings_lib, "DELETED", gone)
    old = {"lora": {"magic": 3, "rank": 2}, "hyper": {"shape": [1, 2]}, "luck": "none"}
    assert from_dict(old) == from_dict({"lora": {"rank": 2}})
    for name, value in (("lora.magic", 4), ("hyper.shape", [2]), ("luck", "some")):
        with pytest.raises(UserError, match=f"config.{name} is .*no such field"):
            from_dict(of_path(name, value))


@pytest.mark.parametrize("name", ["", *SECTIONS])
def test_an_unknown_field_is_refused_with_the_known_ones(name):
    tree = {name: {"nonsense": 1}} if name else {"nonsense": 1}
    with pytest.raises(UserError, match="has no field 'nonsense'; expected one of"):
        from_dict(tree)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"lora": {"rank": 0}}, "lora.rank is 0; expected at least 1"),
        ({"lora": {"dropout": 1.0}}, "expected below 1"),
        (
            {"lora": {"alpha": float("nan")}},
            "lora.alpha is nan; expected a finite",
        ),
        ({"lora": {"layers": ["a"]}}, "expected whole numbers"),
        ({"lora": {"rank": "8"}}, "lora.rank is '8'; expected a whole number"),
        ({"lora": {"rank": True}}, "lora.rank is True; expected a whole number"),
        ({"lora": {"rslora": 1}}, "lora.rslora is 1; expected true or false"),
        ({"lora": {"alpha": float("nan")}}, "alpha is nan; expected a finite number"),
        ({"lora": {"targets": None}}, "targets is None; expected names or a text"),
        ({"lora": {"alpha_pattern": {"q": 10**400}}}, "expected {"),
        ({"data": {"train": 3}}, "data.train is 3; expected a text"),
        ({"lora": 3}, "config.lora is 3; expected a section of fields"),
        ({"hyper": None}, "config.hyper is None; expected a section of fields"),
        ({"lora": {"targets": []}}, "lora.targets is (); expected names, or one"),
        ({"lora": {"exclude": [1]}}, "lora.exclude is (1,); expected names or a"),
        ({"lora": {"rank_pattern": {"q": 0}}}, "has rank 0 for 'q'; expected a whole"),
        ({"lora": {"rank_pattern": {"q": 2.0}}}, "has rank 2.0 for 'q'"),
        ({"lora": {"rank_pattern": "q=2"}}, "rank_pattern is 'q=2'; expected {"),
        ({"lora": {"alpha_pattern": {"q": "2"}}}, "alpha_pattern is {'q': '2'}"),
        ({"lora": {"alpha_pattern": 3}}, "alpha_pattern is 3; expected {"),
        (
            {"lora": {"alpha_pattern": {"q": float("inf")}}},
            "alpha_pattern is {'q': inf}",
        ),
        ({"lora": {"alpha_pattern": [["q", 1], ["q", 2]]}}, "expected each name once"),
        ({"hyper": {"widths": []}}, "hyper.widths"),
        ({"hyper": {"widths": [0]}}, "hyper.widths"),
        ({"hyper": {"widths": [2.5]}}, "expected whole numbers"),
        ({"blend": {"alpha": 1.5}}, "expected 0 to 1"),
        ({"blend": {"b": "multiply"}}, "expected b_init=lora"),
        ({"loss": {"temperature": 0.0}}, "loss.temperature"),
        ({"loss": {"temperature": "cold"}}, "loss.temperature"),
        ({"loss": {"temperature": True}}, "loss.temperature"),
        ({"loss": {"temperature": "learned", "anneal": "linear"}}, "anneal=none"),
        ({"loss": {"smoothing": 1.0}}, "smoothing is 1.0; expected below 1"),
        ({"loss": {"class_weights": "even"}}, "class_weights is 'even'; expected none"),
        ({"loss": {"class_weights": [1, 0]}}, "class_weights is (1, 0); expected none"),
        ({"loss": {"class_weights": []}}, "class_weights is (); expected none"),
        ({"loss": {"class_weights": [1, True]}}, "class_weights is (1, True)"),
        ({"loss": {"anneal_share": 1.5}}, "anneal_share is 1.5; expected at most 1"),
        ({"loss": {"soft_bins": 0}}, "loss.soft_bins is 0"),
        ({"loss": {"penalty_weight": -1.0}}, "loss.penalty_weight is -1.0"),
        ({"data": {"calibration_fraction": 1.0}}, "calibration_fraction"),
        ({"data": {"max_length": 2}}, "data.max_length"),
        ({"optim": {"lr": float("nan")}}, "optim.lr is nan"),
        ({"optim": {"lr": -1.0}}, "optim.lr is -1.0"),
        ({"optim": {"batch_size": 32, "accumulate": 5}}, "divisible by accumulate"),
        ({"ckpt": {"keep": 0}}, "ckpt.keep"),
        ({"uncertainty": {"samples": 0}}, "uncertainty.samples is 0"),
        (
            {"uncertainty": {"dropout": 1.0}},
            "uncertainty.dropout is 1.0; expected 0 or more, and below 1",
        ),
        ({"seed": 2**31 - 5, "uncertainty": {"samples": 9}}, "below 2"),
    ],
)
def test_a_value_out_of_range_is_refused(tree, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        from_dict(tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"uncertainty": {"kind": "random_a"}}, "needs hyper.a=random and method"),
        (
            {"method": "lora", "uncertainty": {"kind": "hyper_ensemble"}},
            "needs hyper.cond=learned .* method=lora",
        ),
        (
            {"hyper": {"cond": "onehot"}, "uncertainty": {"kind": "hyper_ensemble"}},
            "hyper.cond=onehot, method=hyper_mlp",
        ),
        (
            {
                "condition": {"source": "given"},
                "uncertainty": {"kind": "hyper_ensemble"},
            },
            "got condition.source=given, method=hyper_mlp",
        ),
    ],
)
def test_a_kind_of_uncertainty_the_network_cannot_give_is_refused(tree, message):
    with pytest.raises(UserError, match=message):
        names.check(from_dict(tree))


def test_the_names_that_programs_outside_rely_on_exist():
    names = """method seed num_seeds seed_scope select_on
    model: path revision dtype remat
    hyper: a a_init init widths cond layers
    blend: a b alpha anneal
    lora: rank alpha rslora dropout targets layers
    loss: name temperature weight
    data: source task dir train calibration validation test text text_b label
      max_length calibration_fraction on_bad_row pad_to_max
    optim: lr head_lr num_epochs batch_size accumulate weight_decay decay_all schedule
      warmup clip eps
    mesh: data fsdp model
    ckpt: every_steps keep
    uncertainty: kind samples"""
    node = Settings()
    for word in names.split():
        if word.endswith(":"):
            node = getattr(Settings(), word[:-1])
        else:
            assert hasattr(node, word), word
    assert (Settings().data.max_length, Settings().data.calibration_fraction) == (
        128,
        0.1,
    )


def test_the_encoder_of_label_names_needs_no_hyper_network():
    tree = {"method": "lora", "condition": {"encoder": "random:tiny"}}
    names.check(from_dict(tree | {"head": {"kind": "label_text"}}))
    with pytest.raises(UserError, match="method=lora has no hyper-network"):
        names.check(from_dict(tree))
