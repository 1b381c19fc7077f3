"""Small random models in folders as transformers saves them, tokenizer included."""

import pathlib

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

SIZES = {"vocab_size": 60, "max_position_embeddings": 40}
DISTILBERT = SIZES | {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48}
BERT = SIZES | {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
}
XLM_ROBERTA = BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
CLASSES = {  # model_type -> names of transformers' classes without their ending
    "bert": ("Bert", BERT),
    "roberta": ("Roberta", XLM_ROBERTA),
    "distilbert": ("DistilBert", DISTILBERT),
    "xlm-roberta": ("XLMRoberta", XLM_ROBERTA),
}
PIECES = "▁the ▁a ▁film ▁not ▁good ing ed é".split()


def shake(model):
    """Biases, norms and output layers away from 0 and 1, so that each is seen."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def build(model_type: str, kind: str, **options):
    """A shaken model of transformers, such as ("distilbert", "Model")."""
    name, sizes = CLASSES[model_type]
    config = getattr(transformers, f"{name}Config")(**sizes | options)
    torch.manual_seed(0)
    return shake(getattr(transformers, name + kind)(config))


def unigram() -> tokenizers.Tokenizer:
    """A SentencePiece model as XLM-R's: Unigram, Metaspace, pairs between </s></s>."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,!"]
    scores = [(s, 0.0) for s in ("<s>", "<pad>", "</s>", "<unk>")]
    scores += [(x, -8.0) for x in letters] + [(x, -3.0) for x in PIECES]
    inner = tokenizers.Tokenizer(models.Unigram([*scores, ("<mask>", 0.0)], unk_id=3))
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    known = [tokenizers.AddedToken("<mask>", lstrip=True), "<s>", "<pad>", "</s>"]
    inner.add_special_tokens([*known, "<unk>"])
    return inner


def write_tokenizer(model_type: str, folder: pathlib.Path) -> None:
    """The files of a tokenizer of that family, of fewer words than the model has."""
    if model_type.endswith("roberta"):
        unigram().save(str(folder / "tokenizer.json"))
        return
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (folder / "vocab.txt").write_text("\n".join(words))


def save(model_type: str, folder: pathlib.Path, **options) -> str:
    """A whole base model, with a head, in a folder."""
    build(model_type, "ForSequenceClassification", **options).save_pretrained(folder)
    write_tokenizer(model_type, folder)
    return str(folder)
