"""Typed settings from YAML and `--set key=value`: one way of configuring for every room.

A settings class is a pydantic model derived from `Settings`. Unknown keys and wrong values are one-line errors that name
the nearest key or what was expected.
"""

import copy
import difflib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pixel160k.errors import InputError


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, with a stable digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(
        cls, file: str | Path | None = None, overrides: Iterable[str] = (), base: dict[str, Any] | None = None
    ) -> Self:
        """Read a YAML file, or start from `base` or the defaults, and apply `key=value` overrides.

        Nested keys are written with dots.

        Raises:
            InputError: one line that names the wrong key or value and what would be right.
        """
        values = copy.deepcopy(base) if base else {}
        if file is not None:
            try:
                values = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
            except (OSError, yaml.YAMLError) as error:
                raise InputError(f"cannot read the settings file {file}: {' '.join(str(error).split())}") from None
            if not isinstance(values, dict):
                raise InputError(f"{file} must hold `key: value` lines, not a {type(values).__name__}")
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals:
                raise InputError(f"--set takes key=value, not {override!r}")
            *parents, leaf = key.strip().split(".")
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})
                if not isinstance(place, dict):
                    raise InputError(f"setting {key!r}: {parent!r} holds a value, not further settings")
            place[leaf] = yaml.safe_load(text)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError("; ".join(cls._explain(fault) for fault in error.errors())) from None

    def digest(self) -> str:
        """SHA-256 (hex) of the settings' canonical JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def _explain(cls, fault: Any) -> str:
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
