"""Typed settings from YAML, `--set key=value` and values of other options: one way of configuring for every room.

A settings class is a pydantic model derived from `Settings`. Unknown keys and wrong values are one-line errors that name
the nearest key or what was expected.
"""

import copy
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pixel160k.errors import InputError, one_line


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, with a stable digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(
        cls,
        file: str | Path | None = None,
        overrides: Iterable[str] = (),
        base: Mapping[str, Any] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make settings of a YAML file and of what overrides it. Where nothing says a setting, it has its default.

        Args:
            file: a YAML file. It overrides `base`.
            overrides: texts `key=value`; the value is parsed as YAML. They override the file.
            base: settings to start from, as nested dictionaries.
            values: settings by their keys, taken as they are and never parsed: `{"init": "my run #2"}`. They override
                all others.

        Nested keys are written with dots in `overrides` and `values`: `filter.min_evidence`.

        Raises:
            InputError: the file cannot be read, or a key or value is wrong; one line that says what would be right.
        """
        settings = dict(copy.deepcopy(base)) if base else {}
        if file is not None:
            settings = _over(settings, read_settings(Path(file)))
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals:
                raise InputError(f"--set takes key=value, not {override!r}")
            _put(settings, key.strip(), _parse_yaml(text, f"--set {override}: the value is no YAML"))
        for key, value in (values or {}).items():
            _put(settings, key, value)
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise InputError("; ".join(cls._explain(fault) for fault in error.errors())) from None

    def digest(self) -> str:
        """SHA-256 (hex) of the settings' canonical JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def _explain(cls, fault: ErrorDetails) -> str:
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(key, cls._keys(), n=1, cutoff=0.4)
            return f"unknown setting {key!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")
        return f"setting {key!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r}"

    @classmethod
    def _keys(cls, prefix: str = "") -> list[str]:
        keys: list[str] = []
        for name, field in cls.model_fields.items():
            nested = field.annotation
            if isinstance(nested, type) and issubclass(nested, Settings):
                keys += nested._keys(f"{prefix}{name}.")
            else:
                keys.append(prefix + name)
        return keys


def read_settings(file: Path) -> dict[str, Any]:
    """The settings that a YAML file holds, as nested dictionaries, not checked.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    fault = f"cannot read the settings file {file}"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{fault}: {one_line(error)}") from None
    settings = _parse_yaml(text, fault) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{file} must hold `key: value` lines, not a {type(settings).__name__}")
    return settings


class _Loader(yaml.SafeLoader):
    """Safe YAML that takes no key twice, where PyYAML keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, fault: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date such as 2024-13-01
        raise InputError(f"{fault}: {one_line(error)}") from None


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as one; where both have a value, that of `above` stands."""
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _over(below[key], above[key])
    return merged


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, written with dots, in nested dictionaries."""
    *parents, leaf = key.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise InputError(f"setting {key!r}: {parent!r} holds a value, not further settings")
    settings[leaf] = value
