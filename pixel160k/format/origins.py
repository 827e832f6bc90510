"""The registry of data sets: every fact about where episodes come from that the code itself does not follow from.

A new data set is one entry here and one module `annotate/sources/NAME.py`, which turns its records into episodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixel160k.errors import InputError


@dataclass(frozen=True)
class Licence:
    """A licence on images: its name, where its text is, and what the Hugging Face hub calls it."""

    name: str
    url: str
    hub_name: str


@dataclass(frozen=True)
class Origin:
    """One data set, or a family of data sets with the same schema.

    Attributes:
        title: what it is called, and where it is found.
        robot: LeRobot's name of the robot.
        cameras: their names in the source's records, the main camera first.
        actions: the units of the first six dimensions of an action.
        dataset: the data set's name, which is OpenVLA's key of its statistics; "" where it is the name of its folder.
        hz: steps per second; None where the data sets of this family differ.
        licence: of the images; None where only the data set's own card knows.
        citation: the paper to cite.
    """

    title: str
    robot: str
    cameras: tuple[str, ...]
    actions: str
    dataset: str = ""
    hz: float | None = None
    licence: Licence | None = None
    citation: str = ""

    @property
    def credit(self) -> str:
        """Title and licence, as far as it is known."""
        return f"{self.title}, {self.licence.name}" if self.licence else self.title


_LIBERO_CAMERAS = ("image", "wrist_image")
_LIBERO_ACTIONS = "LIBERO's controller input (1 = 0.05 m or 0.5 rad)"
_LIBERO_PAPER = (
    "Liu et al., LIBERO: Benchmarking Knowledge Transfer for Lifelong Robot Learning, NeurIPS 2023, arXiv:2306.03310"
)
_APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", "apache-2.0")
_CC_BY = Licence("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", "cc-by-4.0")

ORIGINS: dict[str, Origin] = {
    "sample": Origin(
        title="the simulated sample of pixelvla, rendered in LIBERO",
        robot="panda",
        cameras=_LIBERO_CAMERAS,
        actions=_LIBERO_ACTIONS,
        hz=5.0,
        citation=_LIBERO_PAPER,
        licence=_APACHE,
    ),
    "bridge_orig": Origin(
        title="BridgeData V2 (rail-berkeley.github.io/bridgedata)",
        robot="widowx",
        cameras=("image_0", "image_1", "image_2", "image_3"),
        actions="metres and radians per step, differences of the reached poses",
        dataset="bridge_orig",
        hz=5.0,
        licence=_CC_BY,
        citation="Walke et al., BridgeData V2: A Dataset for Robot Learning at Scale, CoRL 2023, arXiv:2308.12952",
    ),
    "fractal": Origin(
        title="RT-1 robot data of Open X-Embodiment (robotics-transformer-x.github.io)",
        robot="google_robot",
        cameras=("image",),
        actions="metres and radians per step, as commanded",
        dataset="fractal20220817_data",
        hz=3.0,
        citation="Brohan et al., RT-1: Robotics Transformer for Real-World Control at Scale, RSS 2023, arXiv:2212.06817",
        licence=_CC_BY,  # Open X-Embodiment's, for all but software; Apache-2.0 is that of RT-1's code
    ),
    "libero": Origin(
        title="a data set in the schema of OpenVLA's modified LIBERO; its own card names its licence",
        robot="panda",
        cameras=_LIBERO_CAMERAS,
        actions=_LIBERO_ACTIONS,
        citation=_LIBERO_PAPER,
    ),
}
"""The data sets by the names that `pixelcli annotate --src` takes."""


def origin_of(manifest: Mapping[str, Any]) -> Origin:
    """Where the episodes of shards come from, by their manifest.

    Raises:
        InputError: from a data set that this version does not know.
    """
    source = manifest["annotations"]["source"]
    if source not in ORIGINS:
        raise InputError(f"these shards are of source {source!r}, which is none of {', '.join(ORIGINS)}")
    return ORIGINS[source]
