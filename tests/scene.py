"""A drawn pick-and-place scene whose masks are known exactly: an arm comes from the top, takes a disc, puts it down."""

import io

import cv2
import numpy as np

from simulation.rlds import libero_features, write_rlds

SIZE, RADIUS = 256, 14
STEPS, CLOSE, OPEN = 24, 8, 18
MISS_CLOSE, MISS_OPEN, MISS_STEPS = 8, 13, 16  # that one grasp of nothing takes before that


def object_mask(centre):
    """bool (256, 256): the disc on the first frame, whose centre (x, y) is given."""
    ys, xs = np.mgrid[:SIZE, :SIZE]
    return (xs - centre[0]) ** 2 + (ys - centre[1]) ** 2 <= RADIUS**2


def frames(centre=(90, 150), goal=(190, 170), seed=0, carry=True, shake=0, home=True, misses=()):
    """RGB frames, uint8, and the tool's places (x, y), in pixels: the arm goes to the disc at `centre` from the top, closes at
    CLOSE, carries the disc to the goal, opens at OPEN, goes home. Before that it closes at each place of `misses`, rises
    and goes home with nothing.
    """
    generator = np.random.default_rng(seed)
    noise = generator.integers(90, 170, (32, 32, 3)).astype(np.uint8)
    background = cv2.resize(noise, (SIZE + 32, SIZE + 32), interpolation=cv2.INTER_CUBIC)
    # A table's grain: without it the arm's edges alone would say how the camera shakes.
    grain = cv2.GaussianBlur(generator.normal(0, 25, background.shape[:2]), (0, 0), 1.2)[..., None]
    background = (background + grain).clip(0, 255).astype(np.uint8)
    centre, goal, start = (np.array(point, float) for point in (centre, goal, (128, 60)))
    images, positions = [], []
    for step in range(-MISS_STEPS * len(misses), STEPS):
        if step < 0:
            miss = np.array(misses[step // MISS_STEPS], float)
            across = step % MISS_STEPS
            risen = miss - [0, 12 * max(0, min(across, MISS_OPEN) - MISS_CLOSE)]
            way = min(across / MISS_CLOSE, 1, (MISS_STEPS - across) / (MISS_STEPS - MISS_OPEN))
            tool = start + (risen - start) * way
        elif step <= CLOSE:
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


def episode(
    instruction="pick up the red disc and place it on the plate", broken=(), quality=95, fingers=False, **scene
):
    """An episode in LIBERO's schema; the JPEGs of the steps in `broken` are cut in half.

    With `fingers` the state says how far they are apart; without, that reading never changes.
    """
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
        place = step - MISS_STEPS * len(scene.get("misses", ()))
        closed = CLOSE <= place < OPEN or (place < 0 and MISS_CLOSE <= place % MISS_STEPS < MISS_OPEN)
        if fingers:
            holds = place >= 0 and scene.get("carry", True)
            state[6:] = np.array([1, -1]) * (0.04 if not closed else 0.01 if holds else 0.0003)
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
                "is_last": step == len(images) - 1,
                "is_terminal": step == len(images) - 1,
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
