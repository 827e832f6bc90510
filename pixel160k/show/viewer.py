"""The viewer for notebooks: `pixel160k.browse(shards)` steps through episodes with their masks and prompts.

What it shows follows from the values of its widgets, and these can be set from Python as well:
`viewer.episode.value = 3`, `viewer.status.value = "rejected"`, `viewer.layers["prompts"].value = False`.
"""

try:
    import ipywidgets as widgets
except ImportError as error:
    raise ImportError(f"the viewer needs the extra [notebook] ({error}): pip install 'pixelvla[notebook]'") from None

from markupsafe import Markup

from pixel160k.errors import InputError
from pixel160k.format.episode_rows import EpisodeRow
from pixel160k.paths import AnyPath
from pixel160k.read.episode_table import episode_table
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.folder import read_manifest
from pixel160k.show.overview import SCORES, Choice, Overview
from pixel160k.show.sample_html import LAYERS, sample_html

_ALL = ""  # the value of a filter that lets everything through


def browse(shards: str | AnyPath) -> "Viewer":
    """An interactive viewer of a shard directory, for Jupyter; `Viewer` says what can be set from Python.

    Args:
        shards: output of `pixelcli build-shards`.

    Raises:
        ImportError: the extra [notebook] is not installed.
        InputError: the directory holds no shards, or they are damaged.
    """
    return Viewer(ShardDirectory(shards, cameras=read_manifest(shards).get("cameras", ())))


class Viewer(widgets.VBox):
    """What `browse` shows: filters, layers, an episode and a step slider, and the picture they choose.

    Attributes:
        status, reason, verb, target: dropdowns; "" lets every episode through.
        worst: dropdown of scores: the episodes that have it, the lowest first; "": all, in the shards' order.
        text: words that the instruction, the object's words or the episode's id must all contain.
        layers: checkboxes by their names: "object mask", "gripper mask", "prompts".
        episode: number, from 0, among the episodes that the filters let through.
        step: the raw step.
        to_first, to_close: buttons to the steps that have masks even without tracks.
        shown: says how many episodes the filters let through.
        picture: the sample as HTML.
    """

    def __init__(self, directory: ShardDirectory) -> None:
        """Read the table of episodes, and show the first."""
        self._directory, self._overview = directory, Overview(episode_table(directory.directory))
        self._matching = self._overview.choose(Choice())
        self._current: EpisodeRow | None = None
        narrow, wide = widgets.Layout(width="230px"), widgets.Layout(width="min(100%, 534px)")
        small = widgets.Layout(width="auto", margin="2px 12px 2px 2px")
        named = {"description_width": "70px"}
        filters = {"status": "status", "reason": "reason", "verb": "verb", "target_object": "object"}
        self.status, self.reason, self.verb, self.target = (
            widgets.Dropdown(
                options=_choices(f"any {name}", self._overview.counts(column)),
                description=name,
                layout=narrow,
                style=named,
            )
            for column, name in filters.items()
        )
        orders = [("in the shards' order", _ALL), *((f"lowest {name} first", score) for score, name in SCORES.items())]
        self.worst = widgets.Dropdown(
            options=orders, description="order", layout=widgets.Layout(width="300px"), style=named
        )
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
            *(
                (chosen, self._filter)
                for chosen in (self.status, self.reason, self.verb, self.target, self.worst, self.text)
            ),
            (self.episode, self._open_episode),
            (self.step, self._draw),
            *((layer, self._draw) for layer in self.layers.values()),
        ):
            widget.observe(lambda _, changed=changed: changed(), "value")
        self.to_first.on_click(lambda _: self._go("first_step"))
        self.to_close.on_click(lambda _: self._go("close_step"))
        widgets.jslink((self._play, "value"), (self.step, "value"))
        rows = [
            [self.status, self.reason, self.verb, self.target],
            [self.text, self.worst, self.shown],
            [self.episode],
            [self.step, self._play, self.to_first, self.to_close],
            list(self.layers.values()),
        ]
        wrapped = widgets.Layout(flex_flow="row wrap", align_items="center")
        super().__init__([*(widgets.Box(row, layout=wrapped) for row in rows), self.picture])
        self._filter()

    def _filter(self) -> None:
        choice = Choice(
            self.status.value, self.reason.value, self.verb.value, self.target.value, self.text.value, self.worst.value
        )
        self._matching = self._overview.choose(choice)
        self.shown.value = f"{len(self._matching)} of {len(self._overview)} episodes"
        _set_range(self.episode, 0, max(0, len(self._matching) - 1), 0)
        self._open_episode()

    def _open_episode(self) -> None:
        for widget in (self.episode, self.step, self._play, self.to_first, self.to_close):
            widget.disabled = not len(self._matching)
        self._current = None
        if len(self._matching):
            episode = self._current = self._overview.rows([self._matching[self.episode.value]])[0]
            self.to_close.disabled = not episode.first_step <= episode.close_step <= episode.last_step
            for slider in (self.step, self._play):
                _set_range(slider, episode.first_step, episode.last_step, episode.first_step)
        self._draw()

    def _go(self, step: str) -> None:
        if self._current is not None:
            self.step.value = getattr(self._current, step)

    def _draw(self) -> None:
        if self._current is None:
            self.picture.value = "<p>No episode passes these filters.</p>"
            return
        layers = [name for name, layer in self.layers.items() if layer.value]
        try:
            self.picture.value = sample_html(self._directory.sample(self._current.episode_id, self.step.value), layers)
        except InputError as error:  # of damaged shards; Jupyter would show it nowhere
            self.picture.value = Markup("<p><strong>{}</strong></p>").format(error)


def _choices(all_of_them: str, counts: dict[str, int]) -> list[tuple[str, str]]:
    """The options of a filter, as label and value: first the one that lets all through, then the values there are."""
    return [(all_of_them, _ALL), *((f"{value} ({count})", value) for value, count in counts.items())]


def _set_range(slider: widgets.IntSlider | widgets.Play, low: int, high: int, value: int) -> None:
    """Give a slider another range and value at once: one by one they would contradict each other."""
    with slider.hold_trait_notifications():
        slider.min, slider.max, slider.value = low, high, value
