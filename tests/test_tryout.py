"""The page to try a network: what it answers, and the page itself in a browser."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from numpy_reference import softmax

from keras_hsakd import export, strip_heads
from keras_hsakd.data.decoding import MAX_PIXELS
from keras_hsakd.grad_cam import grad_cam
from keras_hsakd.runs import (
    DataSettings,
    Distill,
    Run,
    Teacher,
    TrainingSettings,
    train,
)
from keras_hsakd.tryout import opening, page
from keras_hsakd.tryout.answers import (
    Answer,
    JointPrediction,
    NetworkOfRun,
    View,
)
from keras_hsakd.tryout.artefacts import open_artefact
from keras_hsakd.tryout.drawing import drawn, heated_image
from keras_hsakd.tryout.opening import open_networks

DIGITS = DataSettings(data="digits", image_size=8, examples_per_class=5, limit=50)
TRAINING = TrainingSettings(model="wrn_10_1", epochs=1, batch_size=25)
NAMES = list("0123456789")
PHOTO = np.random.default_rng(0).integers(0, 256, (12, 20, 3), "uint8")
FILE = tf.io.encode_png(PHOTO).numpy()


@pytest.fixture(scope="module")
def runs(stand_ins, eager_trainers, tmp_path_factory):
    """Returns a folder with the runs of a teacher and of its student."""
    folder = tmp_path_factory.mktemp("runs")
    train(Teacher(), folder / "teacher", TRAINING, DIGITS, verbose=0)
    student = Distill(teacher=folder / "teacher")
    train(student, folder / "student", TRAINING, verbose=0)
    return folder


@pytest.fixture(scope="module")
def networks(runs):
    """Returns student and teacher, as the page asks them."""
    return open_networks(runs / "student")


@pytest.fixture(scope="module")
def artefacts(runs):
    """Returns the path of an artefact by its format, with names of the classes."""
    formats = ["saved_model", "keras"]
    student = Run.open(runs / "student").network()
    shipped = export.ship(student, runs / "serving", formats, class_names=NAMES)
    return {name: result.path for name, result in shipped.items()}


# Answers.


def as_evaluated(center_crop=None):
    """Returns the photo as the evaluation of a run reads it."""
    image = PHOTO
    if center_crop is not None:
        edge = round(12 * center_crop)
        top, left = (12 - edge) // 2, (20 - edge) // 2
        image = image[top : top + edge, left : left + edge]
    return tf.image.resize(image, (8, 8), antialias=True).numpy()


@pytest.mark.parametrize("center_crop", [None, 0.5])
def test_a_run_answers_as_its_network(runs, center_crop):
    run = Run.open(runs / "student")
    run.record["data"]["center_crop"] = center_crop
    answer = NetworkOfRun("Student", run)(FILE)
    images = as_evaluated(center_crop)[np.newaxis]
    np.testing.assert_array_equal(answer.image, np.rint(images[0]))

    network = run.network()
    rotated = np.stack([np.rot90(images[0], turns) for turns in range(4)])
    outputs = network.predict(rotated, verbose=0)
    expected = softmax(outputs["logits"][0])
    order = np.argsort(-expected)[:5]
    assert [label for label, _ in answer.predictions] == [NAMES[n] for n in order]
    received = [probability for _, probability in answer.predictions]
    np.testing.assert_allclose(received, expected[order], rtol=1e-4)
    assert 0 < answer.milliseconds < 10_000
    np.testing.assert_allclose(
        answer.heat_map, grad_cam(strip_heads(network), images)[0], rtol=1e-4, atol=1e-6
    )

    assert [view.name for view in answer.views] == ["0°", "90°", "180°", "270°"]
    for turns, view in enumerate(answer.views):
        np.testing.assert_array_equal(view.image, np.rint(rotated[turns]))
        for number, joint in enumerate(view.heads, start=1):
            probabilities = softmax(outputs[f"aux_{number}"][turns])
            best = probabilities.argmax()
            assert joint.label == NAMES[best // 4]
            assert joint.view == answer.views[best % 4].name
            np.testing.assert_allclose(
                joint.probability, probabilities[best], rtol=1e-4
            )
    assert number == 3


def test_a_teacher_answers_beside_its_student(runs, networks):
    student, teacher = (network(FILE) for network in networks)
    assert student.title == "Student · wrn_10_1"
    assert teacher.title == "Teacher · wrn_10_1"
    (own,) = open_networks(runs / "teacher")
    assert own(FILE).predictions == teacher.predictions != student.predictions


def test_another_teacher_is_left_out(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "warmed_up", lambda network: network)
    student = tmp_path / "student"
    shutil.copytree(runs / "student", student)
    record = json.loads((student / "run.json").read_text())
    for origin, reason in (
        ({"weights": "0123456789abcdef"}, "one of other weights"),
        ({"run": str(tmp_path / "gone")}, "is not a folder"),
    ):
        changed = {**record, "origin": {**record["origin"], **origin}}
        (student / "run.json").write_text(json.dumps(changed))
        with pytest.warns(UserWarning, match=f"without the teacher: .*{reason}"):
            assert len(open_networks(student)) == 1


@pytest.mark.parametrize("name", ["saved_model", "keras", "litert", "onnx"])
def test_an_artefact_answers_as_the_student(runs, networks, artefacts, name):
    if name not in artefacts:
        pytest.importorskip("ai_edge_litert" if name == "litert" else "onnxruntime")
        pytest.importorskip("tf2onnx")
        student = Run.open(runs / "student").network()
        shipped = export.ship(student, runs / "others", [name], class_names=NAMES)
        assert shipped[name].error is None
        path = shipped[name].path
    else:
        path = artefacts[name]
    (artefact,) = open_networks(path)
    answer = artefact(FILE)
    assert answer.title.endswith(f" · {path}")
    expected = networks[0](FILE).predictions
    for received, own in zip(answer.predictions, expected, strict=True):
        # Keras' file has no names.
        assert received.label == ("class " if name == "keras" else "") + own.label
        assert abs(received.probability - own.probability) < 2e-3  # pixels are rounded
    assert answer.heat_map is None
    assert not answer.views
    assert answer.image.shape == (PHOTO.shape if name == "saved_model" else (8, 8, 3))


def test_what_cannot_be_tried_is_said(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="'nowhere', which does not exist"):
        open_networks("nowhere")
    with pytest.raises(FileNotFoundError, match="which is none of them"):
        open_networks(tmp_path)
    (tmp_path / "1.keras").write_text("no archive")
    with pytest.raises(ValueError, match="1.keras' to be what `keras-hsakd export`"):
        open_networks(tmp_path / "1.keras")
    # A network as it was trained is no artefact: it gives no probabilities.
    with pytest.raises(ValueError, match="last.keras' to be what `keras-hsakd export`"):
        open_networks(runs / "student" / "last.keras")
    with pytest.raises(FileNotFoundError, match="without best.keras"):
        shutil.copytree(runs / "student", tmp_path / "student")
        (tmp_path / "student" / "best.keras").unlink()
        open_networks(tmp_path / "student", checkpoint="best")


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.invalid", "a" * 70])
def test_a_page_of_another_machine_is_refused_at_once(host):
    with pytest.raises(OSError, match=f"`--host` to be .* Received: '{host}'"):
        page.serve("nowhere", host=host)


# The page as text.


def test_what_is_no_image_is_one_clear_error(networks, artefacts):
    artefact = open_artefact(artefacts["saved_model"])
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") * 2
    for content, reason in (
        (b"", "Received: an empty file"),
        (b"dear page, this is a letter", "Received: text"),
        (b"<html><script>alert(1)</script>", "Received: HTML"),
        (FILE[:200], "PNG"),
        (FILE + bytes(20 * 10**6), "at most 20 MB"),
        (header, f"at most {MAX_PIXELS} pixels. Received: 20000 x 20000"),
    ):
        for asked in (networks, [artefact]):
            text = page.answered(asked, content)
            assert text.startswith('<div class="refused" role="alert">')
            assert reason in text
            assert "answer" not in text
    assert page.answered(networks, FILE).count('class="answer"') == 2


def test_names_are_text_on_the_page():
    joint = JointPrediction("<i>", "90°", 0.5)
    view = View("0°", PHOTO, [joint, joint._replace(view="0°")])
    answer = Answer('<u>"', [("<b>", 0.25)], 1.0, PHOTO, None, [view])
    text = drawn([answer])
    assert not any(tag in text for tag in ("<i>", "<u>", "<b>"))
    assert "&lt;i&gt;" in text
    # A view that is taken for another one shows.
    assert text.count('class="wrong"') == 1


def test_heat_is_where_the_map_is():
    heat_map = np.zeros((4, 4))
    heat_map[0, 3] = 2.0
    image = np.full((8, 8, 3), 100, "uint8")
    heated = heated_image(image, heat_map).astype(int)
    redness = heated[..., 0] - heated[..., 2]
    assert redness[20, -20] > 100
    assert np.all(redness[100:, :100] < 10)
    # Nothing speaks for the class: no heat, and no division by zero.
    cold = heated_image(image, np.zeros((4, 4))).astype(int)
    assert np.ptp(cold) == 0


def test_gradio_is_asked_for(runs, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"Run: pip install 'keras_hsakd\[try\]'"):
        page.serve(runs / "student")


# In a browser.

PROGRAM = "import sys; from keras_hsakd import cli; sys.exit(cli.main(sys.argv[1:]))"


@pytest.fixture
def browser():
    """Returns Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = map(shutil.which, ("chromium", "chromedriver"))
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "window-size=1280,860"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options=options, service=service) as started:
        started.implicitly_wait(30)
        yield started


@pytest.mark.slow
def test_the_page_answers_in_a_browser(runs, networks, browser, tmp_path):
    pytest.importorskip("gradio")
    places = {name: tmp_path / name for name in ("home", "cwd", "tmp", "others")}
    for place in places.values():
        place.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "try", str(runs / "student")]
        + ["--port", str(port), "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=places["cwd"],
        env={
            **os.environ,
            "PYTHONPATH": os.getcwd(),
            "HOME": str(places["home"]),
            "TMPDIR": str(places["tmp"]),
            # What Keras and matplotlib keep is theirs.
            "KERAS_HOME": str(places["others"]),
            "MPLCONFIGDIR": str(places["others"]),
        },
    )
    try:
        said = process.stdout.readline()
        assert said.startswith(f"Answering on http://127.0.0.1:{port}/"), (
            said or process.stderr.read()
        )
        # On this address alone.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5).close()

        def drop(content):
            """Returns the text of the answer to a file."""
            path = tmp_path / f"file {time.monotonic_ns()}"
            path.write_bytes(content)
            find("input[type=file]").send_keys(str(path))
            answer = find(".answers:not(.seen), .refused:not(.seen)")
            # So that the next answer is not taken for this one.
            browser.execute_script("arguments[0].classList.add('seen')", answer)
            return answer.text

        def find(selector):
            return browser.find_element("css selector", selector)

        browser.get(f"http://127.0.0.1:{port}")
        for content in (FILE, b"a letter", FILE):
            text = drop(content)
            if content != FILE:
                assert text == (
                    "Expected a JPEG, PNG, GIF, BMP or WebP file. Received: text"
                )
                continue
            for answer in (network(FILE) for network in networks):
                assert answer.title in text
                label, probability = answer.predictions[0]
                assert f"\n{label}\n{100 * probability:.1f} %" in text
            assert text.count("head 3") == 2
        requests = [
            message["params"]["request"]["url"]
            for entry in browser.get_log("performance")
            if (message := json.loads(entry["message"])["message"])["method"]
            == "Network.requestWillBeSent"
        ]
        own = (f"http://127.0.0.1:{port}/", "data:", "blob:")
        assert requests
        assert [url for url in requests if not url.startswith(own)] == []

        # Gradio leaves empty ones.
        kept = [p for p in places["tmp"].rglob("*") if p.is_file() and p.stat().st_size]
        assert kept == []
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "Traceback" not in error
    for name in ("home", "cwd", "tmp"):
        assert list(places[name].iterdir()) == []
