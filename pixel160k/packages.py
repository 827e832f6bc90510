"""Packages of this project's extras: whether they are installed, found out without importing them."""

from importlib.util import find_spec

from pixel160k.errors import InputError


def is_installed(package: str) -> bool:
    """Whether a top-level package can be imported. A folder of its name that holds no `__init__.py` does not count."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def require_packages(extra: str, *packages: str, otherwise: str = "") -> None:
    """Check that packages can be imported; none of them is.

    Args:
        extra: of `pixelvla`, which installs them.
        packages: the names that are imported.
        otherwise: how to do without them, for the message.

    Raises:
        InputError: one is missing; says what to install.
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        way_out = f"pip install 'pixelvla[{extra}]'" + (f", or {otherwise}" if otherwise else "")
        raise InputError(f"not installed: {', '.join(missing)}; {way_out}")
