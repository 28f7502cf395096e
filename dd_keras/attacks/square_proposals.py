"""What Square Attack proposes: Algorithms 2 and 3 of its paper.

Images are (A, H, W, C); what is not an image is a sequence, (A, D, 1, 1).
All random numbers of a query come from one call for each sample.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dd_keras.attacks import stateless_random
from dd_keras.utils import norms

# The share of the image that a window covers is halved after these queries.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Side of the smallest window for p = 2, where it is odd.
_SMALLEST_BUMP = 3
# Bumps that the start for p = 2 has along a side.
_BUMPS_A_SIDE = 5
# Up to as many different proposals of a size, those rejected are remembered;
# among more, hardly any comes twice.
_MOST_REMEMBERED = 2**14


class Room(NamedTuple):
    """How far each entry may go within the bounds; infinite without any."""

    low: tf.Tensor  # (A, H, W, C), at most 0
    high: tf.Tensor  # (A, H, W, C), at least 0

    def clip(self, perturbation: tf.Tensor) -> tf.Tensor:
        """The closest perturbation within the bounds."""
        return tf.minimum(tf.maximum(perturbation, self.low), self.high)


class _Proposals:
    """What both norms have in common: the images' shape, and the schedule.

    Args:
        eps: the radius of the ball.
        initial_share: of the image, that the first windows cover.
        queries: their number.
        shape: that of the inputs, (B, ...).
    """

    def __init__(
        self,
        eps: float,
        initial_share: float,
        queries: int,
        shape: tf.TensorShape,
    ):
        self.eps = eps
        sample = shape[1:].as_list()
        if len(sample) == 2:
            sample.append(1)
        elif len(sample) != 3:
            sample = [math.prod(sample), 1, 1]
        self.height, self.width, self.channels = sample
        self.image_shape = [-1, *sample]
        halved = np.searchsorted(_HALVED_AFTER, np.arange(queries))
        self.sizes = np.array(
            [self._size(initial_share / 2**k) for k in halved], np.int32
        )  # (queries, 2): height and width of the window

    def _size(self, share):
        """(height, width) of a window that covers a share of the image."""
        if self.width == 1:  # a sequence
            return self._rounded(share * self.height, self.height), 1
        side = math.sqrt(share * self.height * self.width)
        side = self._rounded(side, min(self.height, self.width))
        return side, side

    def _rounded(self, length, most):
        """The side of a window: an integer from `length` on, up to `most`."""
        raise NotImplementedError

    def _corners(self, numbers, size):
        """Random corners, from two numbers in (0, 1): (A,), (A,) int32."""
        positions = tf.cast(
            tf.stack([self.height - size[0] + 1, self.width - size[1] + 1]),
            numbers.dtype,
        )
        corners = tf.cast(numbers * positions, tf.int32)
        return corners[:, 0], corners[:, 1]

    # A table of proposals that were rejected, if any can come twice.

    def none_rejected(self, y: tf.Tensor) -> tf.Tensor:
        """An empty table: (A, K) bool; here one column that none uses."""
        return tf.zeros([tf.size(y), 1], tf.bool)

    def forget_other_sizes(
        self, i: tf.Tensor, rejected: tf.Tensor
    ) -> tf.Tensor:
        """The table at query i, empty if it is the first of its size."""
        del i
        return rejected

    def known(
        self,
        proposed: tf.Tensor,
        number: tf.Tensor,
        perturbation: tf.Tensor,
        rejected: tf.Tensor,
    ) -> tf.Tensor | None:
        """Where no proposal can be of use: (A,) bool, or None for nowhere."""
        del proposed, number, perturbation, rejected
        return None

    def remember(
        self, rejected: tf.Tensor, number: tf.Tensor, accepted: tf.Tensor
    ) -> tf.Tensor:
        """The table after a query; empty where it was accepted."""
        del number, accepted
        return rejected


class LinfProposals(_Proposals):
    """Windows of eps or -eps. See `_Proposals`."""

    def __init__(
        self,
        eps: float,
        initial_share: float,
        queries: int,
        shape: tf.TensorShape,
    ):
        super().__init__(eps, initial_share, queries, shape)
        self.signs = 2**self.channels
        number = self.height * self.width * self.signs
        self.remembered = number if number <= _MOST_REMEMBERED else 0

    def _rounded(self, length, most):
        return min(max(round(length), 1), most)

    def start(self, key: tf.Tensor, room: Room) -> tf.Tensor:
        """Vertical stripes: (A, H, W, C)."""
        columns = self.width if self.width > 1 else self.height
        numbers = stateless_random.from_keys(
            key, 0, columns * self.channels, room.low.dtype
        )
        stripe = [1, columns] if self.width > 1 else [columns, 1]
        signs = tf.reshape(tf.sign(numbers - 0.5), [-1, *stripe, self.channels])
        return room.clip(self.eps * signs + tf.zeros_like(room.low))

    def none_rejected(self, y: tf.Tensor) -> tf.Tensor:
        """An empty table: (A, K) bool, a column for each proposal."""
        return tf.zeros([tf.size(y), max(self.remembered, 1)], tf.bool)

    def forget_other_sizes(
        self, i: tf.Tensor, rejected: tf.Tensor
    ) -> tf.Tensor:
        """The table at query i, empty if it is the first of its size."""
        changes = np.any(np.diff(self.sizes, axis=0, prepend=0) != 0, axis=1)
        return rejected & ~tf.gather(changes, i)

    def known(
        self,
        proposed: tf.Tensor,
        number: tf.Tensor,
        perturbation: tf.Tensor,
        rejected: tf.Tensor,
    ) -> tf.Tensor | None:
        """Where a proposal changes nothing, or was rejected before."""
        known = tf.reduce_all(tf.equal(proposed, perturbation), [1, 2, 3])
        if self.remembered:
            known |= tf.gather(rejected, number, batch_dims=1)
        return known

    def remember(
        self, rejected: tf.Tensor, number: tf.Tensor, accepted: tf.Tensor
    ) -> tf.Tensor:
        """The table after a query; empty where it was accepted."""
        if not self.remembered:
            return rejected
        place = tf.stack([tf.range(tf.size(number)), number], axis=1)
        rejected = tf.tensor_scatter_nd_update(
            rejected, place, tf.ones_like(accepted)
        )
        return rejected & ~accepted[:, None]

    def propose(
        self,
        i: tf.Tensor,
        key: tf.Tensor,
        room: Room,
        perturbation: tf.Tensor,
    ) -> tuple[tf.Tensor, Any]:
        """What query i proposes, (A, H, W, C), and its place in the table."""
        numbers = stateless_random.from_keys(
            key, i + 1, 2 + self.channels, room.low.dtype
        )
        size = tf.gather(self.sizes, i)
        top, left = self._corners(numbers[:, :2], size)
        positive = numbers[:, 2:] > 0.5  # (A, C)
        inside = (
            _interval(top, size[0], self.height)[:, :, None]
            & (_interval(left, size[1], self.width)[:, None, :])
        )  # (A, H, W)
        ends = self.eps * tf.sign(numbers[:, 2:] - 0.5)
        proposed = tf.where(
            inside[..., None], room.clip(ends[:, None, None, :]), perturbation
        )
        powers = 2 ** tf.range(self.channels)
        sign = tf.reduce_sum(tf.cast(positive, tf.int32) * powers, axis=1)
        return proposed, (top * self.width + left) * self.signs + sign


class L2Proposals(_Proposals):
    """Bumps that take the mass of another window. See `_Proposals`."""

    def __init__(
        self,
        eps: float,
        initial_share: float,
        queries: int,
        shape: tf.TensorShape,
    ):
        super().__init__(eps, initial_share, queries, shape)
        self.distinct_sizes, number = np.unique(
            self.sizes, axis=0, return_inverse=True
        )
        self.size_number = number.reshape(-1).astype(np.int32)  # (queries,)

    def _rounded(self, length, most):
        odd = max(round(length), _SMALLEST_BUMP) // 2 * 2 + 1
        return min(odd, most)

    def start(self, key: tf.Tensor, room: Room) -> tf.Tensor:
        """Bumps of random sign side by side, of length eps: (A, H, W, C)."""
        side = max(min(self.height, self.width) // _BUMPS_A_SIDE, 1)
        if self.width == 1:
            side = max(self.height // _BUMPS_A_SIDE, 1)
        size = side, min(side, self.width)
        rows, columns = self.height // size[0], self.width // size[1]
        numbers = stateless_random.from_keys(
            key, 0, rows * columns * (self.channels + 1), room.low.dtype
        )
        numbers = tf.reshape(
            numbers, [-1, rows, 1, columns, 1, self.channels + 1]
        )
        bump = tf.constant(_bump(*size), room.low.dtype)[None, :, None, :, None]
        if size[0] == size[1]:
            turned = tf.transpose(bump, [0, 3, 2, 1, 4])
            bump = tf.where(numbers[..., :1] > 0.5, bump, turned)
        tiles = tf.reshape(
            bump * tf.sign(numbers[..., 1:] - 0.5),
            [-1, rows * size[0], columns * size[1], self.channels],
        )
        margins = self.height - rows * size[0], self.width - columns * size[1]
        padded = tf.pad(
            tiles, [[0, 0], *([m // 2, m - m // 2] for m in margins), [0, 0]]
        )
        return self._scaled(padded, room)

    def propose(
        self,
        i: tf.Tensor,
        key: tf.Tensor,
        room: Room,
        perturbation: tf.Tensor,
    ) -> tuple[tf.Tensor, Any]:
        """What query i proposes: (A, H, W, C), and None."""
        numbers = stateless_random.from_keys(
            key, i + 1, 5 + self.channels, room.low.dtype
        )
        # A branch for each size, as XLA needs to know the windows' shape.
        proposed = tf.switch_case(
            tf.gather(self.size_number, i),
            [
                functools.partial(
                    self._move_mass, numbers, perturbation, tuple(size)
                )
                for size in self.distinct_sizes.tolist()
            ],
        )
        return self._scaled(proposed, room), None

    def _move_mass(self, numbers, perturbation, size):
        """The perturbation with the mass of one window in another."""
        into = self._window(numbers[:, :2], size)
        out_of = self._window(numbers[:, 2:4], size)
        old = tf.gather_nd(perturbation, into)  # (A, h, w, C)
        emptied = tf.tensor_scatter_nd_update(
            perturbation, into, tf.zeros_like(old)
        )
        moved = tf.gather_nd(emptied, out_of)
        emptied = tf.tensor_scatter_nd_update(
            emptied, out_of, tf.zeros_like(moved)
        )
        # Both windows' mass, and what the ball has left, channel by channel.
        length = norms.sample_norm(perturbation)
        unused = tf.maximum(self.eps**2 - tf.square(length), 0) / self.channels
        mass = _sum_of_squares(old) + _sum_of_squares(moved)
        mass = tf.sqrt(mass + norms.expand_like(unused, mass))
        signs = tf.sign(numbers[:, 5:] - 0.5)[:, None, None, :]
        new = _random_bump(size, numbers[:, 4]) * signs + _unit(old)
        return tf.tensor_scatter_nd_update(emptied, into, _unit(new) * mass)

    def _window(self, numbers, size):
        """The indices of a random window: (A, h, w, 3)."""
        top, left = self._corners(numbers, size)
        sample = tf.range(tf.size(top))[:, None, None]
        row = (top[:, None] + tf.range(size[0]))[:, :, None]
        column = (left[:, None] + tf.range(size[1]))[:, None, :]
        zero = tf.zeros_like(row + column + sample)
        return tf.stack([zero + sample, zero + row, zero + column], axis=-1)

    def _scaled(self, perturbation, room):
        """Of length eps, clipped to the bounds: (A, H, W, C)."""
        length = norms.expand_like(
            norms.sample_norm(perturbation), perturbation
        )
        unit = tf.math.divide_no_nan(perturbation, length)
        return room.clip(self.eps * unit)


def _interval(start, length, size):
    """Which of `size` places are in an interval of each sample: (A, size)."""
    places = tf.range(size)
    start = start[:, None]
    return (places >= start) & (places < start + length)


def _sum_of_squares(window):
    """Of each channel: (A, 1, 1, C)."""
    return tf.reduce_sum(tf.square(window), [1, 2], keepdims=True)


def _unit(window):
    """Each channel of a window over its length; zero where it is."""
    return tf.math.divide_no_nan(window, tf.sqrt(_sum_of_squares(window)))


def _random_bump(size, number):
    """A bump, upright or turned by a number in (0, 1): (A, h, w, 1)."""
    bump = tf.constant(_bump(*size), number.dtype)
    # A window of a sequence cannot be turned, but its bump can be reversed.
    turned = tf.transpose(bump) if size[0] == size[1] else -bump
    return tf.where(number[:, None, None] > 0.5, bump, turned)[..., None]


def _bump(height, width):
    """Two heaps side by side, one of them negative, of length 1 (Eq. 3).

    A heap at distance r from its centre has sum_(k >= r) 1 / (k + 1)^2.
    """
    upper = height // 2
    bump = np.concatenate([_heap(upper, width), -_heap(height - upper, width)])
    return bump / np.linalg.norm(bump)


def _heap(height, width):
    """(height, width): concentric squares around the middle."""
    row = np.abs(np.arange(height) - height // 2)[:, None]
    column = np.abs(np.arange(width) - width // 2)[None, :]
    most = max(height, width) // 2 + 1
    heights = np.cumsum(1.0 / np.arange(most, 0, -1) ** 2)[::-1]
    return heights[np.maximum(row, column)]
