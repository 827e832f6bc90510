"""The episodes of SimplerEnv's tables, one by one: which environment, built and reset how.

Source: scripts/octo_*.sh, simpler_env/evaluation/ and tools/calc_metrics_evaluation_videos.py of
github.com/simpler-env/SimplerEnv at 4ab7178. Those loops are written out here, because `simpler_env.make` makes something
else: it draws robot colours and overlays at each reset and builds another version of "move near". Variants of the camera
are not here: the published tables do not count them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.simpler.conventions import ROBOTS

GOOGLE_ROBOT = "google_robot_static"
TABLETOP = "google_pick_coke_can_1_v4"
APARTMENT = "frl_apartment_stage_simple"
COLOURS = (  # of the robot's arm: `urdf_version`
    None,
    "recolor_tabletop_visual_matching_1",
    "recolor_tabletop_visual_matching_2",
    "recolor_cabinet_visual_matching_1",
)
ORIENTATIONS = {"horizontal": "lr_switch", "vertical": "laid_vertically", "standing": "upright"}
CAN_PLACES = [(x, y) for x in np.linspace(-0.35, -0.12, 5).tolist() for y in np.linspace(-0.02, 0.42, 5).tolist()]
APPLE_PLACES = [(x, y) for x in np.linspace(-0.08, -0.02, 3).tolist() for y in np.linspace(-0.02, 0.08, 3).tolist()]
DRAWER_POSES = {  # where the robot stands on the real photograph open_drawer_{name}.png: x, y, yaw
    "a0": (0.644, -0.179, -0.03),
    "a1": (0.765, -0.182, -0.02),
    "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0),
    "b1": (0.752, 0.009, 0.0),
    "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0),
    "c1": (0.765, 0.222, -0.025),
    "c2": (0.865, 0.222, -0.025),
}
# Scenes and keywords of the variants that the aggregation counts, by name: on the table, and before the cabinet.
TABLE_VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "texture 1": {"scene": "Baked_sc1_staging_objaverse_cabinet1_h870"},
    "texture 2": {"scene": "Baked_sc1_staging_objaverse_cabinet2_h870"},
    "background 1": {"scene": "google_pick_coke_can_1_v4_alt_background"},
    "background 2": {"scene": "google_pick_coke_can_1_v4_alt_background_2"},
    "darker": {"build": {"slightly_darker_lighting": True}},
    "brighter": {"build": {"slightly_brighter_lighting": True}},
}
CABINET_VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "background 1": {"scene": "modern_bedroom_no_roof"},
    "background 2": {"scene": "modern_office_no_roof"},
    "brighter": {"build": {"light_mode": "brighter"}},
    "darker": {"build": {"light_mode": "darker"}},
    "cabinet 2": {"build": {"station_name": "mk_station2"}},
    "cabinet 3": {"build": {"station_name": "mk_station3"}},
}
MATCHED_CABINET = {"station_name": "mk_station_recolor", "light_mode": "simple", "disable_bad_material": True}
DISTRACTORS = "GraspSingleOpenedCokeCanDistractorInScene-v0"


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode of a table.

    Attributes:
        task, part, variant: which number of the table it counts for. A score is the mean over the variants of a part, then
            over the parts.
        place: which of the variant's starts.
        environment, scene, robot: their names in ManiSkill2_real2sim.
        robot_xy, robot_yaw: where the robot's base stands, metres and radians.
        object_init: the reset option that says where objects begin.
        most_steps: after so many actions the environment ends the episode.
        sim_freq: steps of the simulation per second.
        build: further keywords of the environment.
        overlay: the photograph of real_inpainting/ laid over the background, or None.
    """

    table: str
    task: str
    part: str = ""
    variant: str
    place: str
    environment: str
    scene: str = TABLETOP
    robot: str = GOOGLE_ROBOT
    robot_xy: tuple[float, float]
    robot_yaw: float = 0.0
    object_init: Mapping[str, Any]
    most_steps: int
    sim_freq: int = 513
    build: Mapping[str, Any] = field(default_factory=dict)
    overlay: str | None = None

    @property
    def id(self) -> str:
        """Unique among all tables, and the same in every run."""
        return "/".join(part for part in (self.table, self.task, self.part, self.variant, self.place) if part)

    def keywords(self, overlays: Path) -> dict[str, Any]:
        """What `gymnasium.make(environment, ...)` takes; `overlays` is the folder real_inpainting of the assets."""
        robot = ROBOTS[self.robot]
        made: dict[str, Any] = {
            **self.build,
            "obs_mode": "rgbd",
            "robot": self.robot,
            "sim_freq": self.sim_freq,
            "control_mode": robot.control_mode,
            "control_freq": robot.control_freq,
            "max_episode_steps": self.most_steps,
            "scene_name": self.scene,
            "camera_cfgs": {"add_segmentation": True},
            "rgb_overlay_path": None,
        }
        if self.overlay is not None:
            made |= {"rgb_overlay_path": str(overlays / self.overlay), "rgb_overlay_cameras": [robot.camera]}
        return made

    def reset_options(self) -> dict[str, Any]:
        """What `reset(options=...)` takes: a new one each time, because environments write into it."""
        half = self.robot_yaw / 2  # the yaw after half a turn about z: (cos, 0, 0, sin) times (0, 0, 0, 1), w first
        return {
            "robot_init_options": {
                "init_xy": np.array(self.robot_xy),
                "init_rot_quat": np.array([-np.sin(half), 0.0, 0.0, np.cos(half)]),
            },
            "obj_init_options": {
                name: np.array(value) if isinstance(value, tuple) else value for name, value in self.object_init.items()
            },
        }


def _named(xy: tuple[float, float]) -> str:
    return f"x{xy[0]:+.4f} y{xy[1]:+.4f}"


def _coke_can(
    table: str,
    variant: str,
    *,
    environment: str = "GraspSingleOpenedCokeCanInScene-v0",
    build: Mapping[str, Any] | None = None,
    **more: Any,
) -> Iterator[Episode]:
    for part, orientation in ORIENTATIONS.items():
        for xy in CAN_PLACES:
            yield Episode(
                table=table,
                task="coke_can",
                part=part,
                variant=variant,
                place=_named(xy),
                environment=environment,
                robot_xy=(0.35, 0.20),
                object_init={"init_xy": xy},
                most_steps=80,
                build={orientation: True, **(build or {})},
                **more,
            )


def _move_near(table: str, variant: str, **more: Any) -> Iterator[Episode]:
    for number in range(60):
        yield Episode(
            table=table,
            task="move_near",
            variant=variant,
            place=f"episode {number:02}",
            robot_xy=(0.35, 0.21),
            robot_yaw=-0.09,
            object_init={"episode_id": number},
            most_steps=80,
            **more,
        )


def _drawer(table: str, variant: str, **more: Any) -> Iterator[Episode]:
    """Every drawer opened and closed from one place of the robot. Nothing lies there: (0, 0) is what the scripts say."""
    for part in ("open", "close"):
        for drawer in ("top", "middle", "bottom"):
            yield Episode(
                table=table,
                task="drawer",
                part=part,
                variant=f"{drawer} drawer, {variant}",
                environment=f"{part.title()}{drawer.title()}DrawerCustomInScene-v0",
                object_init={"init_xy": (0.0, 0.0)},
                most_steps=113,
                **more,
            )


def _apple(table: str, variant: str, *, place: str, **more: Any) -> Iterator[Episode]:
    for xy in APPLE_PLACES:
        yield Episode(
            table=table,
            task="apple_in_drawer",
            variant=variant,
            place=f"{place}, {_named(xy)}",
            environment="PlaceIntoClosedTopDrawerCustomInScene-v0",
            object_init={"init_xy": xy},
            most_steps=200,
            **more,
        )


def visual_matching() -> Iterator[Episode]:
    """The Google robot before photographs of the real scenes, in four colours: 300, 240, 216 and 108 episodes."""
    table = "visual_matching"
    for colour in COLOURS:
        name, build = colour or "no recolouring", {"urdf_version": colour}
        # The script of this one task says 501 where all others say 513.
        yield from _coke_can(table, name, sim_freq=501, overlay="google_coke_can_real_eval_1.png", build=build)
        yield from _move_near(
            table,
            name,
            environment="MoveNearGoogleBakedTexInScene-v0",
            overlay="google_move_near_real_eval_1.png",
            build=build,
        )
        for place, (x, y, yaw) in DRAWER_POSES.items():
            stands: dict[str, Any] = {
                "scene": "dummy_drawer",
                "overlay": f"open_drawer_{place}.png",
                "place": place,
                "robot_xy": (x, y),
                "robot_yaw": yaw,
            }
            seen = {"shader_dir": "rt", **MATCHED_CABINET, **build}
            yield from _drawer(table, name, build=seen, **stands)
            if place in ("a0", "b0", "c0"):
                yield from _apple(table, name, build={**seen, "model_ids": "baked_apple_v2"}, **stands)


def variant_aggregation() -> Iterator[Episode]:
    """The Google robot in rendered scenes with other textures, backgrounds, lights: 675, 480, 378 and 189 episodes."""
    table = "variant_aggregation"
    for variant, changed in TABLE_VARIANTS.items():
        yield from _coke_can(table, variant, **changed)
        yield from _move_near(table, variant, environment="MoveNearGoogleInScene-v0", **changed)
    yield from _coke_can(table, "distractors", environment=DISTRACTORS)
    yield from _coke_can(table, "more distractors", environment=DISTRACTORS, build={"distractor_config": "more"})
    yield from _move_near(table, "no distractor", environment="MoveNearGoogleInScene-v0", build={"no_distractor": True})
    for variant, changed in CABINET_VARIANTS.items():
        scene = changed.get("scene", APARTMENT)
        build = {"shader_dir": "rt", **changed.get("build", {})}
        for y in np.linspace(-0.2, 0.2, 3).tolist():
            for x in np.linspace(0.65, 0.85, 3).tolist():
                yield from _drawer(table, variant, place=_named((x, y)), robot_xy=(x, y), scene=scene, build=build)
            yield from _apple(
                table,
                variant,
                place=f"robot y{y:+.1f}",
                robot_xy=(0.65, y),
                scene=scene,
                build={**build, "model_ids": "apple"},
            )


def widowx() -> Iterator[Episode]:
    """The WidowX robot of BridgeData before photographs: four tasks of 24 episodes."""
    table = {"robot": "widowx", "scene": "bridge_table_1_v1", "overlay": "bridge_real_eval_1.png"}
    sink = {"robot": "widowx_sink_camera_setup", "scene": "bridge_table_1_v2", "overlay": "bridge_sink.png"}
    for task, environment, most_steps, robot_xy, seen in (
        ("spoon_on_towel", "PutSpoonOnTableClothInScene-v0", 60, (0.147, 0.028), table),
        ("carrot_on_plate", "PutCarrotOnPlateInScene-v0", 60, (0.147, 0.028), table),
        ("stack_cubes", "StackGreenCubeOnYellowCubeBakedTexInScene-v0", 60, (0.147, 0.028), table),
        ("eggplant_in_basket", "PutEggplantInBasketScene-v0", 120, (0.127, 0.06), sink),
    ):
        for number in range(24):
            yield Episode(
                table="widowx",
                task=task,
                variant="",
                place=f"episode {number:02}",
                environment=environment,
                robot_xy=robot_xy,
                object_init={"episode_id": number},
                most_steps=most_steps,
                sim_freq=500,
                **seen,  # type: ignore[arg-type]
            )


TABLES = {"visual_matching": visual_matching, "variant_aggregation": variant_aggregation, "widowx": widowx}
