"""Base models in Python: a frozen transformer with its tokenizer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from hypelora_jax import families
from hypelora_jax.data.batches import collate, dataset
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tokens import Tokenizer
from hypelora_jax.errors import UserError
from hypelora_jax.inference.texts import Text, as_fields
from hypelora_jax.interop import base as bases


class BaseModel(NamedTuple):
    """A transformer that stays frozen, and its tokenizer; made by `base_model`."""

    base: bases.Base
    tokenizer: Tokenizer

    def batch(
        self,
        texts: Sequence[Text],
        labels: Sequence[int] | Sequence[float] | None = None,
        length: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Tokenise texts, or pairs of texts, to the arrays of one `types.Batch`.

        Args:
          texts: B texts, or B pairs of texts.
          labels: for each text its class, 0 to Y - 1, or its number if the model is a
            regression. None leaves "label" out, which prediction does not need. A class
            of Y or more is not refused here, and makes the loss NaN.
          length: tokens T of each row; longer texts are cut, which is logged. None
            takes the longest text. A new T compiles a new program.

        Returns:
          ids and types int32 (B, T), mask bool (B, T), weight float32 (B,) of ones, and
          label int32 or float32 (B,).

        Raises:
          UserError: something is not a text, there is not one label for each text, a
            label is negative, or the model has fewer than `length` positions.
        """
        if isinstance(texts, str) or not len(texts):
            raise UserError(
                f"texts is {texts!r:.60}; expected a list of one or more texts, such "
                "as ['a joy']"
            )
        pair = not isinstance(texts[0], str)
        fields = [as_fields(text, i, pair) for i, text in enumerate(texts)]
        limit = families.of(self.base.config).max_tokens(self.base.config)
        if length is not None and not 0 < length <= limit:
            raise UserError(
                f"length is {length}; expected 1 to {limit}, the positions of "
                f"{self.base.name}"
            )
        second = [text[1] for text in fields] if pair else None
        label, index = _labels(labels, len(fields)), np.arange(len(fields))
        table = Table(index, [text[0] for text in fields], second, label)
        data = dataset(table, self.tokenizer, length or limit)
        longest = length or int(data.lengths.max())
        if cut := data.encoded.truncated:
            logging.warning("cut %d of %d texts to %d tokens", cut, len(index), longest)
        out = collate(data, index, longest, len(index))
        unused = {"index"} if labels is not None else {"index", "label"}
        return {name: x for name, x in out.items() if name not in unused}


def _labels(labels: Sequence[Any] | None, n: int) -> np.ndarray:
    """Return labels as int32 or float32 (n,); -1 everywhere without any."""
    if labels is None:
        return np.full(n, -1, np.int32)
    found = np.asarray(labels)
    if found.shape != (n,) or found.dtype.kind not in "iuf":
        raise UserError(
            f"labels is {found.dtype}{list(found.shape)}; expected a list of {n} "
            "numbers, one for each text"
        )
    if found.dtype.kind == "f":
        return found.astype(np.float32)
    if found.min() < 0:
        raise UserError(
            f"labels has {found.min()}; expected classes 0, 1, ... Leave out the texts "
            "that have no label"
        )
    return found.astype(np.int32)


def base_model(path: str = "minilm", revision: str = "main") -> BaseModel:
    """Find a base model and read its tokenizer; download it if it is not here yet.

    Args:
      path: a Hugging Face folder, a hub name "org/name", "minilm", or "random:PRESET".
      revision: branch, tag or commit of a hub model.

    Raises:
      UserError: there is no such model, its files are malformed, or there is no
        connection.
    """
    base = bases.resolve(path, revision)
    return BaseModel(base, bases.read_tokenizer(base))
