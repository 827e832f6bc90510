"""Random numbers that depend on names alone: the same on every machine, in every order, with any number of workers."""

import hashlib

import numpy as np


def seeded_generator(*seed_parts: object) -> np.random.Generator:
    """A random generator that the texts of these parts determine, such as an episode's id and a setting's seed."""
    digest = hashlib.sha256("/".join(map(str, seed_parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
