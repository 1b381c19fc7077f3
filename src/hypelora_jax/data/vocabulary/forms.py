"""The three forms of a vocabulary: one file for all, byte-level BPE, and WordPiece."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from etils import epath
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from hypelora_jax import files
from hypelora_jax.errors import UserError

PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


class Form(NamedTuple):
    """A tokenizer from the first form in a folder, before the other files are read."""

    file: epath.Path
    inner: tokenizers.Tokenizer
    added: dict[int, AddedToken]  # by id
    whole: bool  # tokenizer.json: it says how texts are split, too


def read_form(folder: epath.Path) -> Form:
    """Read `tokenizer.json`, else `vocab.json` and `merges.txt`, else `vocab.txt`.

    Raises:
      UserError: the folder has none of them, or the first one cannot be read.
    """
    forms = {
        ("tokenizer.json",): _whole,
        ("vocab.json", "merges.txt"): _byte_bpe,
        ("vocab.txt",): _wordpiece,
    }
    for names, build in forms.items():
        if all((folder / name).exists() for name in names):
            try:
                return build(folder / names[0])
            except Exception as e:  # the library raises bare Exception
                why = " ".join(str(e).split())[:200]
                raise UserError(
                    f"{folder / names[0]} is not a tokenizer ({why}); expected one "
                    "that `tokenizers` reads. Fetch the file again"
                ) from e
    raise UserError(
        f"{folder} has no tokenizer; expected tokenizer.json, or vocab.json with "
        "merges.txt, or vocab.txt. Copy them from the model's source"
    )


def _whole(file: epath.Path) -> Form:
    text = files.read_text(file)
    inner = tokenizers.Tokenizer.from_str(text)
    listed = json.loads(text).get("added_tokens") or ()
    added = {token.pop("id"): AddedToken(**token) for token in listed}
    return Form(file, inner, added, whole=True)


def _byte_bpe(file: epath.Path) -> Form:
    """RoBERTa's vocabulary: bytes, and merges in the order in which they are done."""
    vocab = json.loads(files.read_text(file))
    lines = files.read_text(file.parent / "merges.txt").splitlines()
    merges: Any = [  # a line that is not a pair is refused by the library
        tuple(x.split(" ")) for x in lines if x and not x.startswith("#version")
    ]
    inner = tokenizers.Tokenizer(models.BPE(vocab, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return Form(file, inner, {}, whole=False)


def _wordpiece(file: epath.Path) -> Form:
    """BERT's vocabulary: a word in each line, whose number from 0 is its id."""
    words = files.read_text(file).split("\n")
    vocab = {w.rstrip(): i for i, w in enumerate(words) if w.strip()}
    inner = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return Form(file, inner, {}, whole=False)


def with_tokens(
    form: Form, added: Mapping[int, AddedToken], others: Sequence[AddedToken]
) -> tokenizers.Tokenizer:
    """A tokenizer of the same parts with these tokens.

    A token that is in the vocabulary keeps its id. The rest is numbered after it: first
    the added tokens in the order of their ids, then the others. Of others with the same
    content the last one counts.

    Args:
      form: the form, whose own added tokens are left out.
      added: tokens by the id that the files give them.
      others: tokens without an id in the files.

    Raises:
      UserError: a token gets another id than the files give it, or that of a word.
    """
    fresh = tokenizers.Tokenizer(form.inner.model)
    for name in PARTS:
        if (part := getattr(form.inner, name)) is not None:
            setattr(fresh, name, part)
    given = {token.content: i for i, token in added.items()}
    tokens = {token.content: token for token in (added[i] for i in sorted(added))}
    tokens |= {token.content: token for token in others if token.content not in given}
    fresh.add_tokens(list(tokens.values()))
    for content in tokens:
        got = fresh.token_to_id(content)
        if given.get(content, got) != got:
            raise UserError(
                f"{form.file.parent} gives the added token {content!r} the id "
                f"{given[content]}; expected {got}, the next one after the vocabulary. "
                "Use the files that were saved with the weights"
            )
        word = None if got is None else form.inner.model.id_to_token(got)
        if word not in (None, content):
            raise UserError(
                f"{form.file} leaves out ids, so the added token {content!r} gets id "
                f"{got}, that of {word!r}; expected ids without gaps. Use the files "
                "that were saved with the weights"
            )
    return fresh
