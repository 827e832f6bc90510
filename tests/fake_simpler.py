"""SimplerEnv's environments without its simulator, and a policy server whose successes are known beforehand.

The API is ManiSkill2_real2sim's (mani_skill2_real2sim/envs/custom_scenes at ef7a4d4). The world is a point that goes to a goal
and a gripper. How far the goal is stands in two pixels of the image, where the scripted policy reads it.
"""

import os
import signal
import sys
import threading
import types
from contextlib import contextmanager
from pathlib import Path

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

CONTROL = {
    "google_robot_static": (
        3,
        "arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd_joint_target_delta_pos_interpolate_by_planner",
        "overhead_camera",
        (512, 640),
    ),
    "widowx": (5, "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos", "3rd_view_camera", (480, 640)),
}
CONTROL["widowx_sink_camera_setup"] = CONTROL["widowx"]
BUILD = set(
    "obs_mode robot sim_freq control_mode control_freq max_episode_steps scene_name camera_cfgs rgb_overlay_path "
    "rgb_overlay_cameras urdf_version lr_switch upright laid_vertically slightly_darker_lighting slightly_brighter_lighting "
    "distractor_config no_distractor shader_dir light_mode station_name disable_bad_material model_ids".split()
)
STEADY = 7  # of the 18 towers that are built, so many stand; the rest fall after three steps
BLIND = 6  # so many episodes of the tower hide where it should be


class World:
    """What `env.unwrapped` is."""

    def __init__(self, name, **keywords):
        assert not (unknown := keywords.keys() - BUILD), unknown
        self.name, self.keywords, self.robot_uid = name, keywords, keywords["robot"]
        frequency, mode, self.camera, self.size = CONTROL[self.robot_uid]
        assert keywords["obs_mode"] == "rgbd" and keywords["camera_cfgs"] == {"add_segmentation": True}
        assert (keywords["control_freq"], keywords["control_mode"]) == (frequency, mode)
        assert keywords["sim_freq"] % frequency in (0, 1)
        overlay = keywords["rgb_overlay_path"]
        assert (overlay is not None) == ("rgb_overlay_cameras" in keywords)
        if overlay:
            assert Path(overlay).parent == ASSETS / "real_inpainting" and keywords["rgb_overlay_cameras"] == [
                self.camera
            ]
        self.resets = 0

    def check(self, options):
        assert options.keys() == {"robot_init_options", "obj_init_options"}
        robot, objects = options["robot_init_options"], options["obj_init_options"]
        assert robot.keys() == {"init_xy", "init_rot_quat"} and robot["init_xy"].shape == (2,)
        assert np.isclose(np.linalg.norm(robot["init_rot_quat"]), 1) and robot["init_rot_quat"][3] > 0.99
        assert objects.keys() in ({"init_xy"}, {"episode_id"}), "an option was left by another reset"
        assert isinstance(objects.get("episode_id", 0), int)

    def reset(self, seed=None, options=None):
        self.resets += 1
        assert self.resets == 1, "places of distractors depend on how often an environment was reset"
        assert seed is None
        self.check(options)
        robot, objects = options["robot_init_options"], options["obj_init_options"]
        if self.name.startswith("Close"):
            objects["cabinet_init_qpos"] = 0.2  # as the original does
        self.episode = objects.get("episode_id", 0)
        self.goals = np.array([[0.06, -0.04, 0.03], [-0.05, 0.05, -0.06]])
        self.goals[0, 1] += round(float(robot["init_xy"][1]) / 10, 3)
        self.place, self.opening, self.steps, self.subtask, self.built = np.zeros(3), 1.0, 0, 0, None
        self.grasped = False
        self.image = np.full((*self.size, 3), 40, np.uint8)
        return self.see(), {}

    def hidden(self):
        return (self.name.startswith("Stack") and self.episode < BLIND) or bool(
            self.keywords.get("slightly_darker_lighting")
        )

    def see(self):
        away = np.round(1000 * (self.goals - self.place)).astype(int)
        self.image[0, :2] = 128 if self.hidden() else 128 + away
        rgb = {"rgb": self.image, "depth": None, "Segmentation": None}
        return {"image": {"base_camera": {"rgb": np.zeros((128, 128, 3), np.uint8)}, self.camera: rgb}, "agent": {}}

    def step(self, action):
        assert isinstance(action, np.ndarray) and action.shape == (7,) and action.dtype.kind == "f"
        assert np.isfinite(action).all() and np.abs(action[:6]).max() < 1
        if self.robot_uid.startswith("widowx"):
            assert action[6] in (-1, 1)
            self.opening = (action[6] + 1) / 2
        else:  # a step of it moves the fingers a fifteenth of their way
            assert -1 <= action[6] <= 1
            self.opening = min(max(self.opening - action[6] / 15, 0), 1)
        if self.steps >= 100:
            self.subtask = 1
        self.place = self.place + action[:3]
        self.steps += 1
        success = self.evaluate()
        self.grasped |= success
        stats = {"is_src_obj_grasped": np.bool_(self.grasped), "qpos": "0.150"}
        info = {"elapsed_steps": self.steps, "success": success, "episode_stats": stats}
        return self.see(), float(success), bool(success), False, info

    def evaluate(self):
        there = np.abs(self.place - self.goals).max(axis=1) < 1e-3
        if self.name.startswith("PlaceInto"):
            return bool(self.subtask == 1 and there[1])
        if "Drawer" in self.name:
            return bool(there[0])
        done = bool(there[0] and self.opening < 1e-3)
        if self.name.startswith("Stack") and done:
            self.built = self.steps if self.built is None else self.built
            return self.episode < BLIND + STEADY or self.steps < self.built + 3
        return done

    def get_language_instruction(self):
        if self.name.startswith("PlaceInto"):
            return "place apple into top drawer" if self.subtask else "open top drawer"
        return f"do {self.name}"

    def is_final_subtask(self):
        return not self.name.startswith("PlaceInto") or self.subtask == 1

    def advance_to_next_subtask(self):
        self.subtask = 1


class TimeLimit:
    """What `gymnasium.make` gives: it does not forward what only the environment has, as newer releases do not."""

    open = 0

    def __init__(self, name, *, max_episode_steps, **keywords):
        self.unwrapped = World(name, max_episode_steps=max_episode_steps, **keywords)
        self.most = max_episode_steps
        TimeLimit.open += 1

    def reset(self, *, seed=None, options=None):
        return self.unwrapped.reset(seed, options)

    def step(self, action):
        seen, reward, terminated, _, info = self.unwrapped.step(action)
        return seen, reward, terminated, self.unwrapped.steps >= self.most, info

    def close(self):
        TimeLimit.open -= 1


ASSETS = Path("/assets")


def modules(make=TimeLimit):
    """The modules of SimplerEnv's environment, for `sys.modules`."""
    found = {
        name: types.ModuleType(name) for name in ("gymnasium", "mani_skill2_real2sim", "mani_skill2_real2sim.envs")
    }
    found["gymnasium"].make = make
    found["mani_skill2_real2sim"].ASSET_DIR = ASSETS
    return found


class Scripted:
    """Goes where the image says, 2 cm a step, and closes the gripper there; chunks of eight."""

    def ask(self, image, instruction, episode=""):
        assert image.dtype == np.uint8 and image.shape in ((512, 640, 3), (480, 640, 3))
        away = image[0, 1 if instruction.startswith("place") else 0].astype(int) - 128
        actions = []
        for _ in range(8):
            step = np.clip(away, -20, 20)
            away = away - step
            actions.append([*(step / 1000), 0, 0, 0, float(away.any())])
        return np.array(actions, np.float32)


def packed(value):
    """openpi's form, written down a second time: what the client sends and reads is compared with this."""

    def array(value):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }

    return msgpack.packb(value, default=array)


def answer(data, policy):
    """The reply of a server to an observation."""
    seen = msgpack.unpackb(data)
    assert seen.keys() == {"observation/image", "prompt"}
    image = seen["observation/image"]
    assert image.keys() == {b"__ndarray__", b"data", b"dtype", b"shape"} and image[b"dtype"] == "|u1"
    image = np.frombuffer(image[b"data"], np.uint8).reshape(image[b"shape"])
    return packed({"actions": policy.ask(image, seen["prompt"]), "server_timing": {"infer_ms": 1.0}})


@contextmanager
def serving(metadata=None, reply=None, key=None):
    """A server in a thread; gives its address. `reply(data)` may be bytes, a text, or None, which hangs up."""
    policy = Scripted()
    reply = reply or (lambda data: answer(data, policy))

    def handle(connection):
        connection.send(packed({"gripper": "unit"} if metadata is None else metadata))
        try:
            for data in connection:
                if (said := reply(data)) is None:
                    return
                connection.send(said)
        except ConnectionClosed:
            pass

    def check(connection, request):
        if key and request.headers.get("Authorization") != f"Api-Key {key}":
            return connection.respond(401, "wants its\nAPI key")

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None, process_request=check) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


class Bare:
    """Refuses every import but what SimplerEnv's environment has for certain."""

    allowed = sys.stdlib_module_names | {"numpy", "msgpack", "websockets", "evaluation", "pixel160k", "fake_simpler"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ImportError(f"{name} is not in SimplerEnv's environment")


if __name__ == "__main__":  # a run as a process: the first argument is the step of the simulator at which it is killed
    sys.meta_path.insert(0, Bare())
    sys.modules.update(modules())
    left, step = int(sys.argv[1]), World.step

    def last(self, action):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, action)

    World.step = last
    from evaluation.simpler.run import main

    sys.exit(main(sys.argv[2:]))
