"""A person points, on the page beside the policy or once for all: what of it each episode's policy is told, and who may point."""

import base64
import io
import json
import re
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from click.testing import CliRunner
from PIL import Image
from served import Stub, serving, small_policy
from test_policy import HEIGHT, WIDTH, picture
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import simulation
from annotate.annotators.segmenter import Segment, Segmenter
from annotate.settings import FoundationSettings
from annotate.timing import Stopwatch
from cli import main
from evaluation.simpler.client import Server
from pixel160k.errors import InputError
from pixel160k.format.prompts import point
from policies.base import Seen
from policies.framing import pack, to_json
from policies.remote import ActPolicy, OpenpiPolicy
from serve import clicks
from serve.clicks import Pointing
from serve.settings import ServeSettings
from simulation import truth
from simulation.rlds import find_dataset, read_libero_episodes

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

SAMPLE = Path(simulation.__file__).parent / "sample"
BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
CLICK, OTHER = {"prompt/points": [[30.5, 40.5]]}, {"prompt/points": [[60.5, 20.5]]}
BOX = {"prompt/boxes": [[10, 20, 40, 50]]}


class Client:
    """openpi's client, which sees pictures and says what the policy was then told."""

    def __init__(self, server, stub):
        self._connection = connect(server.address, compression=None).__enter__()
        self._stub = stub
        self._connection.recv()

    def ask(self, image=None, prompt="go", **more):
        said = {"observation/image": picture() if image is None else image, "prompt": prompt, **more}
        self._connection.send(pack(said))
        answer = self._connection.recv(20)
        assert isinstance(answer, bytes), answer
        return told(self._stub)

    def close(self):
        self._connection.close()


def told(stub):
    """The prompts and masks that the policy was told last: kinds with coordinates, and areas."""
    observation = stub.told[-1]
    prompts = [(prompt.kind, prompt.coordinates.ravel().tolist()) for prompt in observation.prompts]
    return prompts, [int(mask.sum()) for mask in observation.masks]


POINT = ([("point", [30.5, 40.5])], [])
NOTHING = ([], [])


def request(server, path, body=None, **headers):
    """Status, headers and text of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urlopen(Request(server.page_address.removesuffix("/point") + path, data, headers), timeout=20) as response:
            return response.status, response.headers, response.read().decode()
    except HTTPError as error:
        return error.code, error.headers, error.read().decode()


def seen(server, episode=""):
    status, _, text = request(server, f"/point/seen?episode={episode}")
    assert status == 200, text
    return json.loads(text)


def point_at(server, what, episode=None):
    """Point in an episode, the last by default; the reason where that is refused."""
    number = seen(server)["number"] if episode is None else episode
    status, _, text = request(server, "/point", {"episode": number, **what})
    return "" if status == 200 else f"{status}: {json.loads(text)['error']}"


@contextmanager
def page(always=None, follow=None, **settings):
    stub = Stub()
    with serving(stub, pointing=Pointing(True, always, follow), **settings) as server:
        yield server, stub


@pytest.fixture(scope="module")
def shared():
    with page() as both:
        yield both


@pytest.fixture
def served(shared):
    server, stub = shared
    client = Client(server, stub)
    yield server, stub, client
    client.close()


# --- what a policy is told


def test_a_click_is_told_in_its_episode_alone_until_the_gripper_closes(served):
    server, stub, client = served
    other, act = Client(server, stub), ActPolicy(server.act_address)
    act.act([Seen(picture(), "go")])
    assert other.ask() == NOTHING and client.ask() == NOTHING
    here = seen(server)
    assert here["told"] == "the instruction alone" and not here["marked"]
    assert point_at(server, CLICK) == ""
    assert client.ask(picture(1)) == POINT and other.ask() == NOTHING
    act.act([Seen(picture(), "go")])
    assert told(stub) == NOTHING
    assert client.ask(picture(2)) == POINT
    assert seen(server, here["number"])["told"] == "the instruction and a point at 30.5, 40.5"
    assert client.ask(BLACK) == POINT  # and then the policy closes it
    assert client.ask(picture(3)) == NOTHING == client.ask(BLACK)
    assert "is closed: nothing is pointed at until it opens" in point_at(server, CLICK)
    client.ask()
    assert point_at(server, BOX) == ""  # a grasp that missed
    assert client.ask() == ([("region", [10, 20, 40, 50])], [])
    assert point_at(server, OTHER) == "" and client.ask() == ([("point", [60.5, 20.5])], [])
    assert point_at(server, {}) == "" and client.ask() == NOTHING
    other.close()
    act.close()


def test_what_a_client_points_at_itself_comes_first(served):
    server, _, client = served
    client.ask()
    point_at(server, CLICK)
    mask = np.ones((HEIGHT, WIDTH), bool)
    assert client.ask(**OTHER) == ([("point", [60.5, 20.5])], [])
    assert "what its client points at" in seen(server)["told"]
    assert client.ask(mask=mask) == ([], [mask.sum()])
    assert client.ask() == POINT


def test_only_actions_that_are_carried_out_close_the_gripper():
    with page(replan=4) as (server, stub):
        client = Client(server, stub)
        client.ask(prompt="late")
        point_at(server, CLICK)
        assert client.ask(prompt="late") == POINT == client.ask(prompt="late")
        client.close()
    with page() as (server, stub):
        client, said = Client(server, stub), {"image": picture(), "instruction": "late"}
        for _ in range(2):
            assert request(server, "/act", to_json(said).encode())[0] == 200  # OpenVLA's client: the first action alone
            point_at(server, CLICK)
        assert told(stub) == POINT
        assert client.ask(prompt="late") == NOTHING  # carried out whole, and so it is closed
        assert "until it opens" in point_at(server, CLICK)
        client.close()


def test_a_new_episode_has_no_click(served):
    server, stub, client = served

    def clicked():
        client.ask()
        assert point_at(server, CLICK) == "" and client.ask() == POINT
        return seen(server)["number"]

    for new in ({"prompt": "another task"}, {"image": picture()[:50]}, {"episode": "first"}):
        number = clicked()
        assert client.ask(**new) == NOTHING == client.ask(**new)
        assert seen(server)["number"] != number
    clicked()
    again = Client(server, stub)
    assert again.ask() == NOTHING
    # Who names its episodes may be asked for on several connections.
    again.ask(episode="second")
    point_at(server, CLICK)
    assert client.ask(episode="second") == POINT and client.ask(episode="third") == NOTHING
    assert seen(server)["name"] == "episode third"
    number = seen(server)["number"]
    again.close()
    client.ask()
    client.close()
    until = time.monotonic() + 20
    while any(one["name"].startswith("openpi") for one in seen(server)["episodes"]):
        assert time.monotonic() < until, "a connection that is closed is an episode that has ended"
        time.sleep(0.02)
    assert point_at(server, CLICK, number) == ""
    assert "400: episode 123456 has ended" in point_at(server, CLICK, 123456)


def test_our_own_client_names_its_episodes_and_begins_them_anew(shared):
    server, _ = shared
    policy = OpenpiPolicy(server.address)
    policy.reset("scene 7", "go")
    policy.act([Seen(picture(), "go", episode="scene 7")])
    assert re.fullmatch(r"episode scene 7 \d\d:\d\d:\d\d\.\d{6}", seen(server)["name"])
    policy.close()


def test_in_each_episode_of_our_own_clients_the_server_points_anew():
    """The same instruction, over one connection or from one address, a few times in a second."""
    stub, pointing = Stub(), Pointing(always=point(30.5, 40.5))
    with (
        serving(stub, pointing=pointing) as server,
        closing(OpenpiPolicy(server.address)) as openpi,
        closing(ActPolicy(server.act_address)) as act,
        Server(server.address) as simpler,
    ):
        for number in range(3):
            for policy in (openpi, act):
                policy.reset("scene 7", "go")
                for expected in (POINT, NOTHING):  # on a black image it closes the gripper
                    policy.act([Seen(BLACK, "go", episode="scene 7")])
                    assert told(stub) == expected
            for expected in (POINT, NOTHING):
                simpler.ask(BLACK, "go", f"scene {number}")
                assert told(stub) == expected


def test_episodes_that_nobody_asks_for_any_more_are_forgotten(monkeypatch):
    with page(connections=8) as (server, stub):
        client = Client(server, stub)
        for number in range(12):
            client.ask(episode=str(number))
        assert [one["name"] for one in seen(server)["episodes"]] == [f"episode {number}" for number in range(4, 12)]
        monkeypatch.setattr(clicks, "_OVER", 0)
        assert seen(server) == {"episodes": []}
        client.close()


# --- waiting for a person, and pointing without one


def test_the_first_observation_waits_for_a_click_if_asked_to(caplog):
    with page(point_wait_s=60) as (server, stub):
        first, other = Client(server, stub), Client(server, stub)
        before = len(stub.told)

        def waiting(client, then, **said):
            found = []
            thread = threading.Thread(target=lambda: found.append(client.ask(**said)))
            thread.start()
            until = time.monotonic() + 20
            while not seen(server).get("waits"):
                assert time.monotonic() < until
                time.sleep(0.02)
            assert "It waits for you" in seen(server)["next"] and "image" in seen(server)
            then()
            thread.join(20)
            return found[0]

        def meanwhile():
            assert len(stub.told) == before
            assert other.ask(**OTHER) == ([("point", [60.5, 20.5])], [])  # has its own, and waits for nobody
            assert point_at(server, CLICK, seen(server)["episodes"][0]["number"]) == ""

        assert waiting(first, meanwhile) == POINT == first.ask()
        assert waiting(first, lambda: point_at(server, {}), prompt="another task") == NOTHING
        measures = json.loads(request(server, "/metrics")[2])
        assert measures["latency_ms"]["p99"] < 5000
        first.close()
        other.close()
    with page(point_wait_s=0.2) as (server, stub):
        client, since = Client(server, stub), time.monotonic()
        assert client.ask() == NOTHING == client.ask()
        assert time.monotonic() - since > 0.2
        client.close()


def test_one_point_for_every_episode_of_a_camera_that_stands_still():
    stub = Stub()
    with serving(stub, pointing=Pointing(always=point(30.5, 40.5))) as server:
        client = Client(server, stub)
        assert client.ask() == POINT == client.ask(BLACK) and client.ask() == NOTHING
        assert client.ask(prompt="another task") == POINT
        client.close()
        assert request(server, "/point")[0] == 404
        said = {"image": picture()[:20], "instruction": "go"}
        status, _, text = request(server, "/act", to_json(said).encode())
        assert (
            status == 400
            and "--point of this server: the point prompt reaches to (30.5, 40.5), out of the image" in text
        )


# --- SAM 2


class Follower:
    """Stands for SAM 2: marks as many pixels as it saw images, the bright ones of them; nothing is present on a black one."""

    def __init__(self):
        self.prompts, self.images = [], []

    def __call__(self, prompt):
        self.prompts.append(list(prompt))
        count = 0

        def take(image):
            nonlocal count
            count += 1
            self.images.append(image)
            mask = np.zeros(image.shape[:2], bool)
            mask.flat[:count] = True
            return Segment(mask, float(image.any()))

        return take


def test_sam_2_follows_what_was_clicked_from_that_image_on():
    follower = Follower()
    with page(follow=follower) as (server, stub):
        client = Client(server, stub)
        tried = len(follower.images)
        client.ask(picture(5))
        assert point_at(server, CLICK) == ""
        shown = seen(server)
        assert "mask target" in shown["layers"] and "prompt point" in shown["layers"]
        assert [client.ask(picture(seed)) for seed in (6, 7)] == [(POINT[0], [2]), (POINT[0], [3])]
        np.testing.assert_array_equal(follower.images[tried:], [picture(seed) for seed in (5, 6, 7)])
        assert seen(server)["told"].endswith("with the mask that SAM 2 follows")
        client.ask(**OTHER)  # is not followed
        assert point_at(server, BOX) == "" and client.ask() == ([("region", [10, 20, 40, 50])], [2])
        assert follower.prompts[1:] == [[30.5, 40.5], [10, 20, 40, 50]]
        assert client.ask(BLACK) == ([("region", [10, 20, 40, 50])], [0])
        assert "SAM 2 does not see it" in seen(server)["told"]
        count = len(follower.images)
        assert client.ask() == NOTHING and len(follower.images) == count
        client.close()


class Held(Follower):
    """SAM 2 that fails on a black image, as where memory is out, and takes others only once it may go on."""

    def __init__(self):
        super().__init__()
        self.busy, self.free = threading.Event(), threading.Event()
        self.free.set()

    def __call__(self, prompt):
        take = super().__call__(prompt)

        def held(image):
            self.busy.set()
            assert self.free.wait(10)
            if len(self.images) and not image.any():  # the first is the server's own try
                raise RuntimeError("out of memory")
            return take(image)

        return held


def test_the_page_has_the_image_that_a_click_is_taken_on():
    """While SAM 2 looks at an image the one before is shown, and then that one: under its own number, never another's."""

    def shown(have=""):
        return json.loads(request(server, f"/point/seen?have={have}")[2])

    with page(follow=(held := Held())) as (server, stub):
        client = Client(server, stub)
        client.ask(picture(1))
        point_at(server, CLICK)
        before = shown()
        held.free.clear()
        held.busy.clear()
        asking = threading.Thread(target=client.ask, args=(picture(2),))
        asking.start()
        assert held.busy.wait(20)
        during = shown(before["version"])
        assert "image" not in during and during["version"] == before["version"] and during["shown"] == 1
        held.free.set()
        asking.join(20)
        after = shown(during["version"])
        assert after["shown"] == 2 and after["image"] != before["image"]
        assert "image" not in shown(after["version"])
        client.close()


def test_a_click_that_sam_2_fails_on_does_not_stay():
    with page(follow=Held(), point_wait_s=60) as (server, stub):
        client = Client(server, stub)
        first = threading.Thread(target=client.ask, args=(BLACK,))
        first.start()
        until = time.monotonic() + 20
        while not seen(server).get("waits"):
            assert time.monotonic() < until
        assert point_at(server, CLICK).startswith("500: a bug of pixelvla")
        now = seen(server)
        assert now["waits"] and not now["marked"], "the first image waits for another click"
        assert point_at(server, {}) == ""
        first.join(20)
        client.close()
    with page(follow=Held()) as (server, stub):

        def act(image):
            return request(server, "/act", to_json({"full_image": image, "instruction": "go"}).encode())[0]

        assert act(picture()) == 200 and point_at(server, CLICK) == ""
        assert act(BLACK) == 500
        assert "SAM 2 failed" in seen(server)["next"]
        assert act(BLACK) == 200 and told(stub) == NOTHING


def test_a_click_becomes_a_mask_and_reaches_a_policy():
    """The tiny SAM 2 on the sample's own images, before a real policy."""
    file = min(find_dataset(SAMPLE).glob("*.tfrecord-*"))
    steps = next(iter(read_libero_episodes(file)))["steps"][:3]
    images = [np.asarray(Image.open(io.BytesIO(step["observation"]["image"].getvalue()))) for step in steps]
    row = next(truth.iterate(SAMPLE / truth.FILE_NAME))
    ys, xs = np.nonzero(row.mask(0))
    place = [float(xs[len(xs) // 2]) + 0.5, float(ys[len(ys) // 2]) + 0.5]
    follow = Segmenter(FoundationSettings(segmenter="tiny"), "cpu", Stopwatch()).follow_live
    with page(follow=follow) as (server, stub):
        client = Client(server, stub)
        client.ask(images[0])
        assert point_at(server, {"prompt/points": [place]}) == ""
        for step in (1, 2):
            client.ask(images[step])
            (mask,) = stub.told[-1].masks
            assert (mask & row.mask(step)).sum() > 0.6 * (mask | row.mask(step)).sum()
        client.close()
    policy = small_policy()
    expected = policy.predict_action(images[0], "go", [follow(place)(images[0]).mask], [point(*place)], "bridge_orig")
    with serving(policy, pointing=Pointing(always=point(*place), follow=follow)) as server:
        client = OpenpiPolicy(server.address)
        np.testing.assert_allclose(client.act([Seen(images[0], "go")])[0], expected, atol=1e-6)
        client.close()


# --- who may point, and with what

RUBBISH = {
    "no JSON": (b"{", "no JSON"),
    "deep": (b"[" * 4000, "no JSON"),
    "a list": ([1], "say the number of an episode"),
    "no episode": (CLICK, "say the number of an episode"),
    "true": ({"episode": True}, "say the number of an episode"),
    "a name": ({"episode": "EPISODE"}, "say the number of an episode"),
    "a mask": ({"episode": 0, "mask": [[True]]}, "say the number of an episode"),
    "a line": ({"episode": 0, "prompt/lines": [[[1, 2], [3, 4]]]}, "say the number of an episode"),
    "NaN": (b'{"episode": 0, "prompt/points": [[NaN, 1]]}', "NaN, which is no number"),
    "infinite": (b'{"episode": 0, "prompt/points": [[1e999, 1]]}', "not finite"),
    "outside": ({"episode": 0, "prompt/points": [[-1, 2]]}, "the point prompt reaches to"),
    "far": ({"episode": 0, "prompt/boxes": [[1, 2, 3, 9999]]}, "the region prompt reaches to"),
    "words": ({"episode": 0, "prompt/points": [["<b>", 1]]}, "prompt/points must be points"),
    "one number": ({"episode": 0, "prompt/points": [7]}, "prompt/points must be points"),
    "a flat box": ({"episode": 0, "prompt/boxes": [[5, 5, 5, 9]]}, "a region is a box"),
    "two": ({"episode": 0, **CLICK, **BOX}, "one thing is pointed at, not 2"),
    "large": (b" " * 5000, "a message may have 4096 bytes"),
}


@pytest.mark.parametrize(("body", "reason"), RUBBISH.values(), ids=list(RUBBISH))
def test_rubbish_is_refused_in_one_line_and_points_at_nothing(served, body, reason):
    server, _, client = served
    client.ask()
    if isinstance(body, bytes):
        body = body.replace(b'"episode": 0', b'"episode": %d' % seen(server)["number"])
    elif isinstance(body, dict) and body.get("episode") == 0 and body["episode"] is not False:
        body = body | {"episode": seen(server)["number"]}
    status, _, text = request(server, "/point", body)
    assert status == (413 if "bytes" in reason else 400)
    error = json.loads(text)["error"]
    assert reason in error and len(error.splitlines()) == 1 and len(error) < 400
    assert client.ask() == NOTHING


def test_no_page_of_another_site_may_look_or_point(served):
    server, _, client = served
    client.ask()
    number = seen(server)["number"]
    own = server.page_address.removesuffix("/point")
    port = own.rpartition(":")[2]
    body, act = {"episode": number, **CLICK}, to_json({"image": picture(), "instruction": "go"}).encode()
    others = [
        {"Origin": "http://elsewhere.example"},
        {"Origin": f"http://elsewhere.example:{port}"},
        {"Origin": f"http://127.0.0.1:{int(port) % 60000 + 1}"},
        {"Origin": "null"},
        {"Origin": "http://[half"},
        # A site whose own name points to this machine.
        {"Origin": f"http://elsewhere.example:{port}", "Host": f"elsewhere.example:{port}"},
        {"Origin": f"http://127.0.0.1.elsewhere.example:{port}", "Host": f"127.0.0.1.elsewhere.example:{port}"},
    ]
    for headers in others:
        for path, data in (
            ("/point", body),
            ("/point", None),
            ("/point/seen", None),
            ("/act", act),
            ("/metrics", None),
        ):
            status, _, text = request(server, path, data, **headers)
            assert status == 403 and len(json.loads(text)["error"].splitlines()) == 1, (headers, path)
        if "Host" not in headers:
            with pytest.raises(InvalidStatus) as refused, connect(server.address, additional_headers=headers):
                pass
            assert refused.value.response.status_code == 403
    for path in ("/point", "/point/seen"):  # a browser does not say who asks for a page of the same name
        assert request(server, path, Host=f"elsewhere.example:{port}")[0] == 403
    assert client.ask() == NOTHING
    for name in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert request(server, "/point", body, Origin=f"http://{name}", Host=name)[0] == 200
    assert client.ask() == POINT
    assert request(server, "/act", act, Host="robot.lan")[0] == 200  # a robot may know us by any name


def test_browsers_may_come_by_the_names_that_the_settings_say_and_by_no_other():
    names = ("robot.lan", "policy.example:8443")
    with page(host_names=names) as (server, stub):
        client = Client(server, stub)
        client.ask()
        port = server.page_address.removesuffix("/point").rpartition(":")[2]
        own, body = f"127.0.0.1:{port}", {"episode": seen(server)["number"], **CLICK}
        allowed = [
            (f"http://robot.lan:{port}", f"robot.lan:{port}"),  # asked directly
            (f"http://ROBOT.lan:{port}".lower(), f"Robot.lan:{port}"),
            ("https://robot.lan", "robot.lan"),  # through a proxy that says by which name it was asked
            ("https://policy.example:8443", "policy.example:8443"),
            ("https://robot.lan", own),  # and through one that puts our address there
            ("https://policy.example:8443", own),
        ]
        for origin, host in allowed:
            assert request(server, "/point", Host=host)[0] == 200  # as a browser asks for a page
            assert request(server, "/point", body, Origin=origin, Host=host)[0] == 200, (origin, host)
            assert request(server, "/point", {"episode": body["episode"]}, Origin=origin, Host=host)[0] == 200
        refused = [
            ("https://elsewhere.example", own),
            ("https://elsewhere.example", "robot.lan"),
            ("https://elsewhere.example", "elsewhere.example"),  # its name points here
            ("https://robot.lan.elsewhere.example", "robot.lan.elsewhere.example"),
            ("https://xrobot.lan", own),
            ("https://robot.lan:9000", own),  # another program behind a name of ours
            ("https://policy.example", own),
            ("ftp://robot.lan", own),
            ("robot.lan", own),
            ("null", "robot.lan"),
        ]
        for origin, host in refused:
            status, _, text = request(server, "/point", body, Origin=origin, Host=host, X_Forwarded_Host="robot.lan")
            assert status == 403 and len(json.loads(text)["error"].splitlines()) == 1, (origin, host)
        status, _, text = request(server, "/point", Host="elsewhere.example")
        assert status == 403 and "--set host_names=[NAME]" in text
        assert client.ask() == NOTHING
        client.close()


@pytest.mark.parametrize("name", ["*", "*.lan", "https://robot.lan", "robot.lan/", "Robot.lan:x", "", "a..b"])
def test_a_name_that_is_none_is_one_line(name):
    with pytest.raises(InputError, match="host_names"):
        ServeSettings.load(overrides=[f"host_names=[{json.dumps(name)}]"])


def test_the_page_holds_nothing_of_clients_and_no_frame_may_hold_it(served):
    server, _, client = served
    evil = "</script><img src=x onerror=alert(1)>"
    client.ask(prompt=evil, episode=evil)
    status, headers, text = request(server, "/point")
    assert status == 200 and "onerror" not in text
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    _, headers, text = request(server, "/point/seen")
    assert headers["Content-Type"] == "application/json" and headers["X-Content-Type-Options"] == "nosniff"
    assert json.loads(text)["instruction"] == evil and "onerror" not in json.loads(text)["layers"]
    have = json.loads(text)["version"]
    assert json.loads(text)["image"].startswith("data:image/jpeg;base64,")
    assert "image" not in json.loads(request(server, f"/point/seen?have={have}")[2])


def test_the_page_wants_the_key_as_the_password_of_a_browser():
    with serving(Stub(), key="secret", pointing=Pointing(True)) as server:

        def basic(password):
            return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()

        for path, body in (("/point", None), ("/point/seen", None), ("/point", {"episode": 1})):
            for wrong in ({}, {"Authorization": basic("secre")}, {"Authorization": "Basic !"}):
                status, headers, text = request(server, path, body, **wrong)
                assert status == 401 and headers["WWW-Authenticate"].lower().startswith("basic realm=")
                assert "API key" in text
        assert request(server, "/point", Authorization=basic("secret"))[0] == 200
        assert request(server, "/point/seen", Authorization="Bearer secret")[0] == 200
        status, headers, _ = request(server, "/act", b"{}", Authorization=basic("secret"))
        assert status == 401 and headers["WWW-Authenticate"] is None


def test_graphs_are_compiled_for_what_a_click_makes():
    stub, shown = Stub(), []
    stub.compile_acting = shown.extend
    with serving(stub, compiled=True, batch=2, pointing=Pointing(True, None, Follower())):
        pass
    kinds = [(len(blanks), len(blanks[0].prompts), len(blanks[0].masks)) for blanks in shown]
    assert kinds == [(count, *kind) for count in (1, 2) for kind in ((0, 0), (1, 0), (1, 1))]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--point", "1"], 1, "--point takes x,y in pixels of the image, not '1'"),
        (["--point", "1,nan"], 1, "not finite"),
        (["--segmenter", "tiny"], 2, "give --point-page or --point as well"),
        (["--set", "point_wait_s=5"], 2, "give --point-page as well"),
        (["--point-page", "--segmenter", "no/where"], 1, "name a folder that holds it with --segmenter FOLDER"),
    ],
)
def test_the_command_says_what_does_not_go_together(monkeypatch, options, code, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(main, ["serve", "--checkpoint", "x", *options])
    assert result.exit_code == code and message in result.output.splitlines()[-1], result.output


# --- the page itself


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at the page with")
def test_a_hand_on_the_page(shared):
    """Mouse and keys in a real browser: a click, a drag and Escape arrive in pixels of the image."""
    server, stub = shared
    client = Client(server, stub)
    client.ask(prompt="take <b>this</b>")
    with Browser(server.page_address) as browser:
        assert browser.wait("seen.number && image.complete && at('instruction').textContent") == "take <b>this</b>"
        left, top, width, height = browser.run(
            "(box => [box.left, box.top, box.width, box.height])(image.getBoundingClientRect())"
        )

        def on_screen(x, y):
            return left + x / WIDTH * width, top + y / HEIGHT * height

        browser.press(on_screen(30.3, 40.6))
        browser.wait("at('next').textContent.includes('30.5, 40.5')")
        assert client.ask(prompt="take <b>this</b>") == POINT
        browser.wait("at('told').textContent.includes('30.5, 40.5')")
        browser.press(on_screen(40.4, 50.2), on_screen(9.7, 20.5))
        browser.wait("at('next').textContent.includes('9, 20 to 41, 51')")
        assert client.ask(prompt="take <b>this</b>") == ([("region", [9, 20, 41, 51])], [])
        browser.escape()
        browser.wait("at('clear').disabled")
        assert client.ask(prompt="take <b>this</b>") == NOTHING
        client.close()
        browser.wait("!seen.episodes.some(one => one.name.startsWith('openpi'))")
        assert not browser.faults
