"""What `pixelcli serve --set key=value` may say (docs/serving.md)."""

from typing import Annotated

from pydantic import Field

from pixel160k.settings import Settings
from policies.framing import Gripper


class ServeSettings(Settings):
    """How clients are served.

    Attributes:
        batch: observations that are acted on together, at most.
        batch_wait_ms: how long an observation waits for others, while the policy is free.
        connections: clients at once, at most; more get 503.
        message_mb: the largest message, in MiB.
        read_s: seconds in which a request must have come whole, its head and its body each.
        ping_s: seconds between two signs of life of an open websocket, and those that a client has to answer.
        openpi_gripper: what the last number of an action means over the websocket.
        act_gripper: the same over `/act`.
        replan: actions of a chunk that clients carry out before they ask again, 0: all; only to know whether the gripper closed.
        point_wait_s: how long the first observation of an episode waits for somebody to point at something.
        host_names: by which browsers may come, beside addresses and localhost: `robot.lan`; `policy.example:8443` where a proxy
            listens at another port than its scheme's own.
    """

    batch: Annotated[int, Field(ge=1, le=1024)] = 16
    batch_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 2
    connections: Annotated[int, Field(ge=1)] = 64
    message_mb: Annotated[float, Field(gt=0, le=1024)] = 16
    read_s: Annotated[float, Field(gt=0)] = 10
    ping_s: Annotated[float, Field(gt=0)] = 20
    openpi_gripper: Gripper = "signed"
    act_gripper: Gripper = "unit"
    replan: Annotated[int, Field(ge=0)] = 0
    point_wait_s: Annotated[float, Field(ge=0, le=3600)] = 0
    host_names: tuple[Annotated[str, Field(pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*(:[0-9]+)?$")], ...] = ()

    @property
    def message_bytes(self) -> int:
        """The largest message, in bytes."""
        return int(self.message_mb * 2**20)
