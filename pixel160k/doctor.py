"""`pixelcli doctor`: what is installed, which extras work, which devices there are, what is missing and how to get it."""

import ctypes.util
import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass

from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

from pixel160k.errors import one_line

_SYSTEM_LIBRARIES = {
    "GL": ("libgl1", "OpenCV"),
    "glib-2.0": ("libglib2.0-0", "OpenCV"),
    "OSMesa": ("libosmesa6", "[sim]"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, whether it is well, what was found, and how to mend it."""

    subject: str
    well: bool
    found: str
    remedy: str = ""


_CORE = ("Python", "core", "libGL", "libglib-2.0")


def core_works(findings: list[Finding]) -> bool:
    """Whether shards can be read, checked and shown on this machine, whatever extra is missing."""
    return all(finding.well for finding in findings if finding.subject in _CORE)


def report(findings: list[Finding]) -> Table:
    """The findings as a table for the terminal."""
    table = Table("", "", "found", "to get it", show_lines=True)
    for finding in findings:
        mark = "[green]ok[/]" if finding.well else "[red]no[/]"
        remedy = "" if finding.well else finding.remedy
        table.add_row(escape(finding.subject), mark, escape(finding.found), escape(remedy))
    return table


def examine() -> list[Finding]:
    """Examine this machine and this installation; imports no heavy package but torch, and that only to list devices."""
    return [_python(), *_packages(), *_system_libraries(), _devices()]


def _python() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding(
        "Python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}, {cores} cores",
        "pixelvla needs Python 3.11 or newer",
    )  # fmt: skip


def _packages() -> list[Finding]:
    """The core and each extra: all of its distributions installed at a version that setup.cfg allows?"""
    distribution = importlib.metadata.distribution("pixelvla")
    requirements = [Requirement(text) for text in distribution.requires or []]

    def wanted(extra: str) -> list[Requirement]:
        """What an extra asks for, and what the extras that it names ask for."""
        found = []
        for requirement in requirements:
            marker = requirement.marker
            if marker is None if not extra else marker is not None and marker.evaluate({"extra": extra}):
                ours = requirement.name == "pixelvla"
                found += [each for of in sorted(requirement.extras) for each in wanted(of)] if ours else [requirement]
        return found

    findings = []
    for extra in ["", *sorted(distribution.metadata.get_all("Provides-Extra") or [])]:
        problems, versions = [], []
        for requirement in wanted(extra):
            try:
                installed = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                problems.append(f"{requirement.name} is missing")
                continue
            versions.append(f"{requirement.name} {installed}")
            if not requirement.specifier.contains(installed, prereleases=True):
                problems.append(f"{requirement.name} {installed} is not {requirement.specifier}")
        name = f"[{extra}]" if extra else "core"
        install = f"pip install -c constraints.txt '.{name if extra else ''}'"
        findings.append(Finding(name, not problems, ", ".join(problems or versions), install))
    return findings


def _system_libraries() -> list[Finding]:
    return [
        Finding(f"lib{name}", found is not None, found or f"missing; {user} needs it", f"apt-get install {package}")
        for name, (package, user) in _SYSTEM_LIBRARIES.items()
        for found in [ctypes.util.find_library(name)]
    ]


def _devices() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("devices", True, "cpu (without the extra [foundation] there is no torch to ask for others)")
    try:
        gpus = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    except RuntimeError as error:
        return Finding("devices", False, one_line(error), "nvidia-smi says whether the GPU works and what uses it")
    devices = ["cpu", *gpus]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return Finding("devices", True, ", ".join(devices))
