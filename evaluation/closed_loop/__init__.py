"""Policies that act: LIBERO in closed loop, by the protocol that everyone reports."""
