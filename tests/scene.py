"""A drawn pick-and-place scene whose masks are known exactly: an arm comes from the top, takes a disc, puts it down."""

import io

import cv2
import numpy as np

from simulation.rlds import libero_features, write_rlds

SIZE, RADIUS = 256, 14
STEPS, CLOSE, OPEN = 24, 8, 18


def object_mask(centre):
    """bool (256, 256): the disc on the first frame, whose centre (x, y) is given."""
    ys, xs = np.mgrid[:SIZE, :SIZE]
    return (xs - centre[0]) ** 2 + (ys - centre[1]) ** 2 <= RADIUS**2


def frames(centre=(90, 150), goal=(190, 170), seed=0, carry=True, shake=0, home=True):
    """RGB frames, uint8: go to the disc at `centre` from the top, close at CLOSE, carry to the goal, open at OPEN, go home."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(90, 170, (32, 32, 3)).astype(np.uint8)
    background = cv2.resize(noise, (SIZE + 32, SIZE + 32), interpolation=cv2.INTER_CUBIC)
    centre, goal, start = (np.array(point, float) for point in (centre, goal, (128, 60)))
    images, positions = [], []
    for step in range(STEPS):
        if step <= CLOSE:
            tool = start + (centre - start) * step / CLOSE
        elif step <= OPEN:
            tool = centre + (goal - centre) * (step - CLOSE) / (OPEN - CLOSE)
        else:
            tool = goal + (start - goal) * (step - OPEN) / (STEPS - 1 - OPEN) if home else goal
        thing = centre if step <= CLOSE or not carry else tool if step <= OPEN else goal
        shift = generator.integers(-shake, shake + 1, 2) if shake and step else np.zeros(2, int)
        image = background[16 + shift[1] : 16 + shift[1] + SIZE, 16 + shift[0] : 16 + shift[0] + SIZE].copy()
        disc, hand = (tuple(int(v) for v in point - shift) for point in (thing, tool))
        cv2.circle(image, disc, RADIUS, (200, 40, 40), -1)
        cv2.line(image, (hand[0], -5), (hand[0], hand[1] - 8), (30, 30, 30), 16)
        cv2.rectangle(image, (hand[0] - 12, hand[1] - 14), (hand[0] + 12, hand[1] - 6), (30, 30, 30), -1)
        images.append(image)
        positions.append(tool)
    return images, np.array(positions)


def episode(instruction="pick up the red disc and place it on the plate", broken=(), quality=95, **scene):
    """An episode in LIBERO's schema; the JPEGs of the steps in `broken` are cut in half."""
    images, positions = frames(**scene)
    encoded = [
        cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes() for image in images
    ]
    for step in broken:
        encoded[step] = encoded[step][: len(encoded[step]) // 2]
    steps = []
    for step, data in enumerate(encoded):
        state = np.zeros(8, np.float32)
        state[:2] = positions[step] / 256  # metres, roughly
        closed = CLOSE <= step < OPEN
        steps.append(
            {
                "observation": {
                    "image": io.BytesIO(data),
                    "wrist_image": io.BytesIO(encoded[0]),
                    "state": state,
                    "joint_state": np.zeros(7, np.float32),
                },
                "action": np.array([step / 100, 0.1, -0.1, 0, 0, 0, 1 if closed else -1], np.float32),
                "discount": 1.0,
                "reward": 0.0,
                "is_first": step == 0,
                "is_last": step == STEPS - 1,
                "is_terminal": step == STEPS - 1,
                "language_instruction": instruction,
            }
        )
    return {"steps": steps, "episode_metadata": {"file_path": "drawn"}}


def one_step_episode():
    """An episode of a single step."""
    whole = episode()
    return whole | {"steps": whole["steps"][:1]}


def write_scenes(directory, *files):
    """Write episodes (one list per file) as the data set `drawn` and return the data directory."""
    write_rlds(directory, "drawn", "1.0.0", libero_features(), {"train": list(files)})
    return directory
