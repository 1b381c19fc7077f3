"""Training with torch, transformers and peft in a process that has no JAX.

    python -m benchmarks.programs.torch_training SPEC.json

It does what a careful user of these libraries would write. The spec is JSON: `model`
(fields of config.json), `weights` (a safetensors file, or ""), `lora` (fields of
LoraConfig), `attention`, `threads`, `lr` and `batch_size`, and then either `rows`,
`tokens` and `steps` for steps on random tokens, or `tokenizer` (a file), `train` and
`splits` (lists of [text, label] each), `pad` (longest, or a number of tokens) and
`steps` (0 for the whole epoch). The last line is JSON.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import peft
import torch
import transformers

from benchmarks.processes import peak_mib

Spec = dict[str, Any]


def adapted(spec: Spec) -> Any:
    """The model of peft that trains."""
    config = transformers.AutoConfig.for_model(**spec["model"])
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_config(config, attn_implementation=spec["attention"])
    if spec["weights"]:
        from safetensors.torch import load_file

        given = load_file(spec["weights"])
        # the files of an encoder alone may leave the prefix out
        model.base_model.load_state_dict(
            {n.removeprefix("bert."): x for n, x in given.items()}, strict=False
        )
    return peft.get_peft_model(model, peft.LoraConfig(**spec["lora"]))


def random_batches(spec: Spec, config: Any) -> Iterator[dict[str, Any]]:
    """`steps` batches of random tokens, without padding."""
    shape = (spec["rows"], spec["tokens"])
    for _ in range(spec["steps"]):
        yield {
            "input_ids": torch.randint(
                config.vocab_size // 2, config.vocab_size, shape
            ),
            "attention_mask": torch.ones(shape, dtype=torch.long),
            "labels": torch.randint(0, 2, (spec["rows"],)),
        }


def batches(spec: Spec, rows: list, shuffle: bool) -> Iterator[dict[str, Any]]:
    """Tokenise all texts, and yield padded batches."""
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(spec["tokenizer"])
    words.no_padding()
    words.enable_truncation(spec["max_length"])
    ids = [one.ids for one in words.encode_batch([text for text, _ in rows])]
    order = torch.randperm(len(ids)) if shuffle else torch.arange(len(ids))
    for part in order.split(spec["batch_size"]):
        chosen = [ids[i] for i in part]
        longest = max(len(x) for x in chosen)
        length = longest if spec["pad"] == "longest" else spec["pad"]
        out = torch.zeros((len(chosen), length), dtype=torch.long)
        mask = torch.zeros_like(out)
        for row, x in enumerate(chosen):
            out[row, : len(x)] = torch.tensor(x)
            mask[row, : len(x)] = 1
        labels = torch.tensor([rows[i][1] for i in part])
        yield {"input_ids": out, "attention_mask": mask, "labels": labels}


def train(model: Any, given: Iterator[dict[str, Any]], spec: Spec) -> list[float]:
    """Do the steps; return their seconds."""
    trained = [p for p in model.parameters() if p.requires_grad]
    tx = torch.optim.AdamW(trained, lr=spec["lr"], weight_decay=0.01, fused=True)
    model.train()
    out = []
    for number, batch in enumerate(given):
        if spec["steps"] and number >= spec["steps"]:
            break
        start = time.perf_counter()
        tx.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        tx.step()
        out.append(time.perf_counter() - start)
    return out


def accuracy(model: Any, given: Iterator[dict[str, Any]]) -> float:
    """Share of right answers of a split."""
    model.eval()
    right = total = 0
    with torch.inference_mode():
        for batch in given:
            found = model(**batch).logits.argmax(dim=1)
            right += int((found == batch["labels"]).sum())
            total += len(found)
    return right / total


def main(path: str) -> None:
    """Train as the spec says."""
    with open(path) as file:
        spec = json.load(file)
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    model = adapted(spec)
    if "train" in spec:
        seconds = train(model, batches(spec, spec["train"], True), spec)
        found = {n: accuracy(model, batches(spec, x, False)) for n, x in _splits(spec)}
    else:
        seconds = train(model, random_batches(spec, model.config), spec)
        found = {}
    told = {"seconds": seconds, "accuracy": found, "peak_mib": peak_mib()}
    print(json.dumps(told))


def _splits(spec: Spec) -> list[tuple[str, list]]:
    return list(spec["splits"].items())


if __name__ == "__main__":
    main(sys.argv[1])
