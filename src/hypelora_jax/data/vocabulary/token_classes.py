"""What transformers' tokenizer classes make of the files: rules for each kind of model.

The settings of `tokenizer_config.json` mean the same whichever form the vocabulary has.
Where `tokenizer.json` says something else, they win. This and the defaults are those of
transformers 4 and 5.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import tokenizers
from etils import epath
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

from hypelora_jax import files
from hypelora_jax.data.vocabulary import token_settings
from hypelora_jax.data.vocabulary.forms import Form, read_form, with_tokens
from hypelora_jax.data.vocabulary.token_settings import ROLES, TokenSettings
from hypelora_jax.errors import UserError

# Special tokens in the order of ROLES.
SENTENCE = ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>")
BRACKET = (None, None, "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
# Classes without rules of their own; "" is no class at all.
GENERAL = ("", "PreTrainedTokenizer", "TokenizersBackend")

Flags = Mapping[str, Any]  # settings by name; each is True, False or None
Marked = tuple[str, int]  # a token and its id


class Vocabulary(NamedTuple):
    """A tokenizer, its special tokens by role, and the side where it cuts texts."""

    inner: tokenizers.Tokenizer
    roles: dict[str, str]
    side: str


class Rules(NamedTuple):
    """What transformers' classes for one kind of model do.

    `flags` and the special tokens `usual`, in the order of `ROLES`, count where no file
    says otherwise. `apply` sets flags in a part of a tokenizer. `pairs` builds the
    processor that puts the tokens of the two roles `ends` around one text or two.
    """

    model: type
    classes: tuple[str, ...]
    usual: tuple[str | None, ...]
    flags: Flags
    apply: Callable[[Any, Flags], None]
    ends: tuple[str, str]
    pairs: Callable[[Marked, Marked], processors.PostProcessor]


def _cases(part: Any, flags: Flags) -> None:
    if isinstance(part, normalizers.BertNormalizer):
        part.lowercase = flags["do_lower_case"]
        part.strip_accents = flags["strip_accents"]
        part.handle_chinese_chars = flags["tokenize_chinese_chars"]


def _byte_space(part: Any, flags: Flags) -> None:
    if isinstance(part, pre_tokenizers.ByteLevel):
        part.add_prefix_space = flags["add_prefix_space"]


def _piece_space(part: Any, flags: Flags) -> None:
    if isinstance(part, pre_tokenizers.Metaspace):
        part.prepend_scheme = "always" if flags["add_prefix_space"] else "never"


def _bert(first: Marked, last: Marked) -> processors.PostProcessor:
    return processors.BertProcessing(last, first)


def _roberta(first: Marked, last: Marked) -> processors.PostProcessor:
    return processors.RobertaProcessing(last, first)


def _xlm_roberta(first: Marked, last: Marked) -> processors.PostProcessor:
    single = [first[0], "$A", last[0]]
    pair = [*single, last[0], "$B", last[0]]
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[first, last]
    )


RULES = (
    Rules(
        models.WordPiece,
        ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"),
        BRACKET,
        {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True},
        _cases,
        ("cls_token", "sep_token"),
        _bert,
    ),
    Rules(
        models.BPE,
        ("RobertaTokenizer",),
        SENTENCE,
        {"add_prefix_space": False},
        _byte_space,
        ("cls_token", "sep_token"),
        _roberta,
    ),
    Rules(
        models.Unigram,
        ("XLMRobertaTokenizer",),
        SENTENCE,
        {"add_prefix_space": True},
        _piece_space,
        ("bos_token", "eos_token"),
        _xlm_roberta,
    ),
)


def read(folder: epath.Path, tokenizer_class: str = "") -> Vocabulary:
    """Read the tokenizer of a folder.

    Args:
      folder: a folder with a vocabulary.
      tokenizer_class: transformers' class as config.json names it; the name in
        tokenizer_config.json counts more.

    Raises:
      UserError: the folder has no tokenizer, its files cannot be read or do not agree,
        or its class has rules of its own and there is no tokenizer.json.
    """
    form, settings = read_form(folder), token_settings.read(folder)
    name = settings.tokenizer_class or tokenizer_class.removesuffix("Fast")
    rules = _rules(form, name)
    if not settings.complete:
        settings = settings._replace(added=settings.added | form.added)
    elif rules is None:
        settings = settings._replace(added=form.added | settings.added)
    if rules:  # before tokens are added, because they are normalised when they are
        _apply(form.inner, rules, settings)
    usual = _usual(form, settings, (rules,) if rules else RULES)
    inner = _with_special(form, settings, usual if rules else {})
    roles = usual | {n: t.content for n, t in settings.roles.items() if t is not None}
    if rules:
        _name_unknown(form, inner, roles)
        _place_ends(form, inner, rules, roles)
    inner.encode_special_tokens = bool(settings.flags.get("split_special_tokens"))
    cut = form.inner.truncation or {"direction": "right"}
    return Vocabulary(inner, roles, settings.side or cut["direction"])


def _rules(form: Form, name: str) -> Rules | None:
    """The rules of a class; None leaves a tokenizer.json as it is."""
    found = {rules.model: rules for rules in RULES}.get(type(form.inner.model))
    if found and (name in ("", *found.classes) or not form.whole and name in GENERAL):
        return found
    if found is None or form.whole:
        return None
    raise UserError(
        f"{form.file} is of a {name}, whose rules are not in the files; expected a "
        f"{found.classes[0]}, or a tokenizer.json. Write one with save_pretrained of "
        "transformers' tokenizer"
    )


def _apply(inner: tokenizers.Tokenizer, rules: Rules, settings: TokenSettings) -> None:
    said = {n: x for n, x in settings.flags.items() if x is not None}
    for part in (*_parts(inner.normalizer), *_parts(inner.pre_tokenizer)):
        rules.apply(part, {**rules.flags, **said})


def _usual(
    form: Form, settings: TokenSettings, rules: tuple[Rules, ...]
) -> dict[str, str]:
    """Special tokens of roles that no file names, as far as there are such tokens."""
    added, out = {t.content for t in settings.added.values()}, dict[str, str]()
    for usual in (one.usual for one in rules):
        for role, token in zip(ROLES, usual, strict=True):
            if token is None or role in settings.roles:
                continue
            if token in added or form.inner.token_to_id(token) is not None:
                out.setdefault(role, token)
    return out


def _with_special(
    form: Form, settings: TokenSettings, usual: Mapping[str, str]
) -> tokenizers.Tokenizer:
    """The tokenizer with all tokens of the settings; tokens with a role are special."""
    roles = {n: AddedToken(content, special=True) for n, content in usual.items()}
    roles |= {n: token for n, token in settings.roles.items() if token is not None}
    order = {n: roles.pop(n) for n in ROLES if n in roles} | roles
    special = {token.content for token in order.values()}
    for token in settings.added.values():
        token.special = token.special or token.content in special
    return with_tokens(form, settings.added, [*order.values(), *settings.extra])


def _parts(part: Any) -> Iterator[Any]:
    """A normalizer or pre-tokenizer, or all that are in a sequence of them."""
    if not isinstance(part, normalizers.Sequence | pre_tokenizers.Sequence):
        return iter((part,))
    inside: Any = part  # it is a sequence, though its type does not say so
    return (x for one in inside for x in _parts(one))


def _name_unknown(
    form: Form, inner: tokenizers.Tokenizer, roles: Mapping[str, str]
) -> None:
    """Tell a WordPiece model which token stands for words that it does not know.

    Raises:
      UserError: its vocabulary does not have the token.
    """
    if not isinstance(inner.model, models.WordPiece):
        return
    token = inner.model.unk_token = roles.get("unk_token", inner.model.unk_token)
    if inner.model.token_to_id(token) is None:
        raise UserError(
            f"{form.file} has no {token!r}, the token of unknown words; expected it in "
            "the vocabulary. Name another unk_token in tokenizer_config.json"
        )


def _place_ends(
    form: Form, inner: tokenizers.Tokenizer, rules: Rules, roles: Mapping[str, str]
) -> None:
    """Put special tokens around texts; a tokenizer.json that has these does it itself.

    Raises:
      UserError: files without a tokenizer.json lack one of the tokens.
    """
    names = [roles.get(role) for role in rules.ends]
    if None in names and form.whole:
        return
    ends = []
    for role, token in zip(rules.ends, names, strict=True):
        index = None if token is None else inner.token_to_id(token)
        if token is None or index is None:
            usual = rules.usual[ROLES.index(role)]
            raise UserError(
                f"{form.file} has no {usual!r}; expected it in the vocabulary. Name "
                f"another {role} in tokenizer_config.json"
            )
        ends.append((token, index))
    first, last = ends
    own = inner.post_processor
    placed = own.__getstate__().decode() if own else ""
    if not all(files.to_json(token, ensure_ascii=False) in placed for token, _ in ends):
        inner.post_processor = rules.pairs(first, last)
