"""The command line itself: help with an example everywhere, light to start, a doctor that knows this machine."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from cli import main
from pixel160k.doctor import examine


def commands(group, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_every_command_has_help_with_an_example(path):
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert f"pixelcli {' '.join(path)}" in result.output.split("Options:")[0].split("\n", 2)[2]


def test_importing_is_light():
    """No room loads Beam, torch, TensorFlow or the simulator just because the command line starts."""
    heavy = "apache_beam torch tensorflow tensorflow_datasets libero mujoco cv2 pyarrow webdataset".split()
    code = f"import cli, sys; print([name for name in {heavy!r} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_rooms_keep_their_borders():
    """`pixel160k` stands alone; `simulation` stands on it only; nothing imports TensorFlow."""
    code = "import {0}, pkgutil, importlib, sys\nfor m in pkgutil.walk_packages({0}.__path__, '{0}.'): importlib.import_module(m.name)\n"
    code += "print(sorted({{name.split('.')[0] for name in sys.modules}} & {{'annotate', 'simulation', 'evaluation', 'pixel160k', "
    code += "'apache_beam', 'tensorflow', 'transformers'}}))"
    expected = {"pixel160k": ["pixel160k"], "simulation": ["pixel160k", "simulation"]}
    for room, rooms in expected.items():
        result = subprocess.run([sys.executable, "-c", code.format(room)], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == str(rooms)


def test_doctor_knows_this_installation():
    findings = {finding.subject: finding for finding in examine()}
    assert {"Python", "core", "[sim]", "[dask]", "[dev]", "[train]", "libGL", "devices"} <= set(findings)
    assert findings["core"].well and findings["[dev]"].well
    assert all(finding.remedy for finding in findings.values() if not finding.well)
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0
