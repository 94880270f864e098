import ast
import configparser
import graphlib
import importlib
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import mutants
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import keras_hsakd
from keras_hsakd import export, names, runs, terms, views

PACKAGE = pathlib.Path(keras_hsakd.__file__).parent
# Imports go downward only, and never within a group.
GROUPS = [
    {"cli"},
    {"commands"},
    {"demo", "tryout"},
    {"runs"},
    {"export"},
    {"checkpoints", "data", "callbacks", "resume"},
    {"trainers", "models", "optimizers"},
    {"teachers"},
    {"attach", "pyramid", "views"},
    {"copies", "grad_cam"},
    {"classifier", "heads"},
    {"light", "logits"},
    {"terms", "graph"},
    {"layers"},
    {"distribution", "drawings", "flags", "lock", "network_files", "pretrained"},
    {"ops", "autotuning", "compat", "digests", "documents", "figures", "files", "lazy"}
    | {"machine", "names", "optional", "signals", "spelling", "suggestions"}
    | {"validation", "zoo"},
    {"sizes"},
]
LEVELS = {part: level for level, group in enumerate(GROUPS) for part in group}


def modules():
    """Returns the modules of the package by their names within it."""
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    parts = (path.with_suffix("").parts for path in paths)
    names = (tuple(part for part in of if part != "__init__") for of in parts)
    return {".".join(of) for of in names if of}


def imported(name):
    """Returns the modules of the package that one of them imports."""
    path = PACKAGE / name.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for package, _, other in (name.partition(".") for name in names):
            if package == "keras_hsakd":
                # The last part may be something in a module.
                found.add(other if other in modules() else other.rpartition(".")[0])
    return found - {""}


def test_imports_go_downward():
    wrong = []
    for name in modules():
        part = name.partition(".")[0]
        for other in (other.partition(".")[0] for other in imported(name)):
            if other != part and LEVELS[other] <= LEVELS[part]:
                wrong.append(f"{name} imports {other}")
    assert len(modules()) > 40
    assert not wrong


def test_no_modules_import_each_other():
    graphlib.TopologicalSorter({name: imported(name) for name in modules()}).prepare()


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# Keras itself imports scikit-learn and matplotlib where they are installed.
IMPORTS = """
import sys
import keras
before = set(sys.modules)
import keras_hsakd.data
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not new & {"torch", "tensorflow_datasets", "sklearn", "matplotlib"}, new
# A Keras file needs the import alone to be loaded.
assert keras.saving.get_registered_object("keras_hsakd>BatchNormalization")
assert keras.saving.get_registered_object("keras_hsakd>Distiller")
"""


def test_import_warns_of_nothing_and_takes_nothing_optional():
    result = python(IMPORTS)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr


def test_the_core_imports_without_tensorflow():
    pytest.importorskip("jax")
    code = "import sys; sys.modules['tensorflow'] = None; import keras_hsakd"
    result = python(code, KERAS_BACKEND="jax")
    assert result.returncode == 0, result.stderr


def test_the_public_names_are_there():
    for name in keras_hsakd.__all__:
        assert getattr(keras_hsakd, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = keras_hsakd.nothing


def imported_for_type_checkers(package):
    """Returns the modules of the names that a package imports under TYPE_CHECKING."""
    for node in ast.parse(pathlib.Path(package.__file__).read_text()).body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for line in node.body:
                yield from ((alias.name, line.module) for alias in line.names)


@pytest.mark.parametrize("package", [keras_hsakd, runs])
def test_names_are_those_that_type_checkers_see(package):
    modules = dict(imported_for_type_checkers(package))
    assert set(modules) == set(package.__all__) <= set(dir(package))
    for name, module in modules.items():
        found = package.__getattr__(name)
        assert found is getattr(importlib.import_module(module), name)


def test_the_command_line_offers_what_there_is():
    assert list(names.DATA_SETS) == keras_hsakd.data.names()
    assert list(names.METHODS) == list(terms.METHODS)
    assert list(names.VIEWS) == views.names()
    assert list(names.FORMATS) == list(export.FORMATS)


# The process is the command by its name. All is printed, and nothing was loaded for it.
WITHOUT_KERAS = """
import contextlib, sys
sys.argv[0] = "bin/keras-hsakd"
from keras_hsakd import cli, commands
lines = ["--help", "run --list", "models", "teacher", "no-command"]
for line in lines + [f"{command} --help" for command in commands.COMMANDS]:
    with contextlib.suppress(SystemExit):
        cli.main(line.split())
assert not {"keras", "tensorflow", "numpy", "h5py"} & set(sys.modules)
import keras_hsakd
assert set(keras_hsakd.__all__) <= set(dir(keras_hsakd))
print("end")
"""


def test_help_and_tables_need_no_keras():
    result = python(WITHOUT_KERAS)
    assert result.returncode == 0, result.stderr
    assert "| wrn_16_2 |" in result.stdout and result.stdout.endswith("end\n")


# What an installation is told.

# By the name that is imported, where the package has another.
PACKAGES = {"sklearn": "scikit-learn", "keras_cv": "keras-cv", "PIL": "pillow"}
IMPORTING = ("import_module", "_optional", "optional_module")


def declared():
    """Returns the requirements in setup.cfg by name; those of extras, too."""
    config = configparser.ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg")
    texts = [
        config["options"]["install_requires"],
        *config["options.extras_require"].values(),
    ]
    lines = [
        line.partition("#")[0].strip() for text in texts for line in text.split("\n")
    ]
    requirements = [Requirement(line) for line in lines if line]
    return {canonicalize_name(r.name): r.specifier for r in requirements}


def test_what_is_imported_is_declared():
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and node.args:
                # Optional packages are imported by `importlib`, or a function on it.
                function = getattr(node.func, "attr", getattr(node.func, "id", ""))
                name = getattr(node.args[0], "value", None)
                if function in IMPORTING and isinstance(name, str):
                    imported.add(name.partition(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"keras_hsakd"}
    assert {"keras", "tensorflow", "matplotlib", "sklearn", "safetensors"} <= others
    missing = {canonicalize_name(PACKAGES.get(n, n)) for n in others} - set(declared())
    # They come with keras.
    assert missing <= {"numpy", "h5py"}


@pytest.mark.parametrize("name", ["keras", "tensorflow"])
def test_the_bounds_are_those_that_are_tested(name):
    version = Version(importlib.metadata.version(name))
    assert version in declared()[name]
    following = f"{version.major}.{version.minor + 1}"
    assert Version(following) not in declared()[name]


def test_the_versions_agree():
    citation = (PACKAGE.parent / "CITATION.cff").read_text()
    assert f"\nversion: {keras_hsakd.__version__}\n" in citation


def test_faults_to_plant_are_each_in_the_code_once():
    """`make test-mutants`, which takes long, would pass over the others."""
    texts = [path.read_text() for path in (mutants.ROOT / "keras_hsakd").rglob("*.py")]
    for name, fault in mutants.FAULTS.items():
        assert sum(text.count(fault.text) for text in texts) == 1, name
        assert mutants.files_of(fault, mutants.ROOT), name
