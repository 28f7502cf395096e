"""PASS: the psychometric perceptual adversarial similarity score.

Rozsa, Rudd and Boult, "Adversarial Diversity and Hard Positive Generation",
CVPR Workshops 2016: align the images, then compare their structure.
"""

import importlib.util
from typing import Any

import numpy as np

# Gaussian windows as SSIM's authors have them are 11 pixels wide; images
# smaller than that get flat ones of 7.
_WINDOW, _SMALL_WINDOW = 11, 7
_ECC_ITERATIONS, _ECC_TOLERANCE = 100, 1e-6


def require_libraries() -> None:
    """Makes sure that OpenCV and scikit-image can be imported.

    Raises:
        ImportError: if not; it says what to install.
    """
    for module in ("cv2", "skimage"):
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"PASS needs {module}, which is not installed: "
                "pip install 'dd_keras[evaluation]'."
            )


def pass_score(clean: np.ndarray, attacked: np.ndarray) -> float:
    """The similarity of two images: PASS.

    The attacked image is aligned to the clean one by the homography that
    maximises the enhanced correlation coefficient (Evangelidis and Psarakis,
    2008), then they are compared by the mean structural similarity (Wang et
    al., 2004). Where no alignment can be found (a constant image has no
    correlation), or it correlates less than none does, there is none.

    Args:
        clean: float, (H, W, 1) or (H, W, 3), pixels 0 to 255; at least 7
            pixels high and wide.
        attacked: the same.

    Returns:
        float, at most 1, which is that of an image and itself.

    Raises:
        ValueError: if the shapes differ or are too small.
    """
    from skimage import metrics

    clean, attacked = np.float32(clean), np.float32(attacked)
    if clean.shape != attacked.shape or clean.ndim != 3:
        raise ValueError(
            "clean, attacked: expected two images of one shape (height, "
            f"width, channels); received {clean.shape} and {attacked.shape}."
        )
    side = min(clean.shape[:2])
    if side < _SMALL_WINDOW:
        raise ValueError(
            f"clean: expected an image of at least {_SMALL_WINDOW} pixels "
            f"each way; received {clean.shape}."
        )
    windows: dict[str, Any] = {"win_size": _SMALL_WINDOW}
    if side >= _WINDOW:
        windows = {"gaussian_weights": True, "sigma": 1.5}
    return float(
        metrics.structural_similarity(
            clean,
            _aligned(clean, attacked),
            data_range=255,
            channel_axis=-1,
            use_sample_covariance=False,
            **windows,
        )
    )


def _aligned(clean, attacked):
    """The attacked image, warped onto the clean one."""
    import cv2

    before, after = clean.mean(axis=-1), attacked.mean(axis=-1)
    warp = np.eye(3, dtype=np.float32)
    stop = (
        cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT,
        _ECC_ITERATIONS,
        _ECC_TOLERANCE,
    )
    height, width = before.shape
    try:
        # Blurred by 5 pixels, as is its default.
        _, warp = cv2.findTransformECC(
            before, after, warp, cv2.MOTION_HOMOGRAPHY, stop, None, 5
        )
        moved = cv2.warpPerspective(
            attacked,
            warp,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ).reshape(attacked.shape)
        # Not the correlation that was maximised, of the blurred images and
        # their overlap only: of what is compared.
        gained = cv2.computeECC(before, moved.mean(axis=-1)) - cv2.computeECC(
            before, after
        )
    except cv2.error:
        return attacked
    return moved if gained > 0 else attacked
