"""Models of the hub over real HTTP: whole, forbidden, interrupted, gone on with."""

import hub
import jax
import pytest
from tiny import encoder, head

from hypelora_jax import files
from hypelora_jax.errors import UserError
from hypelora_jax.families import preset
from hypelora_jax.interop import huggingface
from hypelora_jax.interop.base import load, resolve

TINY = preset("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as the hub has it."""
    path, key = tmp_path_factory.mktemp("hub"), jax.random.key(0)
    params = {"backbone": encoder(TINY).init(key), "head": head(TINY, 2).init(key)}
    huggingface.save_model(path, TINY, jax.device_get(params))
    (path / "tokenizer.json").write_text("{}")
    (path / "pytorch_model.bin").write_bytes(b"a pickle, which nobody fetches")
    return path


def test_a_hub_model_is_fetched_once(folder, tmp_path, monkeypatch, capfd):
    with hub.serve(folder, {}) as (address, asked):
        hub.point_to(monkeypatch, address, tmp_path)
        with files.offline(), pytest.raises(UserError) as error:
            resolve(hub.NAME)
        assert asked == []
        assert str(error.value) == (
            f"'org/model' at revision 'main' is not whole in the cache of Hugging Face,"
            f" {tmp_path}; --offline forbids the download: run `hypelora prepare` with "
            "this config first, or leave --offline out"
        )
        base = resolve(hub.NAME)
        assert (base.name, base.revision) == (hub.NAME, hub.COMMIT)
        fetched = {line.rpartition("/")[2] for line in asked if line[:3] == "GET"}
        assert "model.safetensors" in fetched and "pytorch_model.bin" not in fetched
        assert "%" in capfd.readouterr().err, "a progress bar"
        asked.clear()
        with files.offline():
            again = resolve(hub.NAME)
        assert again == base and asked == []
    assert load(base, 2, jax.random.key(0)).keys() == {"backbone", "head"}


def test_an_interrupted_download_is_not_taken_for_whole(folder, tmp_path, monkeypatch):
    faults = {"model.safetensors": "cut"}
    with hub.serve(folder, faults) as (address, _):
        hub.point_to(monkeypatch, address, tmp_path)
        with pytest.raises(UserError, match="cannot get 'org/model'.*connection") as e:
            resolve(hub.NAME)
        assert "\n" not in str(e.value)
        with files.offline(), pytest.raises(UserError, match="is not whole"):
            resolve(hub.NAME)
        faults.clear()
        assert load(resolve(hub.NAME), 2, jax.random.key(0))
    with pytest.raises(UserError, match="cannot get 'org/other'.*connection") as e:
        resolve("org/other")  # no hub answers any more
    assert "\n" not in str(e.value)
