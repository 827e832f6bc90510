"""What `pixelcli serve --set key=value` may say (docs/serving.md)."""

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
    """

    batch: int = Field(16, ge=1, le=1024)
    batch_wait_ms: float = Field(2, ge=0, le=1000)
    connections: int = Field(64, ge=1)
    message_mb: float = Field(16, gt=0, le=1024)
    read_s: float = Field(10, gt=0)
    ping_s: float = Field(20, gt=0)
    openpi_gripper: Gripper = "signed"
    act_gripper: Gripper = "unit"

    @property
    def message_bytes(self) -> int:
        """The largest message, in bytes."""
        return int(self.message_mb * 2**20)
