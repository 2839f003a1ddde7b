"""Alignment of faces to the reference."""

import cv2
import numpy as np
import pytest

from facebones.data.preprocessing import REFERENCE, align_face, five_of_68, similarity_transform
from facebones.errors import DataError


def test_a_known_similarity_is_found_again():
    angle, scale, shift = 0.4, 2.5, np.array((17.0, -9.0))
    turn = scale * np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    matrix = similarity_transform(REFERENCE @ turn.T + shift, REFERENCE, "a face")
    back = np.linalg.inv(turn)
    np.testing.assert_allclose(matrix, np.column_stack([back, -back @ shift]), atol=1e-9)


def test_the_transform_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    source = REFERENCE + rng.normal(0, 5, (5, 2))
    # The same problem as a linear system in a, b, x, y: u = a x - b y + x0, v = b x + a y + y0.
    x, y, one, none = source[:, 0], source[:, 1], np.ones(5), np.zeros(5)
    rows = np.concatenate([np.column_stack([x, -y, one, none]), np.column_stack([y, x, none, one])])
    a, b, x0, y0 = np.linalg.lstsq(rows, REFERENCE.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(similarity_transform(source, REFERENCE, "a face"), [[a, -b, x0], [b, a, y0]], atol=1e-9)


@pytest.mark.parametrize("size", [112, 224])
def test_landmarks_come_to_the_reference(size):
    angle, scale = 0.3, 1.7
    turn = scale * np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    landmarks = REFERENCE @ turn.T + (60, 20)
    photo = np.zeros((260, 260, 3), np.uint8)
    for channel, point in zip((0, 1, 2), landmarks[[0, 2, 4]], strict=True):
        spot = np.zeros((260, 260), np.uint8)
        cv2.circle(spot, tuple(np.rint(point).astype(int).tolist()), 4, 255, -1)
        photo[..., channel] = spot
    aligned = align_face(photo, landmarks, "a face", size)
    assert aligned.shape == (size, size, 3)
    for channel, wanted in zip((0, 1, 2), REFERENCE[[0, 2, 4]] * size / 112, strict=True):
        y, x = np.nonzero(aligned[..., channel] > 127)
        np.testing.assert_allclose((x.mean(), y.mean()), wanted, atol=0.7 * size / 112)


def test_68_points_are_reduced_as_insightface_does():
    points = np.arange(136, dtype=np.float64).reshape(68, 2)
    expected = [(points[36] + points[39]) / 2, (points[42] + points[45]) / 2, points[30], points[48], points[54]]
    np.testing.assert_array_equal(five_of_68(points), expected)


@pytest.mark.parametrize(
    ("landmarks", "reason"), [(np.full((5, 2), 3.0), "in one place"), (np.full((5, 2), np.nan), "not finite")]
)
def test_landmarks_that_say_nothing(landmarks, reason):
    with pytest.raises(DataError, match=f"photo 7: its landmarks are .*{reason}"):
        align_face(np.zeros((9, 9, 3), np.uint8), landmarks, "photo 7")
