"""Our encoders against transformers: values, and the files its classes save."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
import transformers
from oracle import folders
from oracle.folders import shake
from tiny import encoder, head

from hypelora_jax import families
from hypelora_jax.data import tokens
from hypelora_jax.data.tables import Table
from hypelora_jax.errors import UserError
from hypelora_jax.families import preset
from hypelora_jax.interop import huggingface
from hypelora_jax.interop.base import load, resolve

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
ROBERTA = SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}


def make_batch(config, lengths, total):
    """Rows of mixed lengths, padded to `total`; BERT rows have two segments."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, config.vocab, (len(lengths), total)).astype(np.int32)
    mask = np.arange(total)[None] < np.array(lengths)[:, None]
    types = (np.arange(total)[None] >= np.array(lengths)[:, None] // 2) & mask
    types = types & families.of(config).tokens.segments
    ids = np.where(mask, ids, config.pad_id).astype(np.int32)
    return {"ids": ids, "mask": mask, "types": types.astype(np.int32)}


def run_torch(model, batch, **options):
    arguments = {
        "input_ids": torch.from_numpy(batch["ids"]).long(),
        "attention_mask": torch.from_numpy(batch["mask"]).long(),
    }
    if families.FAMILIES[model.config.model_type].tokens.segments:
        arguments["token_type_ids"] = torch.from_numpy(batch["types"]).long()
    with torch.no_grad():
        return model.eval()(**arguments, **options)


def our_logits(folder, batch, outputs):
    base = resolve(str(folder))
    params = load(base, outputs, jax.random.key(0))
    hidden = jax.jit(encoder(base.config).apply)(params["backbone"], {}, batch)
    return head(base.config, outputs).apply(params["head"], hidden, batch)


# mixed lengths with padding to more than the longest; then nothing padded
@pytest.mark.parametrize("lengths, total", [((20, 3, 11, 1), 24), ((16, 16), 16)])
def test_minilm_hidden_states(lengths, total):
    base = resolve("minilm")
    batch = make_batch(base.config, lengths, total)
    model = transformers.BertModel.from_pretrained(str(base.folder))
    wanted = run_torch(model, batch, output_hidden_states=True).hidden_states
    params = load(base, 2, jax.random.key(0))["backbone"]
    ours = jax.jit(encoder(base.config).trace)(params, {}, batch)
    assert len(ours) == len(wanted)
    for got, state in zip(np.asarray(ours), wanted, strict=True):
        mask = batch["mask"]
        np.testing.assert_allclose(got[mask], state.numpy()[mask], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def roberta_base(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        num_labels=2,
    )
    model = transformers.RobertaForSequenceClassification(config)
    folder = tmp_path_factory.mktemp("roberta_base")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("lengths, total", [((20, 3, 11, 1), 24), ((16, 16), 16)])
def test_random_roberta_base_logits(roberta_base, lengths, total):
    model, folder = roberta_base
    assert huggingface.load_config(folder) == preset("roberta_base")
    batch = make_batch(preset("roberta_base"), lengths, total)
    wanted = run_torch(model, batch).logits.numpy()
    got = our_logits(folder, batch, 2)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("labels", [2, 3])
def test_roberta_for_sequence_classification(tmp_path, labels):
    config = transformers.RobertaConfig(**ROBERTA, num_labels=labels)
    model = shake(transformers.RobertaForSequenceClassification(config))
    model.save_pretrained(tmp_path)
    batch = make_batch(huggingface.load_config(tmp_path), (9, 4), 10)
    wanted = run_torch(model, batch).logits.numpy()
    got = our_logits(tmp_path, batch, labels)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)
    tensors = huggingface.read_tensors(tmp_path)
    _, report = huggingface.from_hf(
        huggingface.load_config(tmp_path), tensors, 5 - labels
    )
    assert report.fresh == ("head/out",)


def test_bert_for_sequence_classification(tmp_path):
    config = transformers.BertConfig(**SIZES, num_labels=3, hidden_act="gelu_new")
    model = shake(transformers.BertForSequenceClassification(config))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    batch = make_batch(huggingface.load_config(tmp_path), (9, 4), 10)
    wanted = run_torch(model, batch).logits.numpy()
    got = our_logits(tmp_path, batch, 3)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def check_states(model, encoder_of_model, folder, fresh):
    """The saved file gives the states of the model's own encoder."""
    config = huggingface.load_config(folder)
    params, report = huggingface.from_hf(config, huggingface.read_tensors(folder), 2)
    assert report.fresh == fresh
    batch = make_batch(config, (9, 4), 10)
    wanted = run_torch(encoder_of_model, batch).last_hidden_state.numpy()
    got = jax.jit(encoder(config).apply)(params["backbone"], {}, batch)
    mask = batch["mask"]
    np.testing.assert_allclose(np.asarray(got)[mask], wanted[mask], rtol=0, atol=2e-5)
    return report


def test_roberta_for_masked_lm(tmp_path):
    model = shake(
        transformers.RobertaForMaskedLM(transformers.RobertaConfig(**ROBERTA))
    )
    model.save_pretrained(tmp_path)
    fresh = ("head/dense", "head/out")
    report = check_states(model, model.roberta, tmp_path, fresh)
    assert "lm_head.dense.weight" in report.ignored


def test_roberta_model_with_its_unused_pooler(tmp_path):
    model = shake(transformers.RobertaModel(transformers.RobertaConfig(**ROBERTA)))
    model.save_pretrained(tmp_path)
    report = check_states(model, model, tmp_path, ("head/dense", "head/out"))
    assert set(report.ignored) == {"pooler.dense.weight", "pooler.dense.bias"}


def test_bert_for_pre_training(tmp_path):
    model = shake(transformers.BertForPreTraining(transformers.BertConfig(**SIZES)))
    model.save_pretrained(tmp_path)
    report = check_states(model, model.bert, tmp_path, ("head/out",))
    assert "cls.seq_relationship.weight" in report.ignored


def test_bert_model(tmp_path):
    model = shake(transformers.BertModel(transformers.BertConfig(**SIZES)))
    model.save_pretrained(tmp_path)
    report = check_states(model, model, tmp_path, ("head/out",))
    assert report.ignored == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files(tmp_path, dtype):
    config = transformers.RobertaConfig(**ROBERTA)
    model = shake(transformers.RobertaForSequenceClassification(config))
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    model.to(torch.float32)
    batch = make_batch(huggingface.load_config(tmp_path), (9, 4), 10)
    wanted = run_torch(model, batch).logits.numpy()
    got = our_logits(tmp_path, batch, 2)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", list(families.FAMILIES))
@pytest.mark.parametrize("shard", [None, 20_000])
def test_transformers_loads_what_we_save(tmp_path, family, shard):
    config = replace(preset("tiny"), family=family)
    if family == "bert":
        config = replace(config, pad_id=0, type_vocab=2)
    if family == "distilbert":
        config = replace(config, pad_id=0, type_vocab=0, norm_eps=1e-12)
    params = {
        "backbone": encoder(config).init(jax.random.key(0)),
        "head": head(config, 3).init(jax.random.key(1)),
    }
    huggingface.save_model(
        tmp_path, config, params, max_shard_bytes=shard, labels=["a", "b", "c"]
    )
    auto = transformers.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys"))
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.dtype == torch.float32
    batch = make_batch(config, (9, 4), 10)
    wanted = run_torch(model, batch).logits.numpy()
    got = our_logits(tmp_path, batch, 3)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def test_a_pickle_of_transformers_is_refused(tmp_path):
    config = transformers.RobertaConfig(**ROBERTA)
    model = transformers.RobertaForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle.*save_pretrained"):
        load(resolve(str(tmp_path)), 2, jax.random.key(0))


NEW = ("distilbert", "xlm-roberta")


@pytest.mark.parametrize("family", NEW)
@pytest.mark.parametrize("lengths, total", [((20, 3, 11, 1), 24), ((16, 16), 16)])
def test_every_hidden_state_and_the_logits(family, lengths, total, tmp_path):
    model = folders.build(family, "ForSequenceClassification", num_labels=3)
    model.save_pretrained(tmp_path)
    config = huggingface.load_config(tmp_path)
    assert config.family == family
    batch = make_batch(config, lengths, total)
    wanted = run_torch(model, batch, output_hidden_states=True)
    params = load(resolve(str(tmp_path)), 3, jax.random.key(0))
    ours = jax.jit(encoder(config).trace)(params["backbone"], {}, batch)
    mask = batch["mask"]
    for got, state in zip(np.asarray(ours), wanted.hidden_states, strict=True):
        np.testing.assert_allclose(got[mask], state[mask].numpy(), rtol=0, atol=2e-5)
    got = head(config, 3).apply(params["head"], ours[-1], batch)
    np.testing.assert_allclose(got, wanted.logits.numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_an_activation_of_distilbert(act, tmp_path):
    model = folders.build(
        "distilbert", "ForSequenceClassification", activation=act, num_labels=1
    )
    model.save_pretrained(tmp_path)
    batch = make_batch(huggingface.load_config(tmp_path), (9, 4), 10)
    wanted = run_torch(model, batch).logits.numpy()
    got = our_logits(tmp_path, batch, 1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", NEW)
def test_masked_language_models_give_their_encoder(family, tmp_path):
    model = folders.build(family, "ForMaskedLM")
    model.save_pretrained(tmp_path)
    own = getattr(model, model.base_model_prefix)
    report = check_states(model, own, tmp_path, ("head/dense", "head/out"))
    names = {"distilbert": "vocab_transform.weight", "xlm-roberta": "lm_head.bias"}
    assert names[family] in report.ignored


@pytest.mark.parametrize("family", NEW)
def test_models_without_a_head(family, tmp_path):
    model = folders.build(family, "Model")
    model.save_pretrained(tmp_path)
    report = check_states(model, model, tmp_path, ("head/dense", "head/out"))
    assert all(name.startswith("pooler.") for name in report.ignored)


@pytest.mark.parametrize(
    "own, theirs",
    [
        ("distilbert_base", transformers.DistilBertConfig()),
        (
            "xlm_roberta_base",
            transformers.XLMRobertaConfig(
                vocab_size=250002,
                max_position_embeddings=514,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
            ),
        ),
    ],
)
def test_configs_are_read_and_written(own, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    assert huggingface.load_config(tmp_path) == preset(own)
    fields = families.of(preset(own)).fields(preset(own), True)
    read = transformers.AutoConfig.for_model(**fields)
    assert type(read) is type(theirs)
    for name, value in theirs.to_dict().items():
        if name in fields and name != "architectures":
            assert getattr(read, name) == value or name == "classifier_dropout"


TEXTS = ["the film, not  good!", "ﬁlming é", "a", "the the the 漢 film a not good ed"]


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("length", [7, 40])
def test_a_unigram_tokenizer_json_is_taken_as_it_is(pair, length, tmp_path):
    folders.write_tokenizer("xlm-roberta", tmp_path)
    roles = families.FAMILIES["xlm-roberta"].tokens
    own = tokens.tokenizer(tmp_path, roles, pad_id=1)
    other = TEXTS[::-1] if pair else None
    rows = np.arange(len(TEXTS))
    got = own.encode(Table(rows, TEXTS, other, rows), length)
    for name, text in tokens.hugging_face_files(own, roles, length).items():
        (tmp_path / name).write_text(text)
    options = {"truncation": "longest_first", "max_length": length}
    for theirs in (
        transformers.PreTrainedTokenizerFast(tokenizer_object=folders.unigram()),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
    ):
        wanted = theirs(TEXTS, other, **options)
        assert [x.tolist() for x in got.ids] == wanted["input_ids"]
    assert not any(x.any() for x in got.types)
    assert max(map(len, got.ids)) <= length
    assert length == 7 or 3 in np.concatenate(got.ids), "an unknown letter"
