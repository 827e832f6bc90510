"""`pixelcli serve` as others meet it: a process of its own, asked by `openpi-client`, `json-numpy` and `vla-eval` themselves, by
the very code of docs/serving.md; and killed again and again while a client goes on."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from served import Stub, small_policy
from test_policy import picture

from pixel160k.format.prompts import point, region
from policies.base import Seen
from policies.remote import ActPolicy, OpenpiPolicy
from serve.server import PolicyServer, bind
from serve.settings import ServeSettings

ROOT = Path(__file__).parents[1]
THEIRS = Path(os.environ.get("PIXELVLA_OPENPI", ROOT / ".venv-openpi")) / "bin" / "python"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text("utf-8"), re.DOTALL)
INSTRUCTION = "pick up the black bowl"


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture(scope="module")
def served(policy, tmp_path_factory):
    """The command itself: its address, once it says so. Ctrl-C ends it, and nothing but refusals went to its log."""
    folder = tmp_path_factory.mktemp("served")
    policy.save_pretrained(folder / "policy")
    command = [
        sys.executable,
        "-m",
        "cli",
        "serve",
        "--checkpoint",
        folder / "policy",
        "--port",
        "0",
        "--set",
        "batch=4",
        "--point-page",
        "--segmenter",
        "tiny",
    ]
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT) as process,
    ):
        line = process.stdout.readline().decode()
        found = re.fullmatch(
            r"serving .*/policy at (ws://\S+) \(openpi\) and (http://\S+) \(OpenVLA\); point at things on (http://\S+); "
            r"Ctrl-C ends it\n",
            line,
        )
        assert found, line + (folder / "log").read_text()
        yield found
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert (process.returncode, rest) == (0, b""), (folder / "log").read_text()
    log = (folder / "log").read_text().splitlines()
    assert not [line for line in log if line and " refused: " not in line and not line.startswith("Loading weights:")]


def block(word, served):
    """The code of the documentation that has this word, for this server."""
    (code,) = [code for code in BLOCKS if word in code]
    return code.replace("8000", str(urlsplit(served[1]).port))


def run_theirs(code, tmp_path):
    """What their environment prints last, as JSON; it may use the picture `image`."""
    if not THEIRS.exists():
        pytest.skip(
            "openpi-client's environment is not there; `make .venv-openpi/.all` makes it, PIXELVLA_OPENPI names another"
        )
    np.save(tmp_path / "image.npy", picture())
    before = "import json, numpy as np\nimage = np.load('image.npy')\n"
    (tmp_path / "ask.py").write_text(before + code)
    done = subprocess.run([THEIRS, "ask.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_code_for_our_own_clients_runs(served, policy):
    expected = policy.predict_action(picture(), INSTRUCTION, dataset="bridge_orig")
    names = {"image": picture()}
    exec(block("policies.remote", served), names)
    np.testing.assert_allclose(names["actions"][0], expected, atol=1e-6)
    names["policy"].close()
    act = ActPolicy(served[2])
    np.testing.assert_allclose(act.act([Seen(picture(), INSTRUCTION)])[0], expected, atol=1e-6)
    act.close()
    assert b"<title>Point at what is meant</title>" in urlopen(served[3], timeout=20).read()


def test_theirs_openpi(served, policy, tmp_path):
    """openpi-client by the documentation's code, then as openpi's LIBERO example asks, then wrongly."""
    code = block("get_server_metadata", served)
    more = """
wrist, state = image[:64, :64], np.zeros(8)
libero = {"observation/image": image, "observation/wrist_image": wrist, "observation/state": state, "prompt": "go"}
plain = policy.infer(libero)
try:
    policy.infer(libero | {"observation/state": state + np.nan})
except RuntimeError as error:
    refused = str(error)
print(json.dumps([actions.tolist(), plain["actions"].tolist(), plain["server_timing"], refused]))
"""
    pointed, plain, timing, refused = run_theirs(code + more, tmp_path)
    for said, actions in (({"prompts": [point(60.5, 40.5)]}, pointed), ({}, plain)):
        expected = policy.predict_action(picture(), INSTRUCTION if said else "go", dataset="bridge_orig", **said)
        expected[:, -1] = 1 - 2 * expected[:, -1]
        np.testing.assert_allclose(actions, expected, atol=1e-6)
    assert timing["infer_ms"] > 0
    assert refused.splitlines()[1:] == ["observation/state holds a number that is not finite"]


def test_theirs_json_numpy(served, policy, tmp_path):
    more = "\nprint(json.dumps([action.tolist(), [one.tolist() for one in actions]]))\n"
    code = block("json_numpy", served)
    action, actions = run_theirs(code + more, tmp_path)
    pointed = policy.predict_action(picture(), INSTRUCTION, prompts=[region((40, 30, 80, 60))], dataset="bridge_orig")
    np.testing.assert_allclose(action, pointed[0], atol=1e-6)
    expected = policy.predict_action(picture(), INSTRUCTION, dataset="bridge_orig")
    np.testing.assert_allclose(actions, expected, atol=1e-6)


def test_theirs_vla_eval(served, policy, tmp_path):
    """vla-eval's own server by the documentation's code, asked by vla-eval's own client as its LIBERO benchmark does."""
    code = block("vla_eval", served).partition("if __name__")[0]
    more = """
import anyio
from vla_eval.connection import Connection
from vla_eval.model_servers.serve import serve_async

async def main():
    async with anyio.create_task_group() as group:
        port = await group.start(serve_async, PixelVLA(), "127.0.0.1", 0)
        async with Connection(f"ws://127.0.0.1:{port}") as connection:
            await connection.start_episode({"task": {"name": "go"}})
            seen = {"images": {"agentview": image}, "task_description": "go"}
            found = [(await connection.act(seen))["actions"].tolist() for _ in range(9)]
        group.cancel_scope.cancel()
    print(json.dumps(found))

anyio.run(main)
"""
    found = run_theirs(code + more, tmp_path)
    expected = policy.predict_action(picture(), "go", dataset="bridge_orig")
    expected[:, -1] = 1 - 2 * expected[:, -1]
    np.testing.assert_allclose(found, [*expected, expected[0]], atol=1e-6)


# --- killed


def serve_stub(port):
    PolicyServer(Stub(), bind("127.0.0.1", port), ServeSettings()).run()


def test_a_server_that_is_killed_and_started_again_goes_on_being_asked():
    """SIGKILL at random points, while clients of both protocols ask without a pause and notice nothing but the time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["served", "serve.server"])
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    kills, chance = int(os.environ.get("PIXELVLA_KILLS", 3)), random.Random(0)
    openpi = OpenpiPolicy(f"ws://127.0.0.1:{port}", patience=120)
    act = ActPolicy(f"http://127.0.0.1:{port}/act", patience=120)
    for _ in range(kills):
        process = context.Process(target=serve_stub, args=(port,))
        process.start()
        until = None
        while until is None or time.monotonic() < until:
            for seed in range(5):
                seen = Seen(picture(seed), "go")
                assert (
                    openpi.act([seen])[0, 0, 0] == act.act([seen])[0, 0, 0] == np.float32(picture(seed)[0, 0, 0] / 255)
                )
            until = until or time.monotonic() + chance.uniform(0, 0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    openpi.close()
    act.close()


def test_sigterm_ends_a_server_that_has_clients():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["served", "serve.server"])
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    process = context.Process(target=serve_stub, args=(port,))
    process.start()
    client = OpenpiPolicy(f"ws://127.0.0.1:{port}", patience=120)
    assert client.act([Seen(picture(), "go")]).shape == (1, 8, 7)
    assert urlopen(f"http://127.0.0.1:{port}/healthz", timeout=20).read() == b"OK\n"
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 0
    client.close()
