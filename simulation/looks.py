"""How a scene of LIBERO looks when its domain shifts: another camera, other light, other walls, floor and table.

What is changed is MuJoCo's model, in place; `TaskEnvironment.reset` undoes it. The ranges are those of LIBERO-Plus
(github.com/sylvestf/LIBERO-plus at 4976dc3) where it has any that can be read; docs/shifts.md says which are ours.
Levels go from 1 to 5. What a level does not say is drawn; draws do not depend on the level, so that a scene shifts the
same way at each, only farther.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from simulation.environment import AGENT_VIEW, TaskEnvironment
from simulation.libero import import_libero

_Y, _Z = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_PIVOT = np.array([0.0, 0.0, 0.8])  # m, LIBERO-Plus's, in every scene
CAMERA_WAYS = ("around", "around and above", "away", "turned")
_ELEVATION = 15  # degrees
_TILT = 8  # degrees of a lamp's direction, at each level
_SURFACES = ("tex-table", "tex-table-legs", "tex-living_room_table", "tex-desk", "tex-short_coffee_table")
_WALL, _FLOOR = "tex-wall", "texplane"
_THUMBNAIL = (32, 32)


def move_camera(environment: TaskEnvironment, level: int, rng: np.random.Generator) -> None:
    """Move the agent view in one of LIBERO-Plus's four ways, to `level` fifths of its range.

    Around the workspace, by 15 degrees a level; the same from 15 degrees higher up; away from it, to 1 + 0.2 `level` times the
    distance; or turned where it stands, by 2 degrees a level to a side and up or down.
    """
    camera = environment.model.camera(AGENT_VIEW)
    way = CAMERA_WAYS[rng.integers(len(CAMERA_WAYS))]
    side, upwards = rng.choice((-1, 1), 2)
    position, orientation = camera.pos.copy(), camera.quat.copy()
    if way == "around and above":
        position = _PIVOT + _turned(position - _PIVOT, _Y, -_ELEVATION)
        orientation = _turned_orientation(orientation, _Y, -_ELEVATION)
    if way.startswith("around"):
        position = _turned(position, _Z, 15 * level * side)
        orientation = _turned_orientation(orientation, _Z, 15 * level * side)
    elif way == "away":
        position = _PIVOT + (position - _PIVOT) * (1 + 0.2 * level)
    else:
        orientation = _turned_orientation(orientation, _Z, 2 * level * side)
        orientation = _turned_orientation(orientation, _Y, 2 * level * upwards)
    camera.pos, camera.quat = position, orientation


def change_light(environment: TaskEnvironment, level: int, rng: np.random.Generator) -> None:
    """Change every lamp's colour, direction and highlights, and from level 3 on let it cast shadows.

    Each colour gets up to 2 ** (level / 5) times or parts as bright; a lamp is tilted by 8 degrees a level.
    """
    model = environment.model
    for lamp in range(model.nlight):
        colours, azimuth = rng.uniform(-1, 1, 3), rng.uniform(0, 2 * np.pi)
        model.light_diffuse[lamp] *= 2 ** (colours * level / 5)
        model.light_specular[lamp] += (1 - model.light_specular[lamp]) * level / 5
        axis = np.cross(model.light_dir[lamp], (np.cos(azimuth), np.sin(azimuth), 0))
        model.light_dir[lamp] = _turned(model.light_dir[lamp], axis / np.linalg.norm(axis), _TILT * level)
        model.light_castshadow[lamp] = level >= 3


def change_background(environment: TaskEnvironment, level: int, rng: np.random.Generator) -> None:
    """Paper the walls anew, and the floor where things do not stand on it; see `_cover`."""
    shown = _shown_textures(environment)
    stands_on_floor = not shown.keys() & set(_SURFACES)
    _cover(environment, [_WALL], level, rng)
    _cover(environment, [] if stands_on_floor else [_FLOOR], level, rng)


def change_table(environment: TaskEnvironment, level: int, rng: np.random.Generator) -> None:
    """Cover the table anew, or the floor where things stand on it; see `_cover`."""
    shown = _shown_textures(environment)
    _cover(environment, [name for name in _SURFACES if name in shown] or [_FLOOR], level, rng)


def _cover(environment: TaskEnvironment, names: list[str], level: int, rng: np.random.Generator) -> None:
    """Give surfaces another texture of LIBERO's package: one of the `level`-th fifth, the likest ones first.

    LIBERO-Plus's textures have no order and are only on a hub; this one is ours: by the mean difference of 32 x 32 pixels.
    """
    drawn = rng.uniform()
    shown = _shown_textures(environment)
    for name in filter(shown.__contains__, names):
        own = _thumbnail(Image.fromarray(environment.textures.pixels(shown[name])))
        unlike = {path: np.abs(thumbnail - own).mean() for path, thumbnail in _textures().items()}
        others = sorted((path for path in unlike if unlike[path] > 1), key=lambda path: (unlike[path], path))
        fifth = others[len(others) * (level - 1) // 5 : len(others) * level // 5]
        height, width, _ = environment.textures.pixels(shown[name]).shape
        with Image.open(fifth[int(drawn * len(fifth))]) as image:
            environment.textures.cover(shown[name], np.asarray(image.convert("RGB").resize((width, height))))


def _shown_textures(environment: TaskEnvironment) -> dict[str, int]:
    """The textures of the scene's surfaces: name -> MuJoCo's id. The model also has some that nothing shows."""
    model = environment.model
    materials = {int(material) for material in model.geom_matid if material >= 0}
    textures = {int(texture) for material in materials for texture in model.mat_texid[material] if texture >= 0}
    return {
        name: texture for texture in textures if (name := model.texture(texture).name) in (*_SURFACES, _WALL, _FLOOR)
    }


@lru_cache(maxsize=1)
def _textures() -> dict[Path, np.ndarray]:
    """The textures of LIBERO's package as thumbnails."""
    folder = Path(import_libero()[1]("assets")) / "textures"
    found = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found[path] = _thumbnail(image.convert("RGB"))
    return found


def _thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize(_THUMBNAIL, Image.Resampling.BOX), dtype=np.float32)


def _turned(vector: np.ndarray, axis: np.ndarray | tuple[float, float, float], degrees: float) -> np.ndarray:
    import mujoco

    turned = np.zeros(3)
    mujoco.mju_rotVecQuat(turned, np.asarray(vector, dtype=float), _quaternion(axis, degrees))
    return turned


def _turned_orientation(orientation: np.ndarray, axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    import mujoco

    turned = np.zeros(4)
    mujoco.mju_mulQuat(turned, _quaternion(axis, degrees), orientation)
    return turned


def _quaternion(axis: np.ndarray | tuple[float, float, float], degrees: float) -> np.ndarray:
    import mujoco

    quaternion = np.zeros(4)
    mujoco.mju_axisAngle2Quat(quaternion, np.asarray(axis, dtype=float), np.deg2rad(degrees))
    return quaternion
