import os

import pytest

from keras_hsakd.files import atomic_write, is_unused, read_json, write_json


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_there_survives_an_error(tmp_path, error):
    path = tmp_path / "run.json"
    write_json(path, {"seed": 0})
    with pytest.raises(error), atomic_write(path) as temporary:
        with open(temporary, "w") as file:
            file.write("half")
        assert read_json(path) == {"seed": 0}
        raise error
    assert read_json(path) == {"seed": 0}
    assert os.listdir(tmp_path) == ["run.json"]


def test_the_temporary_file_has_the_suffix_and_the_folder(tmp_path):
    with atomic_write(tmp_path / "last.keras") as temporary:
        assert os.path.dirname(temporary) == str(tmp_path)
        assert temporary.endswith(".keras")
        open(temporary, "w").close()
    assert os.listdir(tmp_path) == ["last.keras"]


def test_an_error_names_the_file_that_people_know(tmp_path):
    def write(error):
        with atomic_write(tmp_path / "run.json") as temporary:
            raise error(temporary)

    for error in (
        lambda temporary: OSError(28, "No space left"),
        lambda temporary: OSError(28, "No space left", temporary),
    ):
        with pytest.raises(
            OSError, match=r"\[Errno 28\] No space left: '.*/run.json'$"
        ):
            write(error)
    with pytest.raises(OSError, match="^no space$"):
        write(lambda temporary: OSError("no space"))


def test_removing_what_is_half_written_hides_no_error(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "remove", refuse)
    with pytest.raises(ValueError, match="first"), atomic_write(tmp_path / "a"):
        raise ValueError("first")


def test_a_folder_with_what_was_half_written_is_unused(tmp_path):
    assert is_unused(tmp_path / "missing")
    (tmp_path / ".partial-1-run.json").touch()
    assert is_unused(tmp_path) and not is_unused(tmp_path / ".partial-1-run.json")
    (tmp_path / ".lock").touch()
    assert not is_unused(tmp_path) and is_unused(tmp_path, ".lock")


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_what_is_no_json_object_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"Expected '.*run.json' to"):
        read_json(tmp_path / "run.json")
