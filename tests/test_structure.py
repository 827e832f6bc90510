"""How the house is built: no circle of imports, no file too long, each room imports what it may, and reading is light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from drawn_shards import write_drawn_shards
from numbered_shards import write_shards

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "pixel160k": set(),
    "annotate": {"pixel160k"},
    "model": {"pixel160k"},
    "simulation": {"pixel160k"},
    "train": {"model", "pixel160k"},
    "policies": {"model", "pixel160k", "train"},
    "serve": {"model", "pixel160k", "policies", "train"},
    "evaluation": {"annotate", "model", "pixel160k", "policies", "simulation", "train"},
    "cli": {"annotate", "evaluation", "model", "pixel160k", "policies", "serve", "simulation", "train"},
}
NEVER = {room: {"tensorflow"} for room in MAY_IMPORT} | {
    "pixel160k": {"tensorflow", "apache_beam", "tensorflow_datasets", "transformers"},
    "model": {"tensorflow", "apache_beam"},
    "train": {"tensorflow", "apache_beam"},
}
WINGS = ["format", "read", "show", "publish"]  # of pixel160k; `Sample` alone looks ahead, when a notebook shows it
LONGEST = 399


def module_files():
    """The modules of all rooms by their dotted names."""
    files = [path for room in MAY_IMPORT for path in [*(ROOT / room).rglob("*.py"), ROOT / f"{room}.py"]]
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in files if path.is_file()}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def imports(tree, module):
    """The names that a module imports, those within functions too: `a.b` of `import a.b`, `a.b.c` of `from a.b import c`."""
    found = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return found


@pytest.fixture(scope="module")
def house():
    """Of each module of ours: what it imports."""
    files = module_files()
    return {module: imports(ast.parse(path.read_text("utf-8")), module) for module, path in files.items()}


def modules_among(names, house):
    """The modules of ours among imported names: that of `a.b.c` is a.b.c, or a.b where c is something in it."""
    return {name if name in house else name.rpartition(".")[0] for name in names} & house.keys()


def find_circle(graph):
    """The modules of a circle, in its order; none where there is no circle."""
    done = set()

    def walk(module, path):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for following in sorted(graph[module]):
            if circle := walk(following, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := walk(module, []))), [])


def test_all_rooms_are_seen(house):
    assert {module.split(".")[0] for module in house} == MAY_IMPORT.keys()
    assert "matplotlib.figure.Figure" in house[
        "pixel160k.show.data_figure"
    ] and "pixel160k.show.sample_html" in modules_among(house["pixel160k.read.samples"], house)


def test_a_circle_is_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert find_circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d"]
    tree = ast.parse("if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c.d import e")
    assert imports(tree, "x") == {"b", "c.d.e"}


def test_there_is_no_circle_of_imports(house):
    circle = find_circle({module: modules_among(names, house) - {module} for module, names in house.items()})
    assert not circle, f"a circle of imports: {' -> '.join([*circle, circle[0]])}"


def test_rooms_import_what_they_may(house):
    for module, names in house.items():
        room = module.split(".")[0]
        imported = {name.split(".")[0] for name in names}
        assert not (wrong := imported & MAY_IMPORT.keys() - MAY_IMPORT[room] - {room}), f"{module} imports {wrong}"
        assert not (wrong := imported & NEVER[room]), f"{module} imports {wrong}"


def test_wings_import_only_those_before_them(house):
    for module, names in house.items():
        wing = module.split(".")[1] if module.startswith("pixel160k.") else ""
        if wing in WINGS and module != "pixel160k.read.samples":
            later = {f"pixel160k.{name}" for name in WINGS[WINGS.index(wing) + 1 :]}
            wrong = {name for name in names if ".".join(name.split(".")[:2]) in later}
            assert not wrong, f"{module} imports {wrong}"


def test_no_file_is_too_long():
    lengths = {module: len(path.read_text("utf-8").splitlines()) for module, path in module_files().items()}
    assert not {module: lines for module, lines in lengths.items() if lines > LONGEST and module != "cli"}


HIDDEN = ["apache_beam", "tensorflow_datasets", "tensorflow", "torch", "torchdata", "transformers"]
READ = f"""
import sys
hidden = {HIDDEN!r}
sys.modules.update(dict.fromkeys(hidden))  # now to import one of them is an ImportError
import pixel160k
from pixel160k.read.verify import verify
from pixel160k.show.browse_page import write_page
numbered, drawn, page = sys.argv[1:]
loader = pixel160k.open_shards(numbered)
samples = list(loader)
assert len(samples) == len(loader) == 12 and all(sample.image is not None for sample in samples)
directory = pixel160k.ShardDirectory(numbered)
assert sorted(s.key for e in directory.episode_ids for s in directory.episode(e)) == sorted(s.key for s in samples)
assert "<svg" in samples[0]._repr_html_()
assert not [fault for fault in verify(numbered) if not fault.startswith("manifest.json: lacks the checksum")], verify(numbered)
from pathlib import Path
assert write_page(Path(drawn), Path(page)) == 4
try:
    import ipywidgets
except ImportError:
    pass
else:
    assert pixel160k.browse(drawn).shown.value == "4 of 4 episodes"
assert not [name for name in hidden if sys.modules[name] is not None]
"""


def test_shards_are_read_without_beam_tfds_torch_and_transformers(tmp_path):
    """Who only loads, checks or looks at shards needs none of the heavy packages."""
    numbered = write_shards(tmp_path / "numbered", [[3, 2], [4], [3]])
    drawn = write_drawn_shards(tmp_path / "drawn")
    done = subprocess.run(
        [sys.executable, "-c", READ, numbered, drawn, tmp_path / "page.html"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_the_tree_of_the_readme_is_true():
    """Each line names what lies in the folder above it, and no module is left out."""
    listed, folders = set(), []
    for line in (ROOT / "README.md").read_text("utf-8").split("```\ncli.py", 1)[1].split("\n```")[0].splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        for word in re.match(r"[^\s,]+(, [^\s,]+)*", line.strip()).group().split(", "):
            path = ROOT.joinpath(*folders, word)
            assert path.exists(), f"README.md lists {path.relative_to(ROOT)}"
            listed.add(path)
        if word.endswith("/"):
            folders.append(word)
    rooms = [ROOT / room for room in MAY_IMPORT if room != "cli"]
    modules = {path for room in rooms for path in room.rglob("*.py") if path.name != "__init__.py"}
    assert not [str(path.relative_to(ROOT)) for path in sorted(modules - listed)]
