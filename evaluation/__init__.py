"""Measures annotations against the simulator's truth, and policies against demonstrated actions."""
