"""The page to play with: what its server answers and refuses, in a browser."""

import base64
import contextlib
import http.client
import json
import re
import socket
import threading

import browser
import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from conftest import imported
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier

from shared import local_server

import dd_keras
from dd_keras import attacks, datasets
from dd_keras.utils import norms

SHAPE = (8, 8, 1)
BAD_NAME = "<img src=x onerror=alert(1)>"
NAMES = [*map(str, range(9)), BAD_NAME]
LINEAR = "linear <b>&amp;</b>"
needs_browser = pytest.mark.skipif(
    browser.CHROMIUM is None, reason=browser.MISSING
)


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def images(data):
    """Test images in whole pixels, (12, 8, 8, 1)."""
    return np.rint(next(iter(data.test.batch(12)))[0].numpy())


@pytest.fixture(scope="module")
def network(digits):
    """A classifier of preprocessed digits, hardly trained."""
    x, y, _, _ = digits
    keras.utils.set_random_seed(0)
    scaled = keras.layers.Rescaling(1 / 64)
    layers = [keras.Input(SHAPE), scaled, keras.layers.Flatten()]
    dense = [keras.layers.Dense(32, "relu"), keras.layers.Dense(10)]
    model = keras.Sequential([*layers, *dense])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(x, y, batch_size=50, epochs=4, verbose=0)
    return model


@pytest.fixture(scope="module")
def linear():
    """An affine classifier of raw pixels: distances have a closed form."""
    x, y = load_digits(return_X_y=True)
    fitted = RidgeClassifier().fit(x[:900], y[:900])
    layers = [
        keras.Input(SHAPE),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
    model = keras.Sequential(layers)
    # Sharper, so that probabilities are not all alike.
    weights = 5 * fitted.coef_.T * 16 / 255
    model.set_weights([weights, 5 * fitted.intercept_])
    return model


@pytest.fixture(scope="module")
def folder(network, linear, data, images, tmp_path_factory):
    """An export, a .keras file and samples."""
    folder = tmp_path_factory.mktemp("playground")
    dd_keras.export(
        network, folder / "served", data.preprocessing,
        class_names=NAMES, warm_up_requests=False,
    )  # fmt: skip
    linear.save(folder / "linear.keras")
    for name, image in zip(("first", "second"), images, strict=False):
        encoded = tf.io.encode_png(image.astype(np.uint8)).numpy()
        (folder / f"{name}.png").write_bytes(encoded)
    return folder


def arguments(folder):
    return [
        f"--model=cnn={folder / 'served'}",
        f"--model={LINEAR}={folder / 'linear.keras'}",
        f"--class_names={','.join(NAMES)}",
        f"--samples={folder / 'first.png'},{folder / 'second.png'}",
        "--port=0",
    ]


@contextlib.contextmanager
def serving(*given):
    """A server of these flags, which answers meanwhile."""
    with imported("playground") as module:
        flags.FLAGS(["playground.py", *map(str, given)])
        server = module.server()  # it needs the flags no more
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(folder):
    with serving(*arguments(folder)) as server:
        yield server


def asked(server, method, path, body=None, **headers):
    """Status, headers and value of an answer; headers by name, `_` as `-`."""
    line = http.client.HTTPConnection("127.0.0.1", server.server_port, 60)
    with contextlib.closing(line):
        own = {k.replace("_", "-"): v for k, v in headers.items()}
        line.request(method, path, body, own)
        answer = line.getresponse()
        return answer.status, answer.headers, answer.read()


def post(server, request, **headers):
    """Status and value of the answer to a request of /ask."""
    body = request if isinstance(request, bytes) else json.dumps(request)
    headers = {"Content_Type": "application/json"} | headers
    status, _, found = asked(server, "POST", "/ask", body, **headers)
    return status, json.loads(found)


def answers(server, image):
    status, value = post(server, {"pixels": image.tolist()})
    assert status == 200, value
    return value


def pixels_of(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    decoded = tf.io.decode_png(base64.b64decode(data)).numpy()
    return decoded.astype(np.float32)


# ------------------------------------------------------------- its answers


def test_answers_are_those_of_the_network_and_deepfool(
    server, network, data, images
):
    x = data.preprocessing(images)
    probabilities = tf.nn.softmax(network(x)).numpy()
    found = attacks.DeepFool().run(network, x)
    rho, l2 = norms.rho(found.perturbation, x), norms.sample_norm(
        found.perturbation
    )  # fmt: skip
    nearest = network(x + found.perturbation).numpy().argmax(-1)
    for row, image in enumerate(images):
        told = answers(server, image)
        np.testing.assert_array_equal(pixels_of(told["image"]), image)
        model, _ = told["models"]
        order = np.argsort(-probabilities[row])[:5]
        assert model["name"] == "cnn"
        assert model["class"] == NAMES[order[0]]
        assert [one["class"] for one in model["most_probable"]] == [
            NAMES[k] for k in order
        ]
        np.testing.assert_allclose(
            [one["probability"] for one in model["most_probable"]],
            probabilities[row, order], rtol=1e-3, atol=1e-6,
        )  # fmt: skip
        np.testing.assert_allclose(model["rho"], rho[row], rtol=1e-3)
        np.testing.assert_allclose(model["l2"], l2[row], rtol=1e-3)
        assert model["nearest_class"] == NAMES[nearest[row]]


def test_answers_are_those_of_the_export(server, folder, images):
    """Of a file in colour, of another size."""
    large = tf.image.resize(images[3], (19, 13)).numpy().round()
    photo = np.repeat(large, 3, axis=-1).astype(np.uint8)
    file = tf.io.encode_png(photo).numpy()
    request = {"encoded": base64.b64encode(file).decode()}
    status, told = post(server, request)
    assert status == 200
    loaded = tf.saved_model.load(str(folder / "served/1"))
    given = tf.constant([file])
    classes = loaded.signatures["serve_encoded"](encoded=given)
    robust = loaded.signatures["robustness_encoded"](encoded=given)
    model = told["models"][0]
    assert model["class"] == classes["labels"][0].numpy().decode()
    # The pad holds whole pixels: they are rounded once more.
    np.testing.assert_allclose(
        model["probability"], np.max(classes["probabilities"]), atol=0.02
    )
    np.testing.assert_allclose(model["l2"], robust["l2"][0], rtol=0.03)
    # What is asked about is what is shown.
    again = answers(server, pixels_of(told["image"]))
    assert again == told


def test_distance_of_an_affine_classifier_in_closed_form(
    server, linear, images
):
    weights, biases = linear.get_weights()
    for image in images[:4]:
        model = answers(server, image)["models"][1]
        scores = image.reshape(-1) @ weights + biases
        best = scores.argmax()
        gaps = np.delete(scores[best] - scores, best)
        steep = np.linalg.norm(
            np.delete(weights - weights[:, [best]], best, 1), axis=0
        )
        shortest = np.min(gaps / steep)
        np.testing.assert_allclose(model["l2"], 1.02 * shortest, rtol=1e-3)
        np.testing.assert_allclose(
            model["rho"], model["l2"] / np.linalg.norm(image), rtol=1e-5
        )


def test_the_adversarial_image_is_what_it_is_said_to_be(
    server, network, linear, data, images
):
    """It is shown in whole, valid pixels, and these fool the network."""
    both = [lambda i: network(data.preprocessing(i)), linear]
    for image in images[:6]:
        told = answers(server, image)["models"]
        for model, ask in zip(told, both, strict=True):
            found = model["adversarial"]
            shown = pixels_of(found["image"])
            assert shown.shape == SHAPE
            scores = tf.nn.softmax(ask(shown[None])).numpy()[0]
            assert found["class"] == NAMES[scores.argmax()] != model["class"]
            np.testing.assert_allclose(
                found["probability"], scores.max(), rtol=1e-3
            )
            change = shown - image
            length = np.linalg.norm(change)
            np.testing.assert_allclose(found["l2"], length, rtol=1e-3)
            assert found["largest"] == np.abs(change).max()
            # Within pixels it is not much longer than DeepFool's without.
            assert 0.8 * model["l2"] < length < 3 * model["l2"]
            # Red is brighter, blue is darker, by as much as is said.
            red, _, blue = np.moveaxis(pixels_of(found["perturbation"]), -1, 0)
            share = found["amplified"] * change[..., 0] / 127.5
            np.testing.assert_array_equal(
                np.sign(red - blue), np.sign(np.rint(255 * share))
            )
            assert 0.9 < np.abs(share).max() < 1.1


def test_next_to_a_boundary_there_is_an_adversarial_image(
    server, linear, images
):
    """Nearly all of a perturbation is lost when pixels are rounded."""
    found = attacks.DeepFool().run(linear, images[:4])
    for change in (0.9 * found.perturbation.numpy(), 0.97 * found.perturbation):
        near = np.clip(images[:4] + change, 0, 255)
        for image in near:
            model = answers(server, image)["models"][1]
            assert model["adversarial"]["class"] != model["class"]


def test_what_cannot_be_turned_back_has_no_picture(linear, tmp_path):
    layers = [keras.Input(SHAPE), keras.layers.AveragePooling2D(3, 1, "same")]
    keras.Sequential(layers).save(tmp_path / "blur.keras")
    linear.save(tmp_path / "linear.keras")
    with serving(
        f"--model=it={tmp_path / 'linear.keras'}", "--samples=", "--port=0",
        f"--preprocessing={tmp_path / 'blur.keras'}", "--attack=deepfool",
    ) as server:  # fmt: skip
        [model] = answers(server, np.full(SHAPE, 99.0))["models"]
    assert model["adversarial"] is None
    assert model["rho"] > 0


def test_blank_image_has_an_answer(server):
    """Its norm is zero, and JSON has no infinity."""
    _, model = answers(server, np.zeros(SHAPE))["models"]
    assert model["rho"] is None or np.isfinite(model["rho"])


# ------------------------------------------------------------ bad requests

GOOD = np.zeros(SHAPE).tolist()


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b'{"pixels": [NaN]}', "finite numbers"),
        (b'{"pixels": [-Infinity]}', "finite numbers"),
        (json.dumps({"pixels": GOOD}).replace("0.0", "1e999").encode(),
         "numbers from 0 to 255"),
        (json.dumps({"pixels": GOOD}).replace("0.0", "256", 1).encode(),
         "numbers from 0 to 255"),
        (json.dumps({"pixels": GOOD}).replace("0.0", "-1", 1).encode(),
         "numbers from 0 to 255"),
        ([], "'pixels' or 'encoded'"),
        ({}, "'pixels' or 'encoded'"),
        ({"path": "/etc/passwd"}, "'pixels' or 'encoded'"),
        ({"pixels": GOOD, "encoded": ""}, "'pixels' or 'encoded'"),
        ({"pixels": GOOD[:7]}, "of shape (8, 8, 1)"),
        ({"pixels": [GOOD]}, "of shape (8, 8, 1)"),
        ({"pixels": [*GOOD[:7], GOOD[7][:3]]}, "of shape (8, 8, 1)"),
        ({"pixels": np.full(SHAPE, "7").tolist()}, "of shape (8, 8, 1)"),
        ({"pixels": np.full(SHAPE, True).tolist()}, "of shape (8, 8, 1)"),
        ({"pixels": None}, "of shape (8, 8, 1)"),
        ({"pixels": {}}, "of shape (8, 8, 1)"),
        ({"encoded": 7}, "a file in base64"),
        ({"encoded": None}, "a file in base64"),
        ({"encoded": "no base64!"}, "a file in base64"),
        ({"encoded": "\u732b"}, "a file in base64"),
        ({"encoded": ""}, "expected a PNG or JPEG file"),
        ({"encoded": base64.b64encode(b"GIF89a").decode()},
         "expected a PNG or JPEG file"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_in_plain_words(server, request_, part):
    status, value = post(server, request_)
    assert status == 400
    assert list(value) == ["error"]
    assert part in value["error"]


def test_large_requests_are_refused_before_they_are_read(server):
    body = b" " * (local_server.LARGEST_BODY + 1)
    status, value = post(server, body)
    assert status == 413
    assert str(local_server.LARGEST_BODY) in value["error"]
    huge = base64.b64encode(bytes(5 * 2**20 + 1)).decode()
    status, value = post(server, {"encoded": huge})
    assert (status, "at most 5 MiB" in value["error"]) == (400, True)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_other_pages_cannot_use_it(server, headers):
    """By a name that leads here (DNS rebinding), or from their own origin."""
    headers = {
        name: value.format(port=server.server_port)
        for name, value in headers.items()
    }
    status, value = post(server, {"pixels": GOOD}, **headers)
    assert status == 403
    assert "expected" in value["error"]
    assert asked(server, "GET", "/config", **headers)[0] == 403


def test_two_hosts_or_none_are_refused(server):
    own = f"Host: 127.0.0.1:{server.server_port}\r\n"
    for hosts, status in (("", b"403"), (own + own, b"403"), (own, b"200")):
        with socket.create_connection(server.server_address) as line:
            line.sendall(f"GET / HTTP/1.0\r\n{hosts}\r\n".encode())
            assert line.makefile("rb").readline().split()[1] == status


def test_the_name_localhost_is_its_own(server):
    host = f"localhost:{server.server_port}"
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert post(server, {"pixels": GOOD}, **headers)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/index.html", "/../playground.py", "/../../README.md", "//etc/passwd",
     "/%2e%2e/playground.py", "/playground_page/script.js", "/first.png",
     "/style.css/", "/samples/first.png", "/\x7f"],
)  # fmt: skip
def test_no_other_path_is_served(server, path):
    with contextlib.suppress(http.client.InvalidURL):
        assert asked(server, "GET", path)[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", "/ask", 405, "POST"),
        ("POST", "/config", 405, "GET"),
        ("POST", "/none", 404, None),
        ("PUT", "/ask", 501, None),
    ],
)
def test_other_methods_are_refused(server, method, path, status, allowed):
    found, headers, body = asked(server, method, path)
    assert (found, headers["Allow"]) == (status, allowed)
    assert list(json.loads(body)) == ["error"]


def test_type_and_length_are_asked_for(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        status, value = post(server, {"pixels": GOOD}, Content_Type=kind)
        assert (status, "application/json" in value["error"]) == (415, True)
    for length in ("-1", "1e3", "\u00b2", "9" * 30):
        headers = {"Content_Length": length}
        assert post(server, b"", **headers)[0] == 411


def test_every_answer_has_the_policy(server):
    for path in ("/", "/script.js", "/style.css", "/config", "/none"):
        _, headers, _ = asked(server, "GET", path)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_it_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_failures_of_a_model_are_told_without_their_text(capfd):
    def fail(given):
        raise RuntimeError("a path")

    with local_server.Server(0, {}, {"/ask": fail}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status, value = post(server, {})
        server.shutdown()
    assert status == 500
    assert value["error"] == "the server failed: RuntimeError."
    assert "a path" in capfd.readouterr().err


# -------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (["--model=savedmodels"], "expected NAME=PATH"),
        (["--model==savedmodels"], "expected NAME=PATH"),
        (["--model=a="], "expected NAME=PATH"),
        (["--model=a=b", "--model=a=c"], "expected different names"),
        ([f"--model={k}=a" for k in range(5)], "expected 1 to 4 models"),
        (["--port=65536"], "port"),
        (["--attack=none"], "attack"),
    ],
)
def test_bad_flags(given, part):
    with (
        imported("playground"),
        pytest.raises(flags.Error, match=part),
    ):
        flags.FLAGS(["playground.py", *given])


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--model=a=nowhere"], "nowhere: expected a Keras model file"),
        (["--class_names=a,b"], "expected 10 names of classes; received 2"),
        (["--samples=README.md"], "README.md: encoded: expected a PNG"),
        (["--samples=nowhere.png"], "nowhere.png: "),
        (["--model=b=flat.keras"], "expected a classifier of images"),
        (["--model=b=wide.keras"], "received wide.keras, of (9, 8, 1)"),
        (["--port=TAKEN"], "--port: expected one that is free"),
    ],
)
def test_bad_inputs_end_it_with_one_line(folder, monkeypatch, more, part):
    monkeypatch.chdir(folder)
    for name, shape in (("flat", (64,)), ("wide", (9, 8, 1))):
        layers = [keras.Input(shape), keras.layers.Flatten()]
        model = keras.Sequential([*layers, keras.layers.Dense(10)])
        model.save(f"{name}.keras")
    (folder / "README.md").write_text("text")
    own = ["--model=a=linear.keras"] * (more != ["--model=a=nowhere"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        given = [one.replace("TAKEN", port) for one in (*own, *more)]
        given += ["--samples=first.png"] * ("--samples" not in str(more))
        with pytest.raises(SystemExit) as caught, serving(*given):
            pass
    assert str(caught.value).startswith("error: ")
    assert part in str(caught.value)


def test_it_prints_its_address_and_ends_quietly(folder, monkeypatch, capsys):
    def interrupted(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(local_server.Server, "serve_forever", interrupted)
    model = f"--model=a={folder / 'linear.keras'}"
    with imported("playground") as module:
        given = [model, "--samples=", "--port=0", "--attack=deepfool"]
        flags.FLAGS(["playground.py", *given])
        with pytest.raises(SystemExit) as caught:
            module.main(["playground.py"])
    assert caught.value.code == 130
    printed = capsys.readouterr()
    assert re.search(r"^Open http://127\.0\.0\.1:\d+/ ", printed.out)
    assert printed.err.strip() == "Interrupted."


# -------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.opened(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium, server):
    """The page with its first sample's answers, on a wide screen."""
    return shown(chromium, server)


def shown(page, server, width=1280, height=900, sample="first"):
    page.console.clear()
    page.requests.clear()
    page.screen(width, height)
    page.open(f"{server.address}#sample={sample}")
    settled(page)
    return page


def settled(page):
    page.wait("document.body.dataset.answers && !asking")


def text(page, selector):
    found = f"document.querySelectorAll({json.dumps(selector)})"
    return page.evaluate(f"[...{found}].map(e => e.textContent)")


def picked(page):
    """Which pixels of the pad are not black."""
    return np.any(np.array(page.evaluate("pixels()")) > 0, axis=-1)


@needs_browser
@pytest.mark.parametrize(
    ("width", "sample"), [(1280, "first"), (390, "second"), (320, "first")]
)
def test_page_shows_the_answers_for_a_sample(
    chromium, server, images, width, sample
):
    page = shown(chromium, server, width, sample=sample)
    image = images[0 if sample == "first" else 1]
    np.testing.assert_array_equal(page.evaluate("pixels()"), image)
    told = answers(server, image)["models"]
    assert text(page, ".card h2") == ["cnn", LINEAR]
    assert text(page, ".answer strong") == [one["class"] for one in told]
    assert text(page, ".bars .name") == [
        best["class"] for one in told for best in one["most_probable"]
    ]
    for one, cells in zip(
        told, np.reshape(text(page, ".card dd"), (2, 3)), strict=True
    ):
        np.testing.assert_allclose(float(cells[0]), one["rho"], rtol=6e-3)
        np.testing.assert_allclose(float(cells[1]), one["l2"], rtol=6e-3)
        assert cells[2] == one["nearest_class"]
    assert page.evaluate("[...document.images].every(i => i.naturalWidth)")
    found = page.evaluate(
        "[...document.querySelectorAll('.trio')].map(t => t.children[2]"
        ".querySelector('img').src)"
    )
    assert found == [one["adversarial"]["image"] for one in told]
    # Nothing goes wrong, nothing leaves the page, all of it is seen.
    assert page.console == []
    names = ("", "style.css", "script.js", "config", "ask")
    own = {f"{server.address}{name}" for name in names}
    asked_for = {url.partition("#")[0] for url in page.requests}
    assert asked_for - {"about:blank"} == own
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_names_are_text_and_never_markup(page, server, images):
    name = json.dumps(BAD_NAME)
    page.evaluate(
        f"empty(), show({{image: '', models: [{{name: {name}, class: {name}, "
        f"probability: 1, most_probable: [{{class: {name}, probability: 1}}], "
        f"rho: null, l2: null, nearest_class: {name}, adversarial: null}}]}})"
    )
    assert text(page, ".card h2, .answer strong, .bars .name") == [BAD_NAME] * 3
    assert text(page, ".card dd") == ["not found", "not found", BAD_NAME]
    assert page.evaluate("document.querySelectorAll('.card img').length") == 0


@needs_browser
def test_drawing_asks_about_what_was_drawn(page):
    page.evaluate("element('clear').click()")
    page.wait("!asking")
    assert not picked(page).any()
    assert text(page, ".card .muted") == ["Nothing is drawn yet."] * 2
    box = page.evaluate(
        "(b => [b.x, b.y, b.width])(pad.getBoundingClientRect())"
    )
    x, y, size = box[0], box[1], box[2] / 8
    page.mouse("mousePressed", x + 2.5 * size, y + 1.5 * size)
    page.mouse("mouseMoved", x + 2.5 * size, y + 6.5 * size)
    page.mouse("mouseReleased", x + 2.5 * size, y + 6.5 * size)
    page.wait("document.querySelector('.trio') && !asking")
    drawn = picked(page)
    assert drawn[2:6, 2].all()
    assert not drawn[:, 4:].any()


@needs_browser
def test_the_pad_takes_keys(page):
    page.evaluate("element('clear').click(), pad.focus()")
    page.wait("!asking")
    for key in (" ", "ArrowRight", "ArrowRight", " ", "ArrowDown"):
        page.key(key)
    page.wait("document.querySelector('.trio') && !asking")
    drawn = picked(page)
    assert drawn[3:5, 4:6].all()
    assert not drawn[6:].any()
    assert not drawn[:, :3].any()


@needs_browser
def test_a_file_is_uploaded_and_a_bad_one_is_told_of(page, server, images):
    for name, data in (("good", None), ("bad", "no image")):
        uri = answers(server, images[5])["image"]
        told = page.evaluate(f"""(async () => {{
            const bytes = Uint8Array.from(
              atob('{uri.partition(",")[2]}'), c => c.charCodeAt(0));
            const part = {json.dumps(data)} ?? bytes;
            await upload(new File([part], '{name}.png'));
            return element('status').textContent;
        }})()""")
        assert ("bad.png: encoded: expected" in told) == (name == "bad")
        found = page.evaluate("pixels()")
        np.testing.assert_array_equal(found, images[5])


@needs_browser
def test_invert_turns_dark_and_light(page, images):
    page.evaluate("element('invert').click()")
    settled(page)
    np.testing.assert_array_equal(page.evaluate("pixels()"), 255 - images[0])


@needs_browser
def test_a_browser_tells_of_what_a_page_must_not_do(page):
    """The tests above see what they look for."""
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', "
        '\'<img src="http://example.test/a.png" onerror=alert(1)>'
        '<p style="width: 600px">wide</p>\'), setTimeout(() => none())'
    )
    page.evaluate("element('pad').style.width = '5000px'")
    page.wait("document.documentElement.scrollWidth > 1280")
    assert any("none is not defined" in line for line in page.console)
    assert any("img-src" in line for line in page.console)
    assert any("style-src" in line for line in page.console)
