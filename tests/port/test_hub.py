"""Weights on the hub, from a cache such as huggingface_hub keeps it; nothing here asks a network."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
import safetensors.numpy

from lape_jax import convert, port
from lape_jax.errors import UserError
from lape_jax.port import about, hub
from lape_jax.tasks import config as configs
from lape_jax.train import warm_start
from tests.port.tiny import identical, random_variables, tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = {"join": "default", "ln_eps": 1e-12}


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The directory in which the one commit of owner/name has its files, and a hub that cannot be reached."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    files = repository / "snapshots" / COMMIT
    files.mkdir(parents=True)
    return files


@pytest.fixture
def written(cached):
    """The model and the variables that are there."""
    model = tiny(**SETTINGS)
    variables = random_variables(model)
    port.save(cached, variables, model, format="hf")
    return model, variables


def test_a_repository(written, tmp_path):
    model, variables = written
    identical(port.load("hf:owner/name", model), variables)
    identical(port.load(f"hf:owner/name@{COMMIT}", model), variables)
    identical(port.load("hf:owner/name@main:model.safetensors", model), variables)
    assert about.read("hf:owner/name").settings["ln_eps"] == 1e-12
    convert.main(["hf:owner/name", str(tmp_path / "a.npz"), "--to=lape"])
    identical(port.load(tmp_path / "a.npz", model), variables)
    _, moved = port.warm_start("hf:owner/name", tiny(join="lape"), random_variables(tiny(join="lape")))
    assert "head/kernel" in moved.loaded


@pytest.fixture
def asked(written, monkeypatch):
    """How often the hub was asked for each of its files."""
    import huggingface_hub

    counts = Counter()
    fetch = huggingface_hub.hf_hub_download

    def counted(repo, name, **options):
        counts[name] += 1
        return fetch(repo, name, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", counted)
    return counts


def loaded(model, tmp_path):
    port.load("hf:owner/name", model)


def started(model, tmp_path):
    port.warm_start("hf:owner/name", model, random_variables(model))


def converted(model, tmp_path):
    convert.main(["hf:owner/name", str(tmp_path / "a.npz"), "--to=lape"])


def initialised(model, tmp_path):
    config = configs.resolve({"init": {"weights": "hf:owner/name"}})
    warm_start._moved(config, model, ("one", "two"), random_variables(model), None)


@pytest.mark.parametrize("use", [loaded, started, converted, initialised])
def test_a_command_asks_once_for_each_file(use, written, asked, tmp_path):
    use(written[0], tmp_path)
    assert asked == {"model.safetensors": 1, "config.json": 1, "preprocessor_config.json": 1}


def test_a_set_of_weights_in_a_file(cached):
    model = tiny(**SETTINGS)
    variables = random_variables(model)
    arrays = port.to_torch(variables, model)
    np.savez(
        cached / "last.npz",
        **{f"student.{n}": x for n, x in arrays.items()},
        **{f"ema.{n}": x for n, x in arrays.items()},
    )
    identical(port.load("hf:owner/name:last.npz:ema", model), variables)


def test_weights_in_parts(cached):
    model = tiny(**SETTINGS)
    variables = random_variables(model)
    arrays = port.to_torch(variables, model)
    places = {name: f"pytorch_model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(arrays)}
    for place in set(places.values()):
        part = {name: array for name, array in arrays.items() if places[name] == place}
        safetensors.numpy.save_file(part, cached / place)
    (cached / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    identical(port.load("hf:owner/name", model), variables)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("hf:owner/other", "hf:owner/other cannot be had: the hub cannot be reached, and it is not in the cache"),
        ("hf:owner/name@other", "hf:owner/name@other cannot be had: the hub cannot be reached, and"),
        ("hf:owner/name:other.bin", "hf:owner/name:other.bin cannot be had: the hub cannot be reached, and"),
    ],
)
@pytest.mark.usefixtures("written")
def test_what_is_not_in_the_cache(place, message):
    with pytest.raises(UserError, match=message) as caught:
        port.load(place, tiny())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["hf:", "hf:name", "hf:a/b/c", "hf:owner/name:"])
def test_what_is_no_place(place):
    with pytest.raises(UserError, match=r"is no place on the hub: it should be hf:OWNER/NAME"):
        hub.local(place)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'hf:owner/name needs huggingface_hub: pip install "lape_jax\[hub\]"'):
        port.load("hf:owner/name", tiny())
