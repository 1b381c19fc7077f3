"""XLM-RoBERTa (Conneau et al. 2020): RoBERTa, trained on a hundred languages.

Its files use RoBERTa's tensor names. Its tokenizer, a Unigram model of SentencePiece,
is read from the model's tokenizer.json.
"""

from hypelora_jax.families.encoder.config_json import reader, writer
from hypelora_jax.families.roberta import ROBERTA
from hypelora_jax.families.sizes import EncoderConfig

XLM_ROBERTA = ROBERTA._replace(
    name="xlm-roberta",
    config=reader("xlm-roberta", pad_id=1),
    fields=writer(("XLMRobertaModel", "XLMRobertaForSequenceClassification")),
    presets={
        "xlm_roberta_base": EncoderConfig(
            "xlm-roberta", 250002, 768, 12, 12, 3072, 514, 1, norm_eps=1e-5, pad_id=1
        ),
        "xlm_roberta_large": EncoderConfig(
            "xlm-roberta", 250002, 1024, 16, 24, 4096, 514, 1, norm_eps=1e-5, pad_id=1
        ),
    },
)
