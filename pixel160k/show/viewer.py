"""The viewer for notebooks: `pixel160k.browse(shards)` steps through episodes with their masks and prompts.

What it shows follows from the values of its widgets, and these can be set from Python as well:
`viewer.episode.value = 3`, `viewer.status.value = "rejected"`, `viewer.layers["prompts"].value = False`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

try:
    import ipywidgets as widgets
except ImportError as error:
    raise ImportError(f"the viewer needs the extra [notebook] ({error}): pip install 'pixelvla[notebook]'") from None

from markupsafe import Markup

from pixel160k.errors import InputError
from pixel160k.paths import AnyPath
from pixel160k.read.episodes import ShardDirectory
from pixel160k.show.sample_html import LAYERS, sample_html

_ALL = ""  # the value of a filter that lets everything through


@dataclass(frozen=True)
class _Episode:
    episode_id: str
    first_step: int
    last_step: int
    close_step: int
    status: str
    instruction: str
    target_object: str


def browse(shards: str | AnyPath, limit: int = 1000) -> "Viewer":
    """An interactive viewer of a shard directory, for Jupyter; `Viewer` says what can be set from Python.

    Args:
        shards: output of `pixelcli build-shards`.
        limit: at most this many episodes, the first in the shards' order; the viewer says so where there are more.

    Raises:
        ImportError: the extra [notebook] is not installed.
        InputError: the directory holds no shards, or they are damaged.
    """
    return Viewer(ShardDirectory(shards), limit)


class Viewer(widgets.VBox):
    """What `browse` shows: filters, layers, an episode and a step slider, and the picture they choose.

    Attributes:
        status, target: dropdowns; "" lets every episode through.
        text: words that the instruction or the episode's id must all contain.
        layers: checkboxes by their names: "object mask", "gripper mask", "prompts".
        episode: number, from 0, among the episodes that the filters let through.
        step: the raw step.
        to_first, to_close: buttons to the steps that have masks even without tracks.
        shown: says how many episodes the filters let through.
        picture: the sample as HTML.
    """

    def __init__(self, directory: ShardDirectory, limit: int = 1000) -> None:
        """Read the first sample of each of the first `limit` episodes, and show the first."""
        self._directory = directory
        self._episodes = [_read_episode(directory, name) for name in directory.episode_ids[:limit]]
        self._matching = self._episodes
        narrow, wide = widgets.Layout(width="230px"), widgets.Layout(width="min(100%, 534px)")
        small = widgets.Layout(width="auto", margin="2px 12px 2px 2px")
        named = {"description_width": "70px"}
        self.status = widgets.Dropdown(
            options=_choices("any status", (episode.status for episode in self._episodes)), description="status",
            layout=narrow, style=named,
        )  # fmt: skip
        self.target = widgets.Dropdown(
            options=_choices("any object", (episode.target_object for episode in self._episodes)), description="object",
            layout=widgets.Layout(width="300px"), style=named,
        )  # fmt: skip
        self.text = widgets.Text(placeholder="words of the instruction", description="text", layout=wide, style=named)
        self.layers = {
            name: widgets.Checkbox(value=True, description=name, indent=False, layout=small) for name in LAYERS
        }
        self.episode = widgets.IntSlider(description="episode", layout=wide, style=named)
        self.step = widgets.IntSlider(description="step", layout=wide, style=named)
        self._play = widgets.Play(interval=200, show_repeat=False)
        self.to_first = widgets.Button(description="first frame", layout=small)
        self.to_close = widgets.Button(description="gripper closes", layout=small)
        self.shown = widgets.HTML()
        self.picture = widgets.HTML()
        for widget, changed in (
            (self.status, self._filter),
            (self.target, self._filter),
            (self.text, self._filter),
            (self.episode, self._open_episode),
            (self.step, self._draw),
            *((layer, self._draw) for layer in self.layers.values()),
        ):
            widget.observe(lambda _, changed=changed: changed(), "value")
        self.to_first.on_click(lambda _: self._go(self._current.first_step))
        self.to_close.on_click(lambda _: self._go(self._current.close_step))
        widgets.jslink((self._play, "value"), (self.step, "value"))
        rows = [
            [self.status, self.target, self.shown],
            [self.text],
            [self.episode],
            [self.step, self._play, self.to_first, self.to_close],
            list(self.layers.values()),
        ]
        wrapped = widgets.Layout(flex_flow="row wrap", align_items="center")
        super().__init__([*(widgets.Box(row, layout=wrapped) for row in rows), self.picture])
        self._filter()

    @property
    def _current(self) -> _Episode:
        return self._matching[self.episode.value]

    def _filter(self) -> None:
        words = self.text.value.lower().split()
        self._matching = [
            episode
            for episode in self._episodes
            if self.status.value in (_ALL, episode.status)
            and self.target.value in (_ALL, episode.target_object)
            and all(word in f"{episode.instruction} {episode.episode_id}".lower() for word in words)
        ]
        total = len(self._directory.episode_ids)
        first = f"the first {len(self._episodes)} of " if len(self._episodes) < total else ""
        self.shown.value = f"{len(self._matching)} of {first}{total} episodes"
        _set_range(self.episode, 0, max(0, len(self._matching) - 1), 0)
        self._open_episode()

    def _open_episode(self) -> None:
        for widget in (self.episode, self.step, self._play, self.to_first, self.to_close):
            widget.disabled = not self._matching
        if self._matching:
            episode = self._current
            self.to_close.disabled = not episode.first_step <= episode.close_step <= episode.last_step
            for slider in (self.step, self._play):
                _set_range(slider, episode.first_step, episode.last_step, episode.first_step)
        self._draw()

    def _go(self, step: int) -> None:
        self.step.value = step

    def _draw(self) -> None:
        if not self._matching:
            self.picture.value = "<p>No episode passes these filters.</p>"
            return
        layers = [name for name, layer in self.layers.items() if layer.value]
        try:
            self.picture.value = sample_html(self._directory.sample(self._current.episode_id, self.step.value), layers)
        except InputError as error:  # of damaged shards; Jupyter would show it nowhere
            self.picture.value = Markup("<p><strong>{}</strong></p>").format(error)


def _read_episode(directory: ShardDirectory, episode_id: str) -> _Episode:
    steps = directory.steps(episode_id)
    first = directory.sample(episode_id, steps[0], members=())
    return _Episode(
        episode_id,
        steps[0],
        steps[-1],
        first.metadata.close_step,
        first.status,
        first.instruction,
        first.target_object,
    )


def _choices(all_of_them: str, values: Iterable[str]) -> list[tuple[str, str]]:
    """The options of a filter, as label and value: first the one that lets all through, then the most frequent."""
    counts = sorted(Counter(value for value in values if value).items(), key=lambda item: (-item[1], item[0]))
    return [(all_of_them, _ALL), *((f"{value} ({count})", value) for value, count in counts)]


def _set_range(slider: widgets.IntSlider | widgets.Play, low: int, high: int, value: int) -> None:
    """Give a slider another range and value at once: one by one they would contradict each other."""
    with slider.hold_trait_notifications():
        slider.min, slider.max, slider.value = low, high, value
