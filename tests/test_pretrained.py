"""Trained networks that come with the package: their files, and as teachers."""

import configparser
import pathlib

import numpy as np
import pytest
from test_mlperf_tiny import PROGRAMS, draw, program

from keras_hsakd import models, pretrained
from keras_hsakd.heads import head_names, strip_heads
from keras_hsakd.runs import (
    DataSettings,
    Distill,
    Run,
    Teacher,
    TrainingSettings,
    evaluate,
    planning,
    train,
)

ROOT = pathlib.Path(pretrained.__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory, eager_trainers):
    """Returns a run of a teacher, after its network came to the package."""
    folder = tmp_path_factory.mktemp("pretrained")
    data = draw(folder / "data", "png")
    exact = draw(folder / "exact", "png")
    training = TrainingSettings(model="mlperf_resnet8", head="light", epochs=1)
    images = DataSettings(data=str(data), image_size=8)
    run = train(Teacher(), folder / "teacher", training, images, verbose=0)
    (folder / "package").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "FOLDER", folder / "package")
        patch.syspath_prepend(PROGRAMS)
        program("pretrained").make(
            run.path, "tiny-drawn", "drawn images", "make it", also=[exact]
        )
        yield run


def test_the_network_is_that_of_the_run_in_half_precision(made):
    network = models.pretrained("tiny-drawn", heads=True)
    wanted = made.network()
    assert head_names(network) == head_names(wanted)
    for variable, value in zip(network.variables, wanted.variables, strict=True):
        assert variable.path == value.path
        rounded = np.asarray(value).astype("float16")
        np.testing.assert_array_equal(variable, rounded.astype("float32"))
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype("float32")
    plain = models.pretrained("tiny-drawn")
    logits = network(images, training=False)["logits"]
    np.testing.assert_allclose(plain(images, training=False), logits, atol=1e-6)
    whole = strip_heads(wanted)(images, training=False)
    np.testing.assert_allclose(logits, whole, rtol=0, atol=2e-2)


def test_its_card(made):
    card = pretrained.card("tiny-drawn")
    assert set(card["accuracy"]) == {"data", "exact"}
    folder = made.record["data"]["data"]
    measured = evaluate("tiny-drawn", verbose=0, data=folder)
    assert card["accuracy"]["data"] == measured["accuracy"]
    assert (card["seed"], card["licence"], card["heads"]) == (0, "Apache-2.0", True)
    text = (pretrained.FOLDER / "tiny-drawn.json").read_text()
    assert str(pathlib.Path(made.path).parent) not in text


def test_it_teaches_by_its_name(made, tmp_path):
    training = TrainingSettings(model="mlperf_resnet8", head="light", epochs=1)
    data = {"data": made.record["data"]["data"]}
    kind = Distill(teacher="tiny-drawn")
    run = train(kind, tmp_path / "student", training, data, verbose=0)
    origin = run.record["origin"]
    assert (origin["run"], origin["weights"]) == (
        "tiny-drawn",
        pretrained.card("tiny-drawn")["digest"],
    )
    assert run.record["images"]["mean"] == made.record["images"]["mean"]
    assert [r.path for r in planning._runs_of(["tiny-drawn"])] == ["tiny-drawn"]


def test_what_is_not_there(made):
    with pytest.raises(ValueError, match="one of .*tiny-drawn.*Received: 'tiny-dawn'"):
        models.pretrained("tiny-dawn")
    with pytest.raises(FileNotFoundError, match="did you mean 'tiny-drawn'"):
        Run.open("tiny-dawn")
    with pytest.raises(ValueError, match="checkpoint 'last' of 'tiny-drawn'"):
        Run.open("tiny-drawn").network("best")


def test_weights_that_the_card_does_not_tell(made):
    path = pretrained.path("tiny-drawn")
    content = path.read_bytes()
    with np.load(path) as file:
        weights = {name: file[name] for name in file.files}
    try:
        np.savez(path, **{name: value + 1 for name, value in weights.items()})
        with pytest.raises(ValueError, match="weights that the card of 'tiny-drawn'"):
            models.pretrained("tiny-drawn")
    finally:
        path.write_bytes(content)


def test_the_wheel_has_them():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["keras_hsakd"].split()
    assert {"pretrained/*.json", "pretrained/*.npz"} < set(patterns)
    folder = ROOT / "keras_hsakd" / "pretrained"
    files = [path for path in folder.iterdir() if path.suffix in (".json", ".npz")]
    assert {path.with_suffix(".npz") for path in files} <= {*files}
    assert sum(path.stat().st_size for path in files) < 6e6


@pytest.mark.parametrize("name", pretrained.names())
def test_each_that_comes_with_the_package(name, monkeypatch):
    folder = ROOT / "keras_hsakd" / "pretrained"
    monkeypatch.setattr(pretrained, "FOLDER", folder)  # whatever `made` left there
    card = pretrained.card(name)
    network = models.pretrained(name, heads=card["heads"])
    assert network.name == card["record"]["training"]["model"]
    assert all(0 < value < 1 for value in card["accuracy"].values())
