"""Our service with transformers' forward pass in place of our own.

    python -m benchmarks.programs.torch_service --workdir=DIR

HTTP, tokenizer, batching and calibration are those of `hypelora serve`. The model is
the run's merged export, which transformers reads. A batch has texts of similar lengths,
is padded to its longest text and has no padding rows; only ours packs texts.
"""

import argparse
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from benchmarks import torch_rival
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.data.batches import Dataset, collate
from hypelora_jax.evaluate.fitted import Answer
from hypelora_jax.exchange.exports import export
from hypelora_jax.serve.adapter_pool import open_pool
from hypelora_jax.serve.batch_sizes import batch_sizes
from hypelora_jax.serve.limits import Limits
from hypelora_jax.serve.server import Batching, bound, server_of

HOST = "127.0.0.1"


def merged(workdir: str) -> Any:
    """The run as a model of transformers, with the faster attention for inference."""
    torch_rival.torch()
    import transformers

    auto = transformers.AutoModelForSequenceClassification
    with tempfile.TemporaryDirectory() as folder:
        (path,) = export(workdir, f"{folder}/merged", "merged")
        model = auto.from_pretrained(str(path), attn_implementation="sdpa")
    return model.eval()


def answerer(model: Any) -> Callable[[Dataset], Answer]:
    """Logits of a batch of tokenised texts."""
    th, segments = torch_rival.torch(), model.config.model_type == "bert"

    def answer(data: Dataset) -> Answer:
        rows = np.arange(len(data.ids))
        batch = collate(data, rows, int(data.lengths.max()), len(rows))
        given = {
            "input_ids": th.from_numpy(batch["ids"]).long(),
            "attention_mask": th.from_numpy(batch["mask"]).long(),
        }
        if segments:
            given["token_type_ids"] = th.from_numpy(batch["types"]).long()
        with th.inference_mode():
            return Answer(model(**given).logits.numpy())

    return answer


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", action=PathFlag, required=True)
    args = parser.parse_args()
    logging.set_verbosity(logging.INFO)
    sizes = batch_sizes(Batching().max_batch)
    pool = open_pool([args.workdir], sizes)
    answer = answerer(merged(args.workdir))
    pool = {
        name: one._replace(answerers=dict.fromkeys(one.answerers, answer), packs=0)
        for name, one in pool.items()
    }
    with bound(HOST, 0) as listener:
        made = server_of(pool, HOST, limits=Limits(rate=0))
        listener.listen(2048)
        logging.info("serving transformers at http://%s:%d (", *listener.getsockname())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn raises it once more
        made.run(sockets=[listener])


if __name__ == "__main__":
    main()
