"""A trained policy behind the protocols that others speak."""
