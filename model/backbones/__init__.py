"""The pretrained vision-language-action models that a policy stands on: the register of them.

`base` is what a policy knows of any of them, `settings` their sizes. Each is one module, with its published checkpoints' form
in another where that is long. Adding one is a module with a `Backbone` and its `BackboneSettings`, and an entry here.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, NamedTuple

from model.backbones.settings import BackboneSettings, OpenVLASettings, Pi0Settings

if TYPE_CHECKING:
    from model.backbones.base import Backbone  # which imports torch: settings do without


class Registered(NamedTuple):
    """A kind of backbone.

    Attributes:
        settings: the class of its settings.
        backbone: its `Backbone` as "module:class", imported when the first one is built.
    """

    settings: type[BackboneSettings]
    backbone: str


BACKBONES: dict[str, Registered] = {
    "openvla": Registered(OpenVLASettings, "model.backbones.openvla:OpenVLABackbone"),
    "pi0": Registered(Pi0Settings, "model.backbones.pi0:Pi0Backbone"),
}
"""Every kind of backbone by its name, which is also the `model_type` of its published checkpoints."""


def backbone_class(kind: str) -> "type[Backbone]":
    """The class of a kind of backbone, a key of `BACKBONES`."""
    return resolve_name(BACKBONES[kind].backbone)


def random_backbone(settings: BackboneSettings) -> "Backbone":
    """A backbone of these sizes with random weights."""
    return backbone_class(settings.kind)(settings)
