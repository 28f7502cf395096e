"""The example client, against the stand-in for a model server."""

import http.server
import json
import re
import socket
import textwrap
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from broken_server import answering, asked
from conftest import imported, shell
from model_server import STAND_IN, running

import dd_keras
from dd_keras import attacks, datasets
from dd_keras.utils import norms

NAMES = [f"digit {i}" for i in range(10)]
# What a client by REST has no need of; None in sys.modules is not imported.
WITHOUT = """
    import runpy, sys
    for name in {names}:
        sys.modules[name] = None
    runpy.run_path("apps/client.py", run_name="__main__")
    """
NOT_NEEDED = ["tensorflow", "dd_keras", "grpc", "tensorflow_serving", "numpy"]


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """A folder with images of different digits: PNGs, and one JPEG."""
    folder = tmp_path_factory.mktemp("files")
    images = next(iter(data.test.batch(4)))[0].numpy().round()
    for i, image in enumerate(images.astype(np.uint8)):
        encode = tf.io.encode_jpeg if i == 3 else tf.io.encode_png
        ending = "jpg" if i == 3 else "png"
        (folder / f"{i}.{ending}").write_bytes(encode(image).numpy())
    return folder


@pytest.fixture(scope="module")
def paths(files):
    return sorted(files.iterdir())


@pytest.fixture(scope="module")
def expected(trained_network, data, paths):
    """One tuple a file, of what Keras and DeepFool say."""
    decoded = [tf.io.decode_image(path.read_bytes()) for path in paths]
    x = data.preprocessing(tf.cast(tf.stack(decoded), tf.float32))
    probabilities = tf.nn.softmax(trained_network(x)).numpy()
    found = attacks.DeepFool().run(trained_network, x)
    adversarial = trained_network(x + found.perturbation).numpy()
    return list(
        zip(
            probabilities.argmax(-1),
            probabilities.max(-1),
            norms.rho(found.perturbation, x).numpy(),
            norms.sample_norm(found.perturbation).numpy(),
            adversarial.argmax(-1),
            strict=True,
        )
    )


@pytest.fixture(scope="module")
def server(trained_network, data, tmp_path_factory):
    """A server of one model with names of classes and one without."""
    folder = tmp_path_factory.mktemp("models")
    dd_keras.export(
        trained_network,
        folder / "digits",
        data.preprocessing,
        class_names=NAMES,
    )
    dd_keras.export(
        trained_network,
        folder / "numbers",
        data.preprocessing,
        attack=attacks.DeepFool(norm=1),
        version=3,
    )
    models = dd_keras.serving.write_server_config(folder, str(folder))
    with running(
        STAND_IN,
        f"--model_config_file={folder / 'models.config'}",
        models=models,
        log=folder / "server.txt",
    ) as address:
        yield address


def client(server, *arguments, protocol="rest", model="digits"):
    """Runs the client, against a server unless this is None."""
    flags = [f"--model={model}", f"--protocol={protocol}"]
    if server is not None:
        flags.append(f"--server={getattr(server, protocol)}")
    return shell("apps/client.py", *flags, *arguments)


def rows(done):
    """The lines of the table below its titles, as lists of columns."""
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    return [
        [c.strip() for c in line.split("  ") if c.strip()] for line in lines
    ]


def assert_fails(done, *parts):
    """It ended with one line that holds all parts."""
    assert done.returncode == 1
    assert done.stdout == ""
    *notes, line = done.stderr.splitlines()
    # Those of TensorFlow, which some of its versions insist on.
    assert notes == [] or "--protocol=grpc" in done.args
    assert "Traceback" not in done.stderr
    assert line.startswith("error: ")
    assert all(str(part) in line for part in parts), line


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_table(server, paths, expected, protocol):
    done = client(server, *paths, protocol=protocol)
    assert done.stdout.startswith("file ")
    titles = "label +probability +rho +l2 +nearest class"
    assert re.search(titles, done.stdout.splitlines()[0])
    assert len({values[0] for values in expected}) > 2
    found = rows(done)
    assert len(found) == len(paths)
    for row, path, values in zip(found, paths, expected, strict=True):
        predicted, probability, rho, l2, nearest = values
        assert row[:2] == [str(path), NAMES[predicted]]
        np.testing.assert_allclose(float(row[2]), probability, atol=6e-4)
        np.testing.assert_allclose(float(row[3]), rho, atol=6e-5)
        np.testing.assert_allclose(float(row[4]), l2, rtol=6e-4)
        assert row[5:] == [str(nearest)]


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_model_without_names_and_other_norm(server, paths, expected, protocol):
    done = client(
        server, *paths, "--version=3", protocol=protocol, model="numbers"
    )
    assert re.search("class +probability +rho +l1 ", done.stdout)
    classes = [row[1] for row in rows(done)]
    assert classes == [str(values[0]) for values in expected]


def test_warn_below_marks_what_is_close(server, paths, expected):
    rhos = sorted(values[2] for values in expected)
    between = (rhos[1] + rhos[2]) / 2
    found = rows(client(server, *paths, f"--warn_below={between}"))
    for row, values in zip(found, expected, strict=True):
        mark = ["close to a boundary"] if values[2] < between else []
        assert row[6:] == mark
    nothing = client(server, *paths, "--warn_below=0")
    assert "close" not in nothing.stdout


def test_rest_takes_the_standard_library_alone(server, paths, expected):
    code = textwrap.dedent(WITHOUT).format(names=NOT_NEEDED)
    flags = ["--model=digits", f"--server={server.rest}"]
    found = rows(shell("-c", code, *flags, *paths))
    assert [row[1] for row in found] == [NAMES[v[0]] for v in expected]


@pytest.mark.parametrize("missing", ["grpc", "tensorflow_serving"])
def test_grpc_says_what_it_takes(paths, missing):
    code = textwrap.dedent(WITHOUT).format(names=[missing])
    flags = ["--model=digits", "--protocol=grpc"]
    done = shell("-c", code, *flags, *paths)
    assert_fails(done, "pip install 'dd_keras[serving]'", missing)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_no_image(server, paths, protocol, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no image")
    expected = "expected PNG or JPEG files; received one of another kind"
    done = client(server, paths[0], text, protocol=protocol)
    assert_fails(done, getattr(server, protocol), expected)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_unknown_version(server, paths, protocol):
    done = client(server, paths[0], "--version=7", protocol=protocol)
    assert_fails(done, "Servable not found", "Specific(digits, 7)")


def test_unknown_model(server, paths):
    done = client(server, paths[0], model="letters")
    assert_fails(done, "Servable not found for request: Latest(letters)")


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_no_server(paths, protocol):
    with socket.socket() as taken:  # but nobody listens
        taken.bind(("localhost", 0))
        address = f"localhost:{taken.getsockname()[1]}"
        flags = ["--model=digits", f"--protocol={protocol}"]
        done = shell("apps/client.py", *flags, f"--server={address}", paths[0])
    assert_fails(done, address)


def test_other_servers(server, paths):
    """What answers speaks gRPC, or is a web server of another kind."""
    flags = ["apps/client.py", "--model=digits", paths[0]]
    done = shell(*flags, f"--server={server.grpc}")
    assert_fails(done, f"{server.grpc}: no HTTP there")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(404 if self.server.refuses else 200)
            self.end_headers()
            self.wfile.write(b"<html>")

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = f"localhost:{web.server_port}"
        for web.refuses, reason in (
            (True, "404 Not Found"),
            (False, "no TensorFlow Serving there"),
        ):
            done = shell(*flags, f"--server={address}")
            assert_fails(done, f"{address}: {reason}")
        web.shutdown()


def test_no_answer_in_time(paths):
    with socket.socket() as silent:
        silent.bind(("localhost", 0))
        silent.listen()
        address = f"localhost:{silent.getsockname()[1]}"
        for protocol in ("rest", "grpc"):
            done = shell(
                "apps/client.py",
                "--model=digits",
                f"--server={address}",
                f"--protocol={protocol}",
                "--timeout=0.5",
                paths[0],
            )
            assert_fails(done, address)


def test_bad_files(paths, tmp_path):
    """They are found before any server is asked."""
    missing = tmp_path / "missing.png"
    assert_fails(client(None, paths[0], missing), missing, "No such file")
    assert_fails(client(None, tmp_path), tmp_path, "directory")
    assert_fails(client(None), "expected image files; received none")


@pytest.mark.parametrize("flag", ["--timeout=0", "--model="])
def test_bad_flags(paths, flag):
    done = client(None, paths[0], flag)
    assert done.returncode == 1
    assert flag.split("=")[0].strip("-") in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------- servers that are broken, or mean harm


@pytest.fixture(scope="module")
def web():
    with answering() as web:
        yield web


def refused(*arguments, **options):
    """The one line with which the client ends."""
    with pytest.raises(SystemExit) as caught:
        asked(*arguments, **options)
    message = str(caught.value)
    assert message.startswith("error: ")
    assert message.isprintable()
    return message


FOUND = {"classes": 1, "probabilities": [0.25, 0.75], "labels": "cat"}
ROBUST = {"classes": 1, "rho": 0.1, "l2": 2.0, "nearest_class": 0}


def answer(*predictions):
    return 200, json.dumps({"predictions": predictions}).encode()


def test_answers_that_are_none_make_one_line(web, paths):
    """Of either request."""
    good = answer(FOUND)
    assert "cat" in asked(web, paths[:1], good, answer(ROBUST))
    bodies = [
        *(b"", b"{", b"[]", b"null", b"7", b'{"predictions": 7}'),
        *(b'{"predictions": []}', b'{"predictions": [7]}', b"\xff\xfe"),
        b'{"predictions": ' + b"[" * 100_000,
        b"9" * 10_000,
        answer(FOUND, FOUND)[1],
    ]
    for body in bodies:
        for answers in ([(200, body)], [good, (200, body)]):
            message = refused(web, paths[:1], *answers)
            assert message.endswith(": no TensorFlow Serving there.")


@pytest.mark.parametrize(
    ("found", "robustness"),
    [
        ({}, {}),
        ({"classes": 2}, {}),
        ({"classes": -1}, {}),
        ({"classes": 0.5}, {}),
        ({"classes": None}, {}),
        ({"probabilities": 7}, {}),
        ({"probabilities": ["x", "y"]}, {}),
        ({"probabilities": [[1.0], [2.0]]}, {}),
        ({}, {"rho": "far"}),
        ({}, {"rho": None}),
        ({}, {"nearest_class": 1e300}),
        ({}, {"l1": 1.0}),
        ({}, {"l2": 10**400}),
    ],
)
def test_answers_of_another_model_make_one_line(web, paths, found, robustness):
    answers = [FOUND | found, ROBUST | robustness]
    if not found and not robustness:
        answers = [{"outputs": 1}, {"outputs": 1}]
    message = refused(web, paths[:1], *map(answer, answers))
    assert "expected the answers of an export of dd_keras; received" in message


def test_nothing_of_an_answer_steers_the_terminal(web, paths, tmp_path):
    bad = "\x1b]0;owned\x07\x1b[2J\r\nfake  1.000\u202e"
    path = tmp_path / "\x1b[31m.png"
    path.write_bytes(paths[0].read_bytes())
    robust = {**ROBUST, "l2\x1b[1m": 1.0}
    del robust["l2"]
    found = FOUND | {"labels": bad}
    printed = asked(web, [path], answer(found), answer(robust))
    assert all(line.isprintable() for line in printed.splitlines())
    assert len(printed.splitlines()) == 2
    assert r"\x1b]0;owned\x07\x1b[2J\r\nfake  1.000\u202e" in printed
    error = json.dumps({"error": "\x1b[2Jno"}).encode()
    assert r"\x1b[2Jno" in refused(web, paths[:1], (400, error))


def test_server_that_drips_is_left(web, paths):
    """Each byte comes in time; the whole never does."""

    def drip():
        for _ in range(100):
            time.sleep(0.05)
            yield b" "

    started = time.monotonic()
    for status in (200, 500):
        message = refused(
            web, paths[:1], (status, drip()), more=["--timeout=0.3"]
        )
        assert message.endswith("no answer: none within 0.3 seconds")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("status", [200, 500])
def test_answer_without_an_end_is_cut_off(web, paths, status):
    sent = []

    def endless():
        while True:
            sent.append(2**16)
            yield b" " * 2**16

    message = refused(web, paths[:2], (status, endless()))
    assert message.endswith(
        f"expected an answer of at most {2 * 2**20} bytes; received more."
    )
    # What the sockets hold comes on top.
    assert sum(sent) < 50 * 2**20


def test_tensor_that_states_any_shape_is_not_made():
    tensor = tf.make_tensor_proto(np.zeros(1, np.float32))
    tensor.tensor_shape.dim[0].size = 10**12
    with imported("client") as module:
        with pytest.raises(ValueError, match="larger than any answer"):
            module._array(tensor, 2**20, tf.make_ndarray)
        tensor.tensor_shape.dim[0].size = 3
        assert module._array(tensor, 2**20, tf.make_ndarray).shape == (3,)
