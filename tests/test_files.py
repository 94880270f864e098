import os

import pytest

from keras_hsakd.files import atomic_write, read_json, write_json


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


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_what_is_no_json_object_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"Expected '.*run.json' to"):
        read_json(tmp_path / "run.json")
