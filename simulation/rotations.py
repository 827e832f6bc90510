"""Rotations as the LIBERO controller uses them: axis-angle vectors in the world frame, applied one after another.

Kept in plain numpy so that thinning recorded actions needs no simulator. Quaternions are (w, x, y, z), as in MuJoCo.
"""

import numpy as np


def quaternion_from_vector(vector: np.ndarray) -> np.ndarray:
    """The unit quaternion (4,) of an axis-angle vector (3,) in radians."""
    angle = float(np.linalg.norm(vector))
    # sin(angle / 2) / angle; by its series near 0, where the division would lose all digits
    scale = 0.5 - angle**2 / 48 if angle < 1e-4 else np.sin(angle / 2) / angle
    return np.array([np.cos(angle / 2), *(np.asarray(vector, dtype=np.float64) * scale)])


def vector_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """The axis-angle vector (3,) in radians of a unit quaternion (4,), the shorter way round (angle at most pi)."""
    quaternion = np.asarray(quaternion, dtype=np.float64)
    if quaternion[0] < 0:
        quaternion = -quaternion
    sine = float(np.linalg.norm(quaternion[1:]))
    if sine < 1e-12:
        return 2 * quaternion[1:]
    return quaternion[1:] / sine * (2 * np.arctan2(sine, quaternion[0]))


def multiply_quaternions(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The quaternion of the rotation `first` followed by `second`, both about axes that are fixed in the world."""
    scalar = second[0] * first[0] - second[1:] @ first[1:]
    return np.array([scalar, *(second[0] * first[1:] + first[0] * second[1:] + np.cross(second[1:], first[1:]))])


def compose_rotations(vectors: np.ndarray) -> np.ndarray:
    """The one axis-angle vector that does the same as the rotations `vectors` (n, 3) in radians, applied in their order."""
    total = np.array([1.0, 0.0, 0.0, 0.0])
    for vector in vectors:
        total = multiply_quaternions(quaternion_from_vector(vector), total)
    return vector_from_quaternion(total)


def vector_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """The axis-angle vector (3,) in radians of a rotation matrix (3, 3)."""
    # Shepperd's method: it divides by the largest of the four squares, so half a turn is no special case.
    trace = np.trace(matrix)
    largest = int(np.argmax([trace, *np.diag(matrix)]))
    if largest == 0:
        skew = matrix - matrix.T
        quaternion = np.array([1 + trace, skew[2, 1], skew[0, 2], skew[1, 0]])
    else:
        i = largest - 1
        j, k = (i + 1) % 3, (i + 2) % 3
        quaternion = np.zeros(4)
        quaternion[0] = matrix[k, j] - matrix[j, k]
        quaternion[1 + i] = 1 + matrix[i, i] - matrix[j, j] - matrix[k, k]
        quaternion[1 + j] = matrix[j, i] + matrix[i, j]
        quaternion[1 + k] = matrix[k, i] + matrix[i, k]
    return vector_from_quaternion(quaternion / np.linalg.norm(quaternion))


def matrix_from_vector(vector: np.ndarray) -> np.ndarray:
    """The rotation matrix (3, 3) of an axis-angle vector (3,) in radians."""
    scalar, *imaginary = quaternion_from_vector(vector)
    x, y, z = imaginary
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * scalar * cross + 2 * cross @ cross
