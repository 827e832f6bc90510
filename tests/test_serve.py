"""A policy behind openpi's websocket and OpenVLA's /act: the same actions, and nothing that a client does harms another."""

import json
import logging
import re
import socket
import struct
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from served import Stub, serving, small_policy
from test_policy import HEIGHT, WIDTH, picture
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.server import ServerProtocol
from websockets.sync.client import connect
from websockets.sync.server import serve as websocket_server

from cli import main
from pixel160k.errors import InputError
from pixel160k.format.prompts import line, mask_prompt, point, region
from policies.base import Seen
from policies.framing import from_json, gripper_from, gripper_to, pack, pointing, to_json, unpack
from policies.remote import ActPolicy, OpenpiPolicy
from serve.batching import Actor
from serve.requests import ACT, OPENPI, read_observation
from serve.server import PolicyServer, bind, read_key
from serve.settings import ServeSettings

ROOT = Path(__file__).parents[1]
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[20:40, 30:60] = True
PROMPTS = [point(30.5, 40.5), line([(5, 5), (60, 70)]), region((20, 30, 36, 46)), mask_prompt(MASK)]
FORMS = [(pack, unpack), (lambda value: to_json(value).encode(), from_json)]


# --- bytes

NUMBERS = arrays.arrays(
    st.sampled_from(["?", "|i1", "|u1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8"]),
    arrays.array_shapes(min_dims=0, min_side=0),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def same(first, second):
    if isinstance(first, np.ndarray):
        return first.shape == second.shape and first.dtype == second.dtype and first.tobytes() == second.tobytes()
    return first == second


@pytest.mark.parametrize(("write", "read"), FORMS, ids=["msgpack", "json"])
@given(array=NUMBERS, value=VALUES)
@settings(max_examples=40, deadline=None)
def test_what_is_packed_comes_back(write, read, array, value):
    found = read(write({"array": array, "list": [array], "value": value}))
    assert same(array, found["array"]) and same(array, found["list"][0])
    assert found["value"] == value


@pytest.mark.parametrize(("write", "read"), FORMS, ids=["msgpack", "json"])
@given(rubbish=st.binary(max_size=200), cut=st.integers(0, 300), place=st.integers(0, 300), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_rubbish_is_never_our_bug(write, read, rubbish, cut, place, byte):
    whole = bytearray(write({"image": picture()[:4, :4], "prompt": "go", "x": np.float32(1)}))
    harmed = bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    for message in (rubbish, bytes(whole[:cut]), harmed, harmed + rubbish):
        try:
            read_observation(read(message), ACT, "bridge_orig")
        except InputError as error:
            assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "dtype", "shape", "message"),
    [
        (b"\x80\x04N.", "|O", [1], "dtype must be one of bools, integers or floats"),
        (bytes(8), "<c8", [1], "dtype must be one of"),
        (bytes(8), "<M8[s]", [1], "dtype must be one of"),
        (bytes(4), "<U1", [1], "dtype must be one of"),
        (bytes(8), "i4,i4", [1], "dtype must be one of"),
        (bytes(8), ["<f4"], [2], "dtype must be one of"),
        (bytes(8), "<f4", [3], r"has 12 bytes, not 8"),
        (bytes(8), "<f4", [-1, -2], "shape must be a list"),
        (bytes(8), "<f4", [True, 2], "shape must be a list"),
        (bytes(8), "<f4", "2", "shape must be a list"),
        (b"", "<f4", [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], "too large"),
        (b"", "<f4", [0, 2**40], "shape must be a list"),
        (bytes(4), "<f4", [1] * 9, "shape must be a list"),
        ("text", "<f4", [1], "data must be bytes|no base64"),
    ],
)
def test_a_forged_array_is_refused(data, dtype, shape, message):
    import base64

    import msgpack

    text = base64.b64encode(data).decode() if isinstance(data, bytes) else "%"
    with pytest.raises(InputError, match=message):
        unpack(msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}))
    with pytest.raises(InputError, match=message):
        from_json(json.dumps({"__numpy__": text, "dtype": dtype, "shape": shape}))


def test_what_has_no_form_is_not_packed():
    for value in (np.array([object()]), np.array([1j]), {1, 2}):
        with pytest.raises(TypeError):
            pack(value)
        with pytest.raises(TypeError):
            to_json(value)
    with pytest.raises(InputError, match="NaN, which is no number"):
        from_json('{"state": [NaN]}')
    with pytest.raises(InputError, match="no JSON"):
        from_json("[" * 100_000)


def test_both_conventions_of_the_gripper():
    actions = np.linspace(0, 1, 21, dtype=np.float32).reshape(3, 7)
    assert gripper_to("unit", actions) is actions
    signed = gripper_to("signed", np.eye(2, 7, 5, dtype=np.float32))  # closed, then open
    assert signed[:, -1].tolist() == [1, -1]
    np.testing.assert_allclose(gripper_from("signed", gripper_to("signed", actions)), actions, atol=1e-7)


# --- observations


@pytest.mark.parametrize("read", [lambda value: unpack(pack(value)), lambda value: from_json(to_json(value))])
def test_prompts_and_masks_come_as_they_were_given(read):
    masks = [MASK, ~MASK]
    said = {"observation/image": picture(), "prompt": "go", **pointing(masks, PROMPTS)}
    observation = read_observation(read(said), OPENPI, "bridge_orig")
    assert [prompt.kind for prompt in observation.prompts] == ["point", "line", "region", "mask"]
    for given_prompt, found in zip(PROMPTS, observation.prompts, strict=True):
        np.testing.assert_array_equal(given_prompt.coordinates, found.coordinates)
    np.testing.assert_array_equal(observation.prompts[-1].mask, MASK)
    np.testing.assert_array_equal(observation.masks, masks)
    assert pointing([], []) == {}


WRONG = {
    "no dictionary": ([1], "an observation is a dictionary"),
    "no image": ({"image": None}, "image must be RGB, uint8"),
    "two images": ({"full_image": picture()}, "give one image, as image or full_image; there are 2"),
    "floats": ({"image": picture() / 255}, "image must be RGB, uint8 .* not float64"),
    "grey": ({"image": picture()[..., 0]}, "image must be RGB"),
    "no pixel": ({"image": picture()[:0]}, "image must be RGB"),
    "a thread": ({"image": np.zeros((1, 16385, 3), np.uint8)}, "image must be RGB, uint8 .* of 16384 pixels a side"),
    "a path": ({"image": "/etc/passwd"}, "image must be RGB"),
    "wrist": ({"wrist_image": [1]}, "wrist_image must be RGB"),
    "no words": ({"instruction": " "}, "instruction must be a text"),
    "bytes": ({"instruction": b"go"}, "instruction must be a text"),
    "a book": ({"instruction": "go " * 1000}, "instruction must be a text"),
    "half a letter": ({"instruction": "\ud800"}, "instruction is no text"),
    "NaN": ({"state": np.array([0, np.nan])}, "state holds a number that is not finite"),
    "too much": ({"state": np.array([1e300])}, "state holds a number that is not finite"),
    "words": ({"state": ["a"]}, "state must be the robot's state"),
    "nested": ({"state": [[1, 2]]}, "state must be the robot's state"),
    "ragged": ({"state": [[1, 2], [3]]}, "state must be the robot's state"),
    "large": ({"state": [10**400]}, "state must be the robot's state"),
    "long": ({"state": np.zeros(257)}, "state must have 256"),
    "robot": ({"unnorm_key": 3}, "unnorm_key must be the name"),
    "typo": ({"prompt/point": [[1, 2]]}, "unknown key 'prompt/point'; did you mean prompt/points?"),
    "unknown": ({"zzz": 1}, "unknown key 'zzz'; there are: image"),
    "one number": ({"prompt/points": [1, 2]}, r"prompt/points must be points \(n, 2\)"),
    "infinite": ({"prompt/points": [[1, float("inf")]]}, "prompt/points holds a number that is not finite"),
    "outside": ({"prompt/points": [[999, 2]]}, "the point prompt reaches to"),
    "many": ({"prompt/points": [[1, 2]] * 65}, "prompt/points may hold 64"),
    "many in all": (
        {"prompt/points": [[1, 2]] * 60, "prompt/boxes": [[1, 2, 3, 4]] * 5},
        "may hold 64 together, not 65",
    ),
    "no box": ({"prompt/boxes": [[9, 9, 1, 1]]}, "prompt/boxes: a region is a box"),
    "flat line": ({"prompt/lines": [[1, 2], [3, 4]]}, "prompt/lines must be a list of lines"),
    "dot": ({"prompt/lines": [[[1, 2]]]}, "prompt/lines: a line needs two points"),
    "no lines": ({"prompt/lines": 7}, "prompt/lines must be a list of lines"),
    "one number's line": ({"prompt/lines": np.array(7.0)}, "prompt/lines must be a list of lines"),
    "a long name": ({"unnorm_key": "x" * 201}, "unnorm_key must be the name of a data set, of 200 characters"),
    "small mask": ({"mask": MASK[:9]}, r"mask must be bool, or uint8 of 0 and 1, \(96, 128\)"),
    "grey mask": ({"mask": MASK.astype(np.uint8) * 255}, "mask must be bool"),
    "empty prompt": ({"prompt/mask": MASK & False}, "prompt/mask: a mask prompt must mark something"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_observation_gets_a_line_that_names_the_key(change, message):
    said = {"image": picture(), "instruction": "go"}
    with pytest.raises(InputError, match=message) as error:
        read_observation(said | change if isinstance(change, dict) else change, ACT, "bridge_orig")
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400


LARGE = 300_000
DEEP = [1]
for _ in range(900):  # as msgpack lets it be
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "said",
    [
        {"k" * LARGE: 1},
        {b"k" * LARGE: 1},
        {"instruction": "x" * LARGE},
        {"instruction": b"x" * LARGE},
        {"unnorm_key": "x" * LARGE},
        {"unnorm_key": [1] * LARGE},
        {"image": {str(number): number for number in range(LARGE // 10)}},
        {"state": DEEP},
        {"prompt/points": ["x" * LARGE, *[""] * 100]},
        {"prompt/lines": [[["x" * LARGE, *[""] * 100]]]},
    ],
)
def test_what_is_large_and_wrong_costs_no_more_than_itself(said):
    """Of a key or value that is refused only the begin is looked at: other robots wait for the same thread."""
    message = {"image": picture(), "instruction": "go"} | said
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            read_observation(message, ACT, "bridge_orig")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LARGE / 2 and len(str(error.value)) < 500 and len(str(error.value).splitlines()) == 1


# --- one thread acts for all


def test_a_fault_of_one_fails_no_other_and_who_left_costs_nothing():
    stub = Stub()
    actor = Actor(stub.act, most=8, wait=0.2)

    def ask(instruction, seed=0, dataset="bridge_orig"):
        said = {"image": picture(seed), "instruction": instruction, "unnorm_key": dataset}
        return actor.ask(read_observation(said, ACT, "bridge_orig"))

    good = [ask("go", seed) for seed in range(5)]
    broken, unknown, not_finite = ask("break"), ask("go", dataset="elsewhere"), ask("nan")
    for seed, answer in enumerate(good):
        assert answer.result(60).actions[0, 0] == np.float32(picture(seed)[0, 0, 0] / 255)
    with pytest.raises(KeyError):
        broken.result(60)
    with pytest.raises(InputError, match="no statistics of 'elsewhere'"):
        unknown.result(60)
    with pytest.raises(InputError, match="not finite"):
        not_finite.result(60)
    slow = ask("slow")
    assert stub.busy.wait(60)
    left, last = ask("left"), ask("go")
    assert left.cancel()
    stub.release.set()
    assert slow.result(60).batch == last.result(60).batch == 1
    actor.close()
    assert not any("left" in batch for batch in stub.acted)


# --- the server

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture(scope="module")
def served(policy):
    with serving(policy, connections=256) as server:
        yield server


@pytest.fixture(scope="module")
def stubbed():
    with serving(Stub(), message_mb=1, read_s=1.5) as server:
        yield server


def clients(server, **options):
    return OpenpiPolicy(server.address, **options), ActPolicy(server.act_address, **options)


def post(server, body, headers=None):
    """Status and what was said."""
    data = body if isinstance(body, bytes) else to_json(body).encode()
    try:
        with urlopen(Request(server.act_address, data, headers or {}), timeout=20) as response:
            return response.status, from_json(response.read())
    except HTTPError as error:
        return error.code, from_json(error.read())


def get(server, path):
    with urlopen(server.act_address.removesuffix("/act") + path, timeout=20) as response:
        return response.read()


def alive(server):
    """Whether it still answers as it should, over both protocols."""
    for client in clients(server, patience=0):
        assert client.act([Seen(picture(), "go")]).shape == (1, 8, 7)
        client.close()
    return True


@pytest.mark.parametrize(
    "said", [{}, {"masks": [MASK]}, {"prompts": PROMPTS}, {"masks": [MASK, ~MASK], "prompts": PROMPTS}]
)
def test_both_protocols_give_what_the_policy_gives(served, policy, said):
    expected = policy.predict_action(picture(), "pick it up", dataset="bridge_orig", **said)
    seen = Seen(picture(), "pick it up", **said, wrist_image=picture(1), state=np.zeros(8))
    for client in clients(served):
        np.testing.assert_allclose(client.act([seen])[0], expected, atol=1e-6)
        client.close()
    message = {"instruction": "pick it up", **pointing(said.get("masks", ()), said.get("prompts", ()))}
    status, action = post(served, message | {"image": picture()})  # OpenVLA's client: one action
    assert status == 200
    np.testing.assert_array_equal(action, expected[0])
    status, answer = post(served, {"encoded": to_json(message | {"full_image": picture()})})
    np.testing.assert_array_equal(from_json(answer), expected)


def test_200_at_once_get_what_one_by_one_gets(served, policy):
    seen = [
        Seen(picture(seed), "pick it up" + " now" * (seed % 3), prompts=PROMPTS[: seed % 4], masks=[MASK][: seed % 2])
        for seed in range(20)
    ]
    alone = [policy.predict_action(s.image, s.instruction, s.masks, s.prompts, "bridge_orig") for s in seen]
    openpi, act = clients(served, at_once=100)
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda client: client.act(seen * 5), (openpi, act))
        for answer in answers:
            np.testing.assert_allclose(answer, np.tile(alone, (5, 1, 1)), atol=1e-5)
    measures = json.loads(get(served, "/metrics"))
    assert max(map(int, measures["batches"])) > 4
    assert 0 < measures["latency_ms"]["p50"] <= measures["latency_ms"]["p95"] <= measures["latency_ms"]["p99"]
    openpi.close()
    act.close()


def test_the_grippers_are_those_of_each_protocols_libero_client(stubbed):
    with connect(stubbed.address) as websocket:
        about = unpack(websocket.recv())
        websocket.send(pack({"observation/image": picture(), "prompt": "go"}))
        answer = unpack(websocket.recv())
    assert about["gripper"] == "signed" and about["chunk"] == 8 and about["datasets"] == ["bridge_orig"]
    assert answer["actions"].dtype == np.float32 and (answer["actions"][:, -1] == -1).all()
    assert answer["server_timing"]["infer_ms"] >= 0
    assert json.loads(get(stubbed, "/metadata"))["gripper"] == "unit"
    assert post(stubbed, {"image": picture(), "instruction": "go"})[1][-1] == 1
    with serving(Stub(), openpi_gripper="unit", act_gripper="signed") as server:
        for client in (OpenpiPolicy(server.address), ActPolicy(server.act_address)):
            assert (client.act([Seen(picture(), "go")])[..., -1] == 1).all()
            client.close()


def test_compiled_graphs_are_those_of_one_and_of_a_full_batch():
    """Another number of observations would be compiled anew, while robots wait."""
    stub, shown = Stub(), []
    stub.compile_acting = shown.extend
    with serving(stub, compiled=True, batch=4, batch_wait_ms=500) as server:
        client = OpenpiPolicy(server.address)
        answers = client.act([Seen(picture(seed), "go") for seed in range(3)])
        client.close()
    assert answers[:, 0, 0].tolist() == [np.float32(picture(seed)[0, 0, 0] / 255) for seed in range(3)]
    assert [(len(blanks), len(blanks[0].prompts)) for blanks in shown] == [(1, 0), (1, 1), (4, 0), (4, 1)]
    assert {len(batch) for batch in stub.acted[1:]} <= {1, 4} and ["go"] * 4 in stub.acted


# --- clients that do what they should not


def raw(server, data, then=b"", seconds=60):
    """What the server says to bytes on its port, until it hangs up."""
    address = urlsplit(server.act_address)
    with socket.create_connection((address.hostname, address.port), timeout=seconds) as stream:
        stream.sendall(data)
        said = b""
        while b"\r\n\r\n" not in said and (part := stream.recv(65536)):
            said += part
        stream.sendall(then)
        while part := stream.recv(65536):
            said += part
    return said


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
POST = b"POST /act HTTP/1.1\r\nHost: x\r\n"


def close_code(said):
    """The code of the close frame that ends what a server said, and its reason."""
    frame = said[said.rindex(b"\x88") :]
    return struct.unpack("!H", frame[2:4])[0], frame[4:]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x00\xff rubbish \r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),  # TLS
        (b"POST /act HT", b"400"),  # and never the rest
        (b"", b"400"),  # nor anything
        (POST + b"Content-Length: 2147483648\r\n\r\n", b"413"),
        (POST + b"Content-Length: 9" + b"9" * 5000 + b"\r\n\r\n", b"400"),
        (POST + b"Content-Length: 100\r\n\r\nhalf of it", b"408"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"40000\r\n" + bytes(0x40000) + b"\r\n40000\r\n", b"408"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n200000\r\n" + bytes(0x200000) + b"\r\n", b"413"),
        (POST + b"Content-Length: 4\r\nConnection: close\r\n\r\nnull", b"an observation is a dictionary"),
        (b"GET /act HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"405"),
        (b"GET /" + b"a" * 100_000, b"400"),
    ],
)
def test_rubbish_over_http_gets_a_reason(stubbed, data, expected):
    said = raw(stubbed, data)
    assert expected in said and b"Traceback" not in said
    assert alive(stubbed)


def test_half_a_frame_and_2_gb_over_the_websocket(stubbed):
    header = bytes([0x82, 0xFF])  # a binary frame with a mask and a length of 8 bytes
    said = raw(stubbed, UPGRADE, header + struct.pack("!Q", 2**31) + bytes(4))
    assert close_code(said)[0] == 1009 and b"1048576" in said
    said = raw(stubbed, UPGRADE, b"\xff\xff\xff")
    assert close_code(said)[0] == 1002
    assert alive(stubbed)
    with serving(Stub(), ping_s=0.5) as server:
        said = raw(server, UPGRADE, header + struct.pack("!Q", 1000) + bytes(50))  # then hangs, and answers no ping
        assert close_code(said) == (1011, b"keepalive ping timeout")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("text", "a binary frame of msgpack"),
        (b"\xc1rubbish", "no msgpack"),
        (pack({"observation/image": picture()}), "prompt must be a text"),
        (pack({"observation/image": picture(), "prompt": "go", "observation/state": np.array([np.nan])}), "not finite"),
        (pack({"observation/image": picture(), "prompt": "go", "unnorm_key": "x"}), "no statistics of 'x'"),
        (pack({"observation/image": picture(), "prompt": "nan"}), "the policy's actions are not finite"),
    ],
)
def test_a_wrong_observation_gets_a_text_frame_and_1011(stubbed, message, reason):
    with connect(stubbed.address) as websocket:
        websocket.recv()
        websocket.send(message)
        said = websocket.recv()
        assert isinstance(said, str) and reason in said and len(said.splitlines()) == 1
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv()
        assert closed.value.rcvd.code == 1011
    assert alive(stubbed)


def test_a_bug_is_one_line_to_strangers_and_a_traceback_in_the_log(stubbed, caplog):
    with caplog.at_level(logging.INFO, "serve"):
        status, said = post(stubbed, {"image": picture(), "instruction": "break"})
        assert status == 500 and said == {"error": "a bug of pixelvla; its traceback is in the server's log"}
        with pytest.raises(InputError, match="a bug of pixelvla; its traceback is in the server's log") as error:
            OpenpiPolicy(stubbed.address).act([Seen(picture(), "break")])
    assert "what only our log may tell" not in str(error.value)
    assert "what only our log may tell" in caplog.text and "Traceback" in caplog.text


def test_a_client_that_left_is_not_acted_for():
    stub = Stub()
    with serving(stub) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(OpenpiPolicy(server.address).act, [Seen(picture(), "slow")])
        assert stub.busy.wait(60)
        with connect(server.address) as websocket:
            websocket.recv()
            websocket.send(pack({"observation/image": picture(), "prompt": "left"}))
        body = to_json({"image": picture(), "instruction": "left"}).encode()
        address = urlsplit(server.act_address)
        with socket.create_connection((address.hostname, address.port)) as stream:
            stream.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until = time.monotonic() + 60
        while json.loads(get(server, "/metrics"))["gone"] < 2:
            assert time.monotonic() < until, "the server did not notice that they left"
            time.sleep(0.05)
        stub.release.set()
        assert waiting.result(60).shape == (1, 8, 7) and alive(server)
        assert not any("left" in batch for batch in stub.acted)


def test_only_who_has_the_key_is_served():
    with serving(Stub(), key="secret") as server:
        for wrong in ({}, {"api_key": "secre"}):
            for client in clients(server, **wrong):
                with pytest.raises(InputError, match="this server wants its API key"):
                    client.act([Seen(picture(), "go")])
        for client in clients(server, api_key="secret"):
            assert client.act([Seen(picture(), "go", prompts=PROMPTS)]).shape == (1, 8, 7)
            client.close()
        said = {"image": picture(), "instruction": "go"}
        assert post(server, said, {"Authorization": "Bearer secret"})[0] == 200
        assert post(server, said, {"Authorization": "Basic secret"})[0] == 401
        assert get(server, "/healthz") == b"OK\n"
        with pytest.raises(HTTPError, match="401"):
            get(server, "/metrics")


def test_more_clients_than_the_limit_are_turned_away():
    with serving(Stub(), connections=2) as server:
        with connect(server.address), connect(server.address):
            with pytest.raises(InvalidStatus) as refused, connect(server.address):
                pass
            assert refused.value.response.status_code == 503 and b"2 clients already" in refused.value.response.body
            assert post(server, {})[0] == 503 and get(server, "/healthz") == b"OK\n"
        assert alive(server)


# --- starting, and asking others


def test_the_settings_are_documented():
    table = (
        (ROOT / "docs" / "serving.md").read_text("utf-8").split("| setting | default | meaning |")[1].split("\n\n")[0]
    )
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \|", table, re.MULTILINE)
    assert rows == [
        (name, str(list(value)) if isinstance(value, tuple) else f"{value:g}" if not isinstance(value, str) else value)
        for name, value in ServeSettings()
    ]
    with pytest.raises(InputError, match="unknown setting 'bach'; did you mean 'batch'"):
        ServeSettings.load(overrides=["bach=3"])


def test_the_command_says_in_one_line_what_is_wrong(tmp_path):
    for wrong, message in (
        (["--checkpoint", str(tmp_path / "none"), "--port", "0"], "none"),
        (["--checkpoint", "x", "--set", "batch=0"], "setting 'batch'"),
        (["--checkpoint", "x", "--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
    ):
        result = CliRunner().invoke(main, ["serve", *wrong])
        assert result.exit_code == 1 and message in result.output, result.output
        assert len(result.output.splitlines()) == 1


def test_a_key_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("PIXELVLA_API_KEY", raising=False)
    assert read_key(None) == ""
    monkeypatch.setenv("PIXELVLA_API_KEY", "from the shell")
    with pytest.raises(InputError, match="PIXELVLA_API_KEY must be one word"):
        read_key(None)
    file = tmp_path / "key"
    with pytest.raises(InputError, match="cannot read the API key"):
        read_key(file)
    file.write_text("abc\n")
    assert read_key(file) == "abc"
    file.write_text("\n")
    with pytest.raises(InputError, match="must be one word"):
        read_key(file)


def test_what_cannot_be_served_is_said_before(policy):
    with (
        serving(Stub()) as server,
        pytest.raises(InputError, match=r"cannot listen at 127.0.0.1:.*; give another --port"),
    ):
        bind("127.0.0.1", urlsplit(server.address).port)
    with pytest.raises(InputError, match=r"cannot listen at no\.such\.host"):
        bind("no.such.host.invalid", 0)
    with bind("127.0.0.1", 0) as listener, pytest.raises(InputError, match=r"statistics of 'other'; .* bridge_orig"):
        PolicyServer(policy, listener, ServeSettings(), "other")


@pytest.mark.parametrize("url", ["", "localhost:8000", "ws://", "ftp://x", "ws://x:port", "http://x:99999999/act"])
def test_an_address_that_is_none_is_named(url):
    for client in (OpenpiPolicy, ActPolicy):
        with pytest.raises(InputError, match="is no address"):
            client(url)


def test_a_server_that_is_not_there_is_one_line():
    with bind("127.0.0.1", 0) as listener:  # nobody listens
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        for client in (OpenpiPolicy(f"ws://{place}", patience=0), ActPolicy(f"http://{place}/act", patience=0)):
            with pytest.raises(InputError, match=r"cannot be reached \(.*refused.*\); start the server"):
                client.act([Seen(picture(), "go")])


def test_no_proxy_of_the_environment_is_asked(stubbed, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert alive(stubbed)


@pytest.fixture
def hung():
    """The place of a server that takes connections and says nothing, and the socket that it listens at."""
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        listener.settimeout(20)
        yield f"127.0.0.1:{listener.getsockname()[1]}", listener


def test_a_server_that_does_not_shake_hands_is_asked_again(hung):
    place, listener = hung
    with (
        closing(OpenpiPolicy(f"ws://{place}", timeout=0.3, patience=0)) as client,
        pytest.raises(InputError, match=r"cannot be reached \(no handshake within 0.3 s\); start the server"),
    ):
        client.act([Seen(picture(), "go")])
    for _ in range(2):
        listener.accept()[0].close()


def test_a_server_that_stops_to_read_is_given_up(hung):
    place, listener = hung
    with closing(OpenpiPolicy(f"ws://{place}", timeout=1, patience=0)) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.act, [Seen(np.zeros((3000, 3000, 3), np.uint8), "go")])
        protocol, (stream, _) = ServerProtocol(), listener.accept()
        protocol.receive_data(stream.recv(4096))
        protocol.send_response(protocol.accept(*protocol.events_received()))
        protocol.send_binary(pack({}))
        stream.sendall(b"".join(protocol.data_to_send()))
        with stream, pytest.raises(InputError, match=r"did not answer within 1 s|cannot be reached"):
            answer.result(20)


@contextmanager
def openpi_server(speak):
    """A server of openpi's protocol; gives its address."""
    with websocket_server(speak, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


@pytest.mark.parametrize("begin", [None, b"\xc1", pack([1]), "hello"], ids=["nothing", "rubbish", "a list", "a text"])
def test_a_server_that_begins_wrongly_is_hung_up(begin):
    left = threading.Event()

    def speak(websocket):
        if begin is not None:
            websocket.send(begin)
        with suppress(ConnectionClosed):
            websocket.recv()
        left.set()

    with openpi_server(speak) as url, closing(OpenpiPolicy(url, timeout=0.5, patience=0)) as client:
        with pytest.raises(InputError):
            client.act([Seen(picture(), "go")])
        assert left.wait(5)


@pytest.mark.parametrize("how", ["no handshake", "no answer", "/act"])
def test_closing_waits_for_no_server_that_hangs(hung, how):
    """As after Ctrl-C: what waits for an answer is hung up at once."""
    place, listener = hung
    asked, over = threading.Event(), threading.Event()

    def speak(websocket):
        websocket.send(pack({}))
        websocket.recv()
        asked.set()
        over.wait(20)

    with openpi_server(speak) as url, ThreadPoolExecutor(1) as pool:
        client = (
            ActPolicy(f"http://{place}/act")
            if how == "/act"
            else OpenpiPolicy(url if how == "no answer" else f"ws://{place}")
        )
        answer = pool.submit(client.act, [Seen(picture(), "go")] * 3)
        if how == "no answer":
            assert asked.wait(20)
        else:
            listener.accept()
        since = time.monotonic()
        client.close()
        assert time.monotonic() - since < 3
        with pytest.raises(InputError, match="its client was closed"):
            answer.result(5)
        over.set()


def test_what_a_server_says_of_itself_and_whose_robot_acts(stubbed):
    for client in clients(stubbed):
        with closing(client):
            assert json.loads(json.dumps(client.about))["chunk"] == 8
    for client in clients(stubbed, dataset="elsewhere"):
        with closing(client), pytest.raises(InputError, match="no statistics of 'elsewhere'"):
            client.act([Seen(picture(), "go")])
    with (
        openpi_server(lambda websocket: [websocket.send(pack({"pose": np.zeros(2)})), [*websocket]]) as url,
        closing(OpenpiPolicy(url, dataset="bridge_orig")) as client,
    ):
        assert client.about == {"pose": [0, 0]}
        with pytest.raises(InputError, match="does not say that it takes unnorm_key"):
            client.act([Seen(picture(), "go")])


def test_servers_of_openvla_are_told_nothing_that_they_do_not_know():
    """They have no `/metadata`, and look for `image` or for `full_image`; one that is busy is no such server."""
    statuses, said = [503, 404], []

    class OpenVLA(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(statuses.pop(0))

        def do_POST(self):
            said.append(from_json(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(to_json(np.eye(7)[6] if len(said) < 3 else [np.zeros(7)] * 5).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), OpenVLA) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with closing(ActPolicy(f"http://127.0.0.1:{server.server_port}/act", "x")) as client:
            client.reset("one", "go")
            with pytest.raises(InputError, match=r"cannot act \(503\)"):
                client.act([Seen(picture(), "go", episode="one")])
            for _ in range(2):
                assert client.act([Seen(picture(), "go", episode="one")])[..., -1].tolist() == [[1]]
            assert client.act([Seen(picture(), "go", episode="one")]).shape == (1, 5, 7)  # OpenVLA-OFT
            assert client.about == {} and not statuses
        server.shutdown()
    assert [message.keys() for message in said] == [{"image", "full_image", "instruction", "unnorm_key"}] * 3


def test_servers_of_openpi_are_asked_and_never_pointed_at_in_vain():
    answers = [
        {"actions": np.eye(5, 7, 6)},
        {"actions": np.zeros((5, 6))},
        {"actions": "go"},
        b"",
        "Traceback\n  KeyError",
    ]

    def speak(websocket):
        websocket.send(pack({"reset_pose": [0.0]}))
        for _ in websocket:
            answer = answers.pop(0)
            websocket.send(pack(answer) if isinstance(answer, dict) else answer)

    with openpi_server(speak) as url:
        policy = OpenpiPolicy(url, patience=0)
        actions = policy.act([Seen(picture(), "go")])
        assert actions[0, :, -1].tolist() == [0, 0.5, 0.5, 0.5, 0.5]  # 1 is closed there
        for reason in (
            r"finite actions \(N, 7\)",
            "did not answer with actions",
            "no msgpack",
            "cannot act .* KeyError",
        ):
            with pytest.raises(InputError, match=reason):
                policy.act([Seen(picture(), "go")])
        with pytest.raises(InputError, match="does not say that it takes prompt/points, mask"):
            policy.act([Seen(picture(), "go", prompts=PROMPTS[:1], masks=[MASK])])
        policy.close()
