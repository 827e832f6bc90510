"""What a server adds to the time of its policy: one that answers at once, asked over loopback by clients in the same process.

`python -m benchmarks.serving` prints, for each protocol and each number of clients, the median and the 95th percentile of
an answer's latency, the processor's time that an answer costs both ends together, which a busy machine does not change, and how
many came a second. The image is 224 x 224, as openpi's clients send it.
"""

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from policies.base import Policy, Seen
from policies.remote import ActPolicy, OpenpiPolicy
from serve.server import PolicyServer, bind
from serve.settings import ServeSettings


class AtOnce:
    """A policy that takes no time."""

    settings = SimpleNamespace(chunk=8, reads_state=False)
    processor = SimpleNamespace(statistics={"simulated": {}}, statistics_of=lambda dataset: {})

    def act(self, observations: Sequence[Any]) -> np.ndarray:
        return np.zeros((len(observations), 8, 7), np.float32)


def measure(make: Callable[[], Policy], clients: int, requests: int) -> str:
    """So many clients ask so many times each."""
    seen = [Seen(np.zeros((224, 224, 3), np.uint8), "pick up the black bowl")]

    def one(policy: Policy) -> list[float]:
        times = []
        for _ in range(requests):
            begun = time.perf_counter()
            policy.act(seen)
            times.append((time.perf_counter() - begun) * 1000)
        return times

    policies = [make() for _ in range(clients)]
    for policy in policies:
        policy.act(seen)  # connects
    begun, processor = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        times = np.concatenate(list(pool.map(one, policies)))
    rate = len(times) / (time.perf_counter() - begun)
    processor = (time.process_time() - processor) * 1000 / len(times)
    return f"{np.median(times):.1f} / {np.percentile(times, 95):.1f} ms, {processor:.1f} ms of processor, {rate:.0f}/s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=100, help="of each client")
    parser.add_argument("--wait-ms", type=float, default=0, help="the server's batch_wait_ms")
    options = parser.parse_args()
    settings = ServeSettings(batch_wait_ms=options.wait_ms)
    server = PolicyServer(cast(Any, AtOnce()), bind("127.0.0.1", 0), settings)
    threading.Thread(target=server.run).start()
    for clients in options.clients:
        for name, make in (
            ("openpi", lambda: OpenpiPolicy(server.address)),
            ("/act", lambda: ActPolicy(server.act_address)),
        ):
            print(f"{name}, {clients} clients: {measure(make, clients, options.requests)}", flush=True)
    server.stop()


if __name__ == "__main__":
    main()
