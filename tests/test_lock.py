import errno
import multiprocessing
import os
import re
import signal

import pytest

from keras_hsakd import lock

HOLDER = rf"where process {os.getpid()} on '.*' has written since 20\d\d-"
_fork = multiprocessing.get_context("fork")  # they run Python alone


def in_a_process(function, *arguments):
    """Starts a function in a process, whose answers come out of a pipe."""
    receiving, sending = _fork.Pipe(duplex=False)
    process = _fork.Process(target=function, args=(sending, *arguments), daemon=True)
    process.start()
    return process, receiving


def hold(answers, folder):
    with lock.held(folder):
        answers.send("held")
        signal.pause()


def test_the_second_is_refused_and_told_who_is_there(tmp_path):
    with lock.held(tmp_path):
        content = (tmp_path / lock.NAME).read_bytes()
        expected = f"Received: '{re.escape(str(tmp_path))}', {HOLDER}"
        with pytest.raises(BlockingIOError, match=expected), lock.held(tmp_path):
            pass
        assert (tmp_path / lock.NAME).read_bytes() == content
    with lock.held(tmp_path):  # it is free again
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_without_a_holder_to_read(tmp_path):
    with lock.held(tmp_path):
        (tmp_path / lock.NAME).write_text("{")
        with (
            pytest.raises(BlockingIOError, match="where another process writes"),
            lock.held(tmp_path),
        ):
            pass


def test_the_system_frees_the_lock_of_a_process_that_is_killed(tmp_path):
    process, answers = in_a_process(hold, tmp_path / "run")
    assert answers.recv() == "held"
    with pytest.raises(BlockingIOError), lock.held(tmp_path / "run"):
        pass
    process.kill()
    process.join()
    assert os.listdir(tmp_path / "run") == [lock.NAME]
    with lock.held(tmp_path / "run"):
        pass


def test_folders_are_made_and_removed_if_nothing_came_into_them(tmp_path):
    with pytest.raises(KeyError), lock.held(tmp_path / "a" / "b"):
        raise KeyError
    assert os.listdir(tmp_path) == []
    with lock.held(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert os.listdir(tmp_path / "a") == ["file"]


def test_what_killed_processes_have_half_written_is_removed(tmp_path):
    others = {".partial-1-b-a.json", ".partial-room"}  # may be of a process that lives
    for name in {".partial-12-a.json", ".partial-3-a.json", *others}:
        (tmp_path / name).touch()
    with lock.held_beside(tmp_path / "a.json"):
        pass
    assert set(os.listdir(tmp_path)) == others
    with lock.held(tmp_path):
        assert os.listdir(tmp_path) == [lock.NAME]


def take_turns(answers, folder, turns):
    won = 0
    for _ in range(turns):
        try:
            with lock.held(folder):
                with open(folder / "in", "x"):  # fails if another is in here
                    won += 1
                os.remove(folder / "in")
        except BlockingIOError:
            pass
    answers.send(won)


def test_two_are_never_in_at_once(tmp_path):
    # The file of the lock comes and goes.
    started = [in_a_process(take_turns, tmp_path, 300) for _ in range(2)]
    assert all(answers.recv() > 0 for _, answers in started)
    assert os.listdir(tmp_path) == []


def test_without_locks_it_goes_on_with_a_warning(tmp_path, monkeypatch):
    import fcntl

    def unsupported(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / ".partial-1-a").touch()  # somebody may be writing it
    with (
        pytest.warns(UserWarning, match="without locks"),
        lock.held(tmp_path) as is_locked,
    ):
        assert not is_locked
    assert os.listdir(tmp_path) == [".partial-1-a"]


def test_a_lock_beside_is_none_of_the_folder(tmp_path):
    with (
        lock.held_beside(tmp_path / "cache"),
        lock.held(tmp_path),
        pytest.raises(BlockingIOError),
        lock.held_beside(tmp_path / "cache"),
    ):
        pass


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"Expected a place .* exists: '.*cache'"),
        lock.held_beside(tmp_path / "file" / "cache"),
    ):
        pass


@pytest.mark.parametrize("place", ["dead/run", "dead/a/b", "/proc/nowhere/run"])
def test_what_cannot_be_made_ends(place, tmp_path):
    os.symlink("/no/such/disk", tmp_path / "dead")
    for held in (lock.held, lock.held_beside):
        with (
            pytest.raises(OSError, match=f"Expected a place .*{place}"),
            held(tmp_path / place),
        ):
            pass


def try_to_hold(answers, folder):
    if os.geteuid() == 0:  # who may write anywhere
        os.seteuid(65534)
    try:
        with lock.held(folder):
            answers.send("held")
    except OSError as error:
        answers.send((type(error), str(error)))


def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o555)
    for folder in (tmp_path, tmp_path / "run"):
        _, answers = in_a_process(try_to_hold, folder)
        assert answers.recv() == (
            PermissionError,
            "[Errno 13] Expected a place that can be written. Received: Permission "
            f"denied: '{folder}'",
        )
