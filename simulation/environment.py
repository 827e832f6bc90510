"""One LIBERO task as a recording needs it: reset, step, true poses, and images with instance masks of any stored state.

Making an environment takes 5 to 10 s, so that happens only in `TaskEnvironment`, never when this file is imported.

A step renders nothing (it takes 8 to 15 ms then, instead of 90): a demonstration is a list of simulator states, and
only those of solved attempts are rendered afterwards. `render` and `instance_masks` turn the simulator's raw frame by
180 degrees (`[::-1, ::-1]`), as OpenVLA's `modified_libero_rlds` does.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from simulation.goals import subtasks_of, target_of
from simulation.libero import described_with_objects, described_with_target, load_task, make_environment
from simulation.textures import Textures

IMAGE_SIZE = 256
AGENT_VIEW = "agentview"
WRIST_VIEW = "robot0_eye_in_hand"
GRIPPER, ROBOT_ARM = "gripper", "robot_arm"  # the names of the robot's two parts among the instances
CONTROL_HZ = 20

SETTLING_STEPS = 10  # LIBERO's evaluation protocol: objects fall into place before anything counts
OPEN, CLOSE = -1.0, 1.0  # LIBERO's gripper command, the last dimension of an action
STAND_STILL = np.array([0, 0, 0, 0, 0, 0, OPEN], dtype=np.float32)

_INSTANCE_PARTS = {"PandaGripper0": GRIPPER} | dict.fromkeys(
    ("Panda0", "MountedPanda0", "OnTheGroundPanda0", "RethinkMount0"), ROBOT_ARM
)
# Parts of fixtures that a hand moves: they are instances of their own, told by how their meshes' names end.
_PART_OF_MESH = {
    "top_handle_vis": "top_drawer_handle",
    "middle_handle_vis": "middle_drawer_handle",
    "bottom_handle_vis": "bottom_drawer_handle",
    "stove_knob_button_vis": "stove_knob",
}
_FIXTURE_SEED = 0  # LIBERO's evaluation protocol: fixtures stand where `env.seed(0)` puts them
_GEOM = 5  # mjOBJ_GEOM, the object type of a geom in MuJoCo's segmentation image
_FREE = 0  # mjJNT_FREE
_LOOKS = (
    "cam_pos",
    "cam_quat",
    "light_dir",
    "light_diffuse",
    "light_specular",
    "light_castshadow",
)  # what a change may change


class TaskEnvironment:
    """One task of a LIBERO suite in the simulator; a context manager, since it holds a rendering context.

    Positions are in metres in the world frame (z up). `subtasks` are what the task's goal wants (goals.py). `target` is the
    first instance to pick up or, where nothing is carried, the part of a fixture that is to be moved first.

    `change` takes the environment and the initial state's number at each reset, once the scene is in that state and before
    it settles: a shift of the domain, see looks.py and arrangement.py. The next reset undoes it.
    """

    def __init__(
        self,
        suite: str,
        task_id: int,
        target: str = "",
        reflections: bool = False,
        hard_reset: bool = False,
        added: Sequence[str] = (),
    ) -> None:
        """Make the environment (5 to 10 s).

        Args:
            suite: of LIBERO, see `simulation.libero.load_task`.
            task_id: of the suite.
            target: another instance of the same kind as the task's target, to be picked up instead of it. The scene and its
                initial states stay the same.
            reflections: render the table's reflections, as LIBERO itself does. They double the time of a frame on a CPU (102
                instead of 55 ms) and change one of a hundred pixels.
            hard_reset: make the whole model anew at each reset (4 s instead of milliseconds), as LIBERO itself does. States and
                images are the same; but where fixtures are drawn on (`reset`), they are those of LIBERO only with it.
            added: kinds of objects that the task does not have. Initial states do not hold them: they stand off the table until
                a change places them.

        Raises:
            InputError: there is no such suite or task, LIBERO is not installed, or its renderer does not start.
        """
        task = load_task(suite, task_id)
        self.suite, self.task_id = suite, task_id
        self._reflections, self._hard_reset = reflections, hard_reset
        self.instruction: str = task.instruction
        self.initial_states: np.ndarray = task.initial_states
        self.change: Callable[[TaskEnvironment, int], None] | None = None
        self.added = tuple(f"{kind}_1" for kind in added)
        with tempfile.TemporaryDirectory() as folder:
            description = described_with_target(task.description, target, Path(folder)) if target else task.description
            description = described_with_objects(description, added, Path(folder)) if added else description
            self._env = make_environment(
                bddl_file_name=str(description),
                use_camera_obs=False,
                hard_reset=hard_reset,
                ignore_done=True,  # else robosuite refuses more than 1,000 steps
                camera_names=[AGENT_VIEW],
                camera_heights=IMAGE_SIZE,
                camera_widths=IMAGE_SIZE,
                control_freq=CONTROL_HZ,
            )
        self._env.seed(_FIXTURE_SEED)
        objects = {name for names in self._env.env.parsed_problem["objects"].values() for name in names}
        self.subtasks = subtasks_of(self._env.env.parsed_problem["goal_state"], objects)
        self.target: str = target_of(self.subtasks).thing
        self._look_at_model()

    def __enter__(self) -> Self:
        """Return the environment itself."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the environment."""
        self.close()

    def close(self) -> None:
        """Free the simulator and its rendering context."""
        self._env.close()

    def _look_at_model(self) -> None:
        """Look up once which bodies, geoms and joints every step needs, and set how it is rendered."""
        self.model, self.data = self._env.sim.model._model, self._env.sim.data._data
        model = self.model
        instance_of_geom = {
            int(geom): self._part_of_geom(geom) or _INSTANCE_PARTS.get(name, name)
            for geom, name in self._env.env.model.geom_ids_to_instances.items()
        }
        self.instances = sorted(set(instance_of_geom.values()))
        self._instance_index_of_geom = np.full(model.ngeom + 1, -1)  # the last entry serves id -1: the background
        for geom, name in instance_of_geom.items():
            self._instance_index_of_geom[geom] = self.instances.index(name)
        self._bodies = {model.body(index).name: index for index in range(model.nbody)}
        self._sites = {model.site(index).name: index for index in range(model.nsite)}
        self._tool_site = self._sites["gripper0_grip_site"]
        # Orientation is read from the hand: the grip site's own frame is turned by 90 degrees about z.
        self._hand_body = self._bodies["robot0_right_hand"]
        self._shoulder_body = self._bodies["robot0_link2"]
        self._finger_geoms = np.array([geom for geom in range(model.ngeom) if self._is_finger(geom)])
        self._part_geoms = {part: geom for geom in instance_of_geom if (part := self._part_of_geom(geom))}
        touchable = {geom: name for geom, name in instance_of_geom.items() if self._is_movable(geom)}
        if self.target in self._part_geoms:
            touchable |= self._colliding_parts()
        self._touchable_geoms, self.touchable = np.array(list(touchable)), list(touchable.values())
        self._arm_joints = [model.joint(f"robot0_joint{number}").qposadr[0] for number in range(1, 8)]
        self._finger_joints = [model.joint(f"gripper0_finger_joint{number}").qposadr[0] for number in (1, 2)]
        added = [model.joint(f"{name}_joint0") for name in self.added]
        self._added_positions = np.concatenate([[], *(np.arange(7) + joint.qposadr for joint in added)]).astype(int)
        self._added_speeds = np.concatenate([[], *(np.arange(6) + joint.dofadr for joint in added)]).astype(int)
        self._looks = {name: getattr(model, name).copy() for name in _LOOKS}
        self.textures = Textures(model, self._env)
        if not self._reflections:
            self._switch_off_reflections()

    def _part_of_geom(self, geom: int) -> str:
        """The name of the handle or knob whose mesh a geom shows, "" if it is none."""
        mesh = int(self.model.geom_dataid[geom])
        name = self.model.mesh(mesh).name if mesh >= 0 else ""
        return next((part for ending, part in _PART_OF_MESH.items() if name.endswith(ending)), "")

    def _colliding_parts(self) -> dict[int, str]:
        """Geom -> part: the geoms by which handles and knobs collide, for their meshes are only shown.

        They are those of the same body that are no longer than the part: a drawer's own walls are.
        """
        model = self.model
        return {
            geom: part
            for part, mesh in self._part_geoms.items()
            for geom in np.flatnonzero(model.geom_bodyid == model.geom_bodyid[mesh]).tolist()
            if (model.geom_contype[geom] or model.geom_conaffinity[geom])
            and model.geom_size[geom].max() <= model.geom_size[mesh].max()
        }

    def _is_finger(self, geom: int) -> bool:
        return "finger" in self.model.body(self.model.geom_bodyid[geom]).name

    def _is_movable(self, geom: int) -> bool:
        root = self.model.body_rootid[self.model.geom_bodyid[geom]]
        joint = self.model.body_jntadr[root]
        return joint >= 0 and self.model.jnt_type[joint] == _FREE

    def _switch_off_reflections(self) -> None:
        """Render without the table's reflections. Multisampling stays on: it smooths the image and does not touch the masks."""
        import mujoco

        self._env.sim._render_context_offscreen.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    # --- acting

    def reset(self, initial_state: int, seeded: bool = True) -> None:
        """Put the scene into one of the task's fixed initial states and let it settle.

        Args:
            initial_state: its number.
            seeded: whether the fixtures, which no initial state holds, stand where they stood in the first episode, so that
                the outcome depends on the initial state alone. Else they are drawn on, so that it also depends on how often
                the scene was reset before: so OpenVLA's evaluation has it.
        """
        if seeded:
            self._env.seed(_FIXTURE_SEED)
        self._env.env.reset()
        if self._hard_reset:
            self._look_at_model()
        else:
            self._undo_change()
        # robosuite's reset forgets this: the fingers' command is a running sum of all commands so far.
        self._env.robots[0].gripper.current_action = np.zeros(self._env.robots[0].gripper.dof)
        self._env.set_init_state(self._with_added(self.initial_states[initial_state]))
        if self.change is not None:
            self.change(self, initial_state)
            self._env.sim.forward()
        for _ in range(SETTLING_STEPS):
            self.step(STAND_STILL)

    def _with_added(self, state: np.ndarray) -> np.ndarray:
        """A state of the task's own things, and of what was added to them where it stands now."""
        if not self.added:
            return state
        positions, speeds = self.data.qpos.copy(), np.zeros(self.model.nv)
        own = np.delete(np.arange(self.model.nq), self._added_positions)
        positions[own] = state[1 : 1 + len(own)]
        speeds[np.delete(np.arange(self.model.nv), self._added_speeds)] = state[1 + len(own) :]
        return np.concatenate([state[:1], positions, speeds])

    def _undo_change(self) -> None:
        for name, values in self._looks.items():
            getattr(self.model, name)[:] = values
        self.textures.undo()

    def step(self, action: np.ndarray) -> None:
        """Apply one action, float32 (7,), for one control step (1 / 20 s)."""
        self._env.step(action)

    def succeeded(self) -> bool:
        """Whether the environment itself reports that the task is solved now."""
        return bool(self._env.check_success())

    def holds(self, predicate: Sequence[str]) -> bool:
        """Whether a predicate of LIBERO holds now; `predicate` are its name and its arguments."""
        from libero.libero.envs.predicates import eval_predicate_fn

        return bool(
            eval_predicate_fn(predicate[0], *(self._env.env.object_states_dict[name] for name in predicate[1:]))
        )

    def state(self) -> np.ndarray:
        """The whole state of the simulator (time, positions, velocities), float64 (n,), for `restore`."""
        return self._env.get_sim_state().copy()

    def restore(self, state: np.ndarray) -> None:
        """Put the simulator back into a state of the current episode, which can then be rendered or read."""
        self._env.regenerate_obs_from_state(state)  # also lets the stove glow or not, which is no part of the state

    def touched_object(self) -> str | None:
        """The name of the movable instance that a finger touches now, None if there is none.

        Where the target is a part of a fixture, handles and knobs are such instances, too.
        """
        first, second = self.data.contact.geom1, self.data.contact.geom2
        for finger_side, other_side in ((first, second), (second, first)):
            touching = np.isin(finger_side, self._finger_geoms) & np.isin(other_side, self._touchable_geoms)
            if touching.any():
                return self.touchable[int(np.argmax(self._touchable_geoms == other_side[touching][0]))]
        return None

    # --- changing the scene

    def things(self) -> list[str]:
        """The names of all objects and fixtures: what `root_body` knows, but for the table and the robot."""
        names = (self.model.body(body).name for body in self.object_bodies())
        return [name.removesuffix("_main") for name in names if name.endswith("_main")]

    def is_movable(self, name: str) -> bool:
        """Whether an object, or a fixture, stands free."""
        joint = self.model.body_jntadr[self.root_body(name)]
        return bool(joint >= 0 and self.model.jnt_type[joint] == _FREE)

    @property
    def workspace(self) -> np.ndarray:
        """The middle (3,) of the surface that things stand on."""
        return np.asarray(self._env.env.workspace_offset, dtype=float)

    def place(self, name: str, position: np.ndarray) -> None:
        """Put a movable object elsewhere: `position` (2,); it stays as high and as turned as it is."""
        address = self.model.jnt_qposadr[self.model.body_jntadr[self.root_body(name)]]
        self.data.qpos[address : address + 2] = position

    def pose_arm(self, joints: np.ndarray) -> None:
        """Pose the arm, at rest; `joints` (7,), rad. From then on its controller favours this pose among all of a hand's."""
        robot = self._env.robots[0]
        robot.set_robot_joint_positions(joints)
        self.data.qvel[self.model.jnt_dofadr[robot.joint_indexes]] = 0
        robot.controller.update_initial_joints(joints)
        robot.controller.reset_goal()

    def arm_touches(self) -> bool:
        """Whether the arm or the hand touches anything else than itself now."""
        root = self.model.body_rootid[self.model.geom_bodyid]
        robot = root == self._bodies["robot0_base"]
        return bool((robot[self.data.contact.geom1] != robot[self.data.contact.geom2]).any())

    # --- true poses

    def tool_position(self) -> np.ndarray:
        """The position (3,) of the tool: the point between the finger tips."""
        return self.data.site_xpos[self._tool_site].copy()

    def hand_rotation(self) -> np.ndarray:
        """The hand's rotation matrix (3, 3): z points out of the palm, the fingers open along y."""
        return self.data.xmat[self._hand_body].reshape(3, 3).copy()

    def shoulder_position(self) -> np.ndarray:
        """The position (3,) of the shoulder: where the axes of the arm's first two joints meet."""
        return self.data.xpos[self._shoulder_body].copy()

    def body_position(self, instance: str) -> np.ndarray:
        """The position (3,) of an instance."""
        return self.data.xpos[self.root_body(instance)].copy()

    def has_part(self, name: str) -> bool:
        """Whether this is the name of a handle or knob in the scene."""
        return name in self._part_geoms

    def part_position(self, part: str) -> np.ndarray:
        """The position (3,) of the middle of a handle or knob."""
        return self.data.geom_xpos[self._part_geoms[part]].copy()

    def part_joint(self, part: str) -> int:
        """MuJoCo's id of the joint by which a handle or knob moves, together with what it is fixed to."""
        return int(self.model.body_jntadr[self.model.geom_bodyid[self._part_geoms[part]]])

    def root_body(self, instance: str) -> int:
        """MuJoCo's id of an instance's root body."""
        name = f"{instance}_main"
        return self._bodies[name if name in self._bodies else instance]

    def site_position(self, name: str) -> np.ndarray | None:
        """The position (3,) of a region such as `flat_stove_1_cook_region`, None if there is no region of this name."""
        return self.data.site_xpos[self._sites[name]].copy() if name in self._sites else None

    def site_size(self, name: str) -> np.ndarray | None:
        """The half lengths (3,) of a region, None if there is no region of this name."""
        return self.model.site_size[self._sites[name]].copy() if name in self._sites else None

    def object_bodies(self) -> list[int]:
        """MuJoCo's ids of the root bodies of everything in the scene but the robot."""
        robot = ("robot0", "gripper0", "mount0")
        roots = [body for body in range(1, self.model.nbody) if self.model.body_parentid[body] == 0]
        return [body for body in roots if not self.model.body(body).name.startswith(robot)]

    # --- observations of the current state

    def proprioception(self) -> tuple[np.ndarray, np.ndarray]:
        """The robot's state now, as in `modified_libero_rlds`: (state, joint_state), float32 (8,) and (7,).

        state: tool position (m), hand orientation as an axis-angle vector (rad), the two finger positions (m).
        joint_state: the angles of the arm's joints (rad). As in robosuite's `quat2axisangle`, the angle goes up to 2 pi: the
        hand points down, its angle lies near pi, and the shorter way round would jump between the two directions.
        """
        quaternion = self.data.xquat[self._hand_body]
        sine = np.sqrt(max(1 - quaternion[0] ** 2, 0.0))
        angle = 2 * np.arccos(np.clip(quaternion[0], -1, 1))
        orientation = quaternion[1:] / sine * angle if sine > 1e-9 else np.zeros(3)
        fingers = self.data.qpos[self._finger_joints]
        state = np.concatenate([self.tool_position(), orientation, fingers]).astype(np.float32)
        return state, self.data.qpos[self._arm_joints].astype(np.float32)

    def render(self, camera: str) -> np.ndarray:
        """The image of a camera (`AGENT_VIEW` or `WRIST_VIEW`) now, uint8 (256, 256, 3) RGB."""
        raw = self._env.sim.render(width=IMAGE_SIZE, height=IMAGE_SIZE, camera_name=camera)
        return np.ascontiguousarray(raw[::-1, ::-1])

    def instance_masks(self, camera: str) -> dict[str, np.ndarray]:
        """The visible pixels of every instance now: name -> mask, bool (256, 256), of the same pixels as `render`.

        "gripper" is the hand with its fingers, "robot_arm" the links with their mount. Fixtures are instances too, and so
        are their handles and knobs (`top_drawer_handle`, `stove_knob`), but the table is not.
        """
        shown_sites = self._env.sim._render_context_offscreen.vopt.sitegroup
        before = shown_sites.copy()
        shown_sites[:] = (
            0  # regions are invisible in images, but in the segmentation they would hide what is behind them
        )
        raw = self._env.sim.render(width=IMAGE_SIZE, height=IMAGE_SIZE, camera_name=camera, segmentation=True)
        shown_sites[:] = before
        kinds, ids = raw[::-1, ::-1, 0], raw[::-1, ::-1, 1]
        index = self._instance_index_of_geom[np.where(kinds == _GEOM, ids, -1)]
        return {name: index == number for number, name in enumerate(self.instances)}
