"""PASS: what is alike scores high, moved or not."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("cv2")
pytest.importorskip("skimage")

import cv2
from skimage import metrics as skimage_metrics

from dd_keras import attacks, datasets
from dd_keras.evaluation import PASS, evaluate_robustness, metrics, similarity
from dd_keras.evaluation.similarity import pass_score

COUNT = 12


def enlarged(image, side):
    image = cv2.resize(image[..., 0], (side, side), cv2.INTER_CUBIC)
    return np.clip(image, 0, 255)[..., None]


@pytest.fixture(scope="module")
def images():
    """Digits in three sizes: dict of name to (N, H, W, C) in [0, 255]."""
    test = datasets.load("digits").test.take(3 * COUNT)
    small = np.stack([image for image, _ in test.as_numpy_iterator()])
    large = np.stack([enlarged(image, 32) for image in small])
    return {
        "8x8": small[:COUNT],
        "28x28": np.stack([enlarged(image, 28) for image in small[:COUNT]]),
        "colour": np.concatenate(np.split(large, 3), axis=-1),
    }


SIZES = pytest.mark.parametrize("size", ["8x8", "28x28", "colour"])
LARGE = pytest.mark.parametrize("size", ["28x28", "colour"])


def ssim(one, other):
    """The structural similarity alone, without alignment."""
    small = min(one.shape[:2]) < 11
    return skimage_metrics.structural_similarity(
        one,
        other,
        data_range=255,
        channel_axis=-1,
        use_sample_covariance=False,
        **(
            {"win_size": 7}
            if small
            else {"gaussian_weights": True, "sigma": 1.5}
        ),
    )


def shifted(image, by=1):
    return np.roll(image, by, axis=1)


def rotated(image, degrees):
    side = image.shape[0]
    middle = ((side - 1) / 2, (side - 1) / 2)
    turned = cv2.warpAffine(
        image,
        cv2.getRotationMatrix2D(middle, degrees, 1),
        (side, side),
        borderMode=cv2.BORDER_REPLICATE,
    )
    return turned.reshape(image.shape)


def noisy(image, deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.float32)


@SIZES
def test_image_and_itself_score_one(images, size):
    for image in images[size]:
        score = pass_score(image, image.copy())
        assert type(score) is float
        assert score == pytest.approx(1, abs=1e-5)
        # The dtype is not part of the image.
        whole = image.round()
        assert pass_score(whole.astype(np.uint8), whole) == pytest.approx(
            1, abs=1e-5
        )


@pytest.mark.parametrize("pixel", [0, 100, 255])
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_constant_images_cannot_be_aligned_but_compared(shape, pixel):
    flat = np.full(shape, pixel, np.float32)
    assert pass_score(flat, flat) == 1
    speckled = noisy(flat, 10)
    for pair in ((flat, speckled), (speckled, flat)):
        assert pass_score(*pair) == pytest.approx(ssim(*pair), abs=1e-6)
    # Another constant: SSIM's comparison of means alone.
    other, c1 = 55.0, (0.01 * 255) ** 2
    expected = (2 * pixel * other + c1) / (pixel**2 + other**2 + c1)
    assert pass_score(flat, np.full(shape, other)) == pytest.approx(
        expected, rel=1e-5
    )


@LARGE
def test_moved_images_are_aligned(images, size):
    for image in images[size]:
        moved = shifted(image)
        assert ssim(image, moved) < 0.9
        assert pass_score(image, moved) > 0.99
        turned = rotated(image, 5)
        assert ssim(image, turned) < 0.98
        assert pass_score(image, turned) > 0.988


def test_most_small_images_are_aligned_and_none_the_worse(images):
    gains = np.array(
        [
            pass_score(image, shifted(image)) - ssim(image, shifted(image))
            for image in images["8x8"]
        ]
    )
    assert gains.min() > -1e-6
    assert gains.mean() > 0.1


@SIZES
@pytest.mark.parametrize(
    "change",
    [
        lambda image: noisy(image, 5),
        lambda image: noisy(image, 30),
        lambda image: noisy(image, 60),
        lambda image: rotated(image, 5),
    ],
    ids=["light", "medium", "heavy", "rotated"],
)
def test_alignment_does_not_spoil_what_is_alike(images, size, change):
    # A homography fitted to noise may fold an image of 8x8 pixels.
    for image in images[size]:
        attacked = change(image)
        assert pass_score(image, attacked) > ssim(image, attacked) - 0.04


@LARGE
def test_scores_are_in_the_order_of_likeness(images, size):
    for image in images[size]:
        scores = [
            pass_score(image, attacked)
            for attacked in (
                image,
                shifted(image),
                rotated(image, 5),
                noisy(image, 10),
                noisy(image, 40),
                noisy(image, 120),
            )
        ]
        assert scores == sorted(scores, reverse=True)
        assert scores[-2] - scores[-1] > 0.05
        assert max(scores) <= 1 + 1e-6


@SIZES
def test_score_is_about_symmetric(images, size):
    for image in images[size]:
        for attacked in (noisy(image, 5), noisy(image, 20)):
            assert pass_score(image, attacked) == pytest.approx(
                pass_score(attacked, image), abs=0.05
            )


def test_other_digits_score_lower_than_noise(images):
    for one, other in zip(images["28x28"], images["28x28"][1:], strict=False):
        assert pass_score(one, other) < pass_score(one, noisy(one, 10))


def test_small_images_are_compared_in_windows_of_seven(images):
    one = images["28x28"][0][:10, 5:20]
    other = noisy(one, 30)
    flat = np.full_like(one, 9)  # no alignment
    assert pass_score(flat, other) == pytest.approx(ssim(flat, other))


@pytest.mark.parametrize("shape", [(6, 28, 1), (28, 6, 3), (1, 1, 1)])
def test_too_small_images_are_refused(shape):
    image = np.zeros(shape)
    with pytest.raises(
        ValueError,
        match=r"^clean: expected an image of at least 7 pixels each way; "
        rf"received \({shape[0]}, {shape[1]}, {shape[2]}\)\.$",
    ):
        pass_score(image, image)
    assert pass_score(np.zeros((7, 7, 1)), np.zeros((7, 7, 1))) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [((8, 8, 1), (8, 9, 1)), ((8, 8, 1), (8, 8, 3)), ((8, 8), (8, 8))],
)
def test_other_shapes_are_refused(one, other):
    with pytest.raises(
        ValueError,
        match=r"^clean, attacked: expected two images of one shape \(height, "
        r"width, channels\); received \(8, 8.* and \(8, ",
    ):
        pass_score(np.zeros(one), np.zeros(other))


@pytest.mark.parametrize("missing", ["cv2", "skimage"])
def test_missing_library_is_named_with_its_remedy(monkeypatch, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == missing else found(name, *rest),
    )
    message = (
        rf"^PASS needs {missing}, which is not installed: pip install "
        r"'dd_keras\[evaluation\]'\.$"
    )
    with pytest.raises(ImportError, match=message):
        PASS(bounds=(0, 255))
    with pytest.raises(ImportError, match=message):
        metrics.get("pass", (0, 255))


@pytest.mark.parametrize(
    "step", ["findTransformECC", "warpPerspective", "computeECC"]
)
def test_alignment_that_fails_is_left_out(images, monkeypatch, step):
    image = images["28x28"][0]
    moved = shifted(image)
    assert pass_score(image, moved) > 0.99

    def fail(*args, **kwargs):
        raise cv2.error("it did not converge")

    monkeypatch.setattr(cv2, step, fail)
    assert pass_score(image, moved) == pytest.approx(
        ssim(image, moved), abs=1e-6
    )


def test_metric_compares_the_images_behind_the_inputs(digits, trained_network):
    data = datasets.load("digits")
    x, y = digits[2][:40], digits[3][:40]
    raw = np.stack(
        [image for image, _ in data.test.take(40).as_numpy_iterator()]
    )
    attack = attacks.DeepFool()
    report = evaluate_robustness(
        trained_network,
        tf.data.Dataset.from_tensor_slices((x, y)).batch(15),
        metrics=["pass"],
        bounds=data.bounds,
        misclassified="exclude",
        verbose=0,
    )
    noise = attack.perturb(trained_network, x).numpy()
    # Behind the subtraction of the mean, a perturbation is one of pixels.
    attacked = np.clip(raw + noise, 0, 255)
    assert np.any((raw + noise < 0) | (raw + noise > 255))
    expected = [pass_score(*pair) for pair in zip(raw, attacked, strict=True)]
    found = report.values["pass"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.ptp(found) > 0.05
    right = report.predictions == y
    assert report.summary() == {
        "pass": pytest.approx(found[right].mean(), rel=1e-6),
        "samples": 40,
    }


@pytest.mark.parametrize(
    "bounds",
    [
        (-1.0, 3.0),
        (np.full((8, 8, 1), -2.0), np.linspace(1, 4, 64).reshape(8, 8, 1)),
    ],
    ids=["numbers", "pixelwise"],
)
def test_pixels_are_recovered_from_inputs_of_any_range(
    images, bounds, monkeypatch
):
    low, high = bounds
    clean = images["8x8"]
    attacked = np.stack([noisy(image, 40) for image in clean])

    def inputs(pixels):
        return (low + (high - low) * pixels / 255).astype(np.float32)

    seen = []
    monkeypatch.setattr(
        similarity, "pass_score", lambda *pair: seen.append(pair) or 0.5
    )
    x = inputs(clean)
    # Beyond white and black there is nothing.
    beyond = inputs(attacked) + np.where(attacked == 255, 1, 0)
    values = PASS(bounds=bounds).finish(x, {"pass": beyond - x})
    np.testing.assert_array_equal(values["pass"], np.full(COUNT, 0.5))
    for i, pair in enumerate(seen):
        np.testing.assert_allclose(pair[0], clean[i], atol=1e-3)
        np.testing.assert_allclose(pair[1], attacked[i], atol=1e-3)
        assert pair[0].dtype == pair[1].dtype == np.float32
    assert len(seen) == COUNT
