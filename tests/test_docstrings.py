import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hsakd
from keras_hsakd import data

MODULES = ["keras_hsakd"] + [
    module.name
    for module in pkgutil.walk_packages(keras_hsakd.__path__, "keras_hsakd.")
]


def examples_of(module):
    """Returns the docstrings of a module that have examples."""
    names = {name: getattr(data, name) for name in data.__all__}
    names.update(np=np, tf=tf, keras=keras, keras_hsakd=keras_hsakd)
    found = doctest.DocTestFinder().find(
        importlib.import_module(module), extraglobs=names
    )
    return [docstring for docstring in found if docstring.examples]


# Whose examples make networks of the zoo, train, or write what is served.
LONG = ("callbacks", "checkpoints", "export", "heads", "runs", "teachers", "trainers")
LONG += ("tryout",)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(
            name, marks=pytest.mark.slow if {*name.split(".")} & {*LONG} else ()
        )
        for name in MODULES
    ],
)
def test_examples_print_what_they_say(module, eager_trainers, tmp_path, monkeypatch):
    for docstring in examples_of(module):
        # Each in a folder of its own.
        folder = tmp_path / docstring.name
        folder.mkdir()
        monkeypatch.chdir(folder)
        assert doctest.DocTestRunner().run(docstring).failed == 0


def test_there_are_examples():
    assert sum(len(d.examples) for name in MODULES for d in examples_of(name)) > 60
