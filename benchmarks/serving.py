"""What a server adds to the time of its policy: a tiny random policy in a process of its own, asked over loopback.

`python -m benchmarks.serving` prints, for each number of clients of the websocket, the median and the 95th percentile of
an answer's latency as the client sees it, of what the policy took of it, and of the rest: packing, the wire, unpacking, waiting for
others; and how many answers came a second. The image is 224 x 224, as openpi's clients send it.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

DATASET = "simulated"


def serve(port: int, wait_ms: float) -> None:
    """Serve a tiny random policy until the process is ended."""
    from model.policy import PixelVLA
    from serve.server import PolicyServer, bind
    from serve.settings import ServeSettings

    action = {
        "mask": [True] * 6 + [False],
        "q01": [-1.0] * 6 + [0.0],
        "q99": [1.0] * 7,
        "min": [-1.0] * 7,
        "max": [1.0] * 7,
    }
    policy = PixelVLA.start("tiny", {DATASET: {"action": action}}).eval()
    PolicyServer(policy, bind("127.0.0.1", port), ServeSettings(batch_wait_ms=wait_ms)).run()


def measure(ask: Callable[[int], float], clients: int, requests: int) -> str:
    """Ask by so many clients at once; `ask` gets the client's number and returns the policy's milliseconds."""

    def one(client: int) -> list[tuple[float, float]]:
        ask(client)  # connects
        times = []
        for _ in range(requests):
            begun = time.perf_counter()
            acted = ask(client)
            times.append(((time.perf_counter() - begun) * 1000, acted))
        return times

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = np.array([pair for pairs in pool.map(one, range(clients)) for pair in pairs])
    rate = len(times) / (time.perf_counter() - begun)
    columns = {"latency": times[:, 0], "policy": times[:, 1], "rest": times[:, 0] - times[:, 1]}
    shown = (f"{name} {np.median(values):.1f} / {np.percentile(values, 95):.1f}" for name, values in columns.items())
    return f"{', '.join(shown)} ms, {rate:.1f}/s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=50, help="of each client")
    parser.add_argument("--wait-ms", type=float, default=2, help="the server's batch_wait_ms")
    options = parser.parse_args()

    from websockets.sync.client import connect

    from policies.framing import pack, unpack
    from serve.server import bind

    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port, options.wait_ms), daemon=True)
    server.start()
    said = pack({"observation/image": np.zeros((224, 224, 3), np.uint8), "prompt": "pick up the black bowl"})
    while True:
        try:
            connect(f"ws://127.0.0.1:{port}").close()
            break
        except OSError:
            time.sleep(0.5)
    for clients in options.clients:
        connections = [connect(f"ws://127.0.0.1:{port}", compression=None) for _ in range(clients)]
        for connection in connections:
            connection.recv()

        def ask(client: int, connections: list = connections) -> float:
            connections[client].send(said)
            timing = unpack(connections[client].recv())["server_timing"]
            return float(timing["infer_ms"])

        print(f"{clients} clients over the websocket: {measure(ask, clients, options.requests)}", flush=True)
        for connection in connections:
            connection.close()
    server.terminate()
    server.join()


if __name__ == "__main__":
    main()
