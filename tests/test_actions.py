"""Chunks, statistics and scaling: OpenVLA's rules."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pixel160k.format.actions import action_chunk, chunk_mask, normalise, unnormalise
from pixel160k.format.statistics import Transitions, dataset_statistics

values = st.floats(-10, 10, width=32)


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 12), st.data())
def test_chunk_and_its_mask(steps, horizon, data):
    last = data.draw(st.integers(0, steps - 1))
    step = data.draw(st.integers(0, last))
    actions = np.arange(steps * 7, dtype=np.float32).reshape(steps, 7) + 1
    chunk, real = action_chunk(actions, step, last, horizon), chunk_mask(step, last, horizon)
    assert chunk.shape == (horizon, 7) and chunk.dtype == np.float32
    np.testing.assert_array_equal(chunk[real], actions[step : min(step + horizon, last + 1)])
    assert not chunk[~real, :6].any()  # past the end the robot stands still
    assert (chunk[~real, 6] == actions[last, 6]).all()  # and the gripper stays as it was


def test_statistics_have_openvla_names_and_values():
    generator = np.random.default_rng(0)
    actions, states = (generator.normal(size=(500, width)).astype(np.float32) for width in (7, 8))
    statistics = dataset_statistics(actions, states, trajectories=9)
    assert set(statistics) == {"action", "proprio", "num_transitions", "num_trajectories"}
    assert set(statistics["action"]) == {"mean", "std", "max", "min", "q01", "q99", "mask"}
    assert statistics["action"]["mask"] == [True] * 6 + [False]
    assert (statistics["num_transitions"], statistics["num_trajectories"]) == (500, 9)
    np.testing.assert_allclose(statistics["action"]["q99"], np.quantile(actions.astype(np.float64), 0.99, axis=0))
    np.testing.assert_allclose(statistics["proprio"]["std"], states.std(0, np.float64))


def steps_like(generator, steps):
    """Actions (steps, 7) as data sets have them: noise, one that never varies, whole numbers, tiny ones, both zeros, 0 and 1."""
    noise = generator.normal(size=(steps, 7))
    noise[:, 1], noise[:, 2], noise[:, 3] = 0.25, noise[:, 2].round(), 1e-30 * noise[:, 3]
    noise[:, 4], noise[:, 6] = noise[:, 4].clip(-0.1, 0) * 0, noise[:, 6] > 1
    return noise.astype(np.float32)


@pytest.mark.parametrize("steps", [1, 2, 3, 100, 101, 129, 1000, 4097, 30_011])
def test_statistics_are_numpys_to_the_last_bit_however_they_come(steps, monkeypatch):
    """As of all steps in one array, in whatever pieces they were added, and whatever part of a column is read at once."""
    monkeypatch.setattr("pixel160k.format.statistics._BLOCK", 256)
    actions = steps_like(np.random.default_rng(steps), steps)
    cuts = np.sort(np.random.default_rng(steps).integers(0, steps, 5))
    with Transitions() as transitions:
        for piece in np.split(actions, cuts):
            transitions.add(piece, 1000 * piece[:, :3])
        found = transitions.statistics(1)
    for part, values in (("action", actions), ("proprio", 1000 * actions[:, :3])):
        for dimension, column in enumerate(values.T):
            whole = column.astype(np.float64)
            expected = [whole.mean(), whole.std(), whole.max(), whole.min(), *np.quantile(whole, (0.01, 0.99))]
            names = ("mean", "std", "max", "min", "q01", "q99")
            assert [found[part][name][dimension] for name in names] == expected, f"{part} {dimension}"


def test_statistics_of_many_steps_take_no_memory():
    """300,000 steps are 18 MB, and a column of them in float64 2.4 MB."""
    with Transitions() as transitions:
        for seed in range(30):
            actions = steps_like(np.random.default_rng(seed), 10_000)
            transitions.add(actions, np.ones((10_000, 2), np.float32))
        transitions.statistics(1)  # what is imported on the way
        tracemalloc.start()
        transitions.statistics(1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 << 20, peak


@settings(deadline=None)
@given(hnp.arrays(np.float32, (20, 7), elements=values))
def test_scaling_is_openvlas_and_inverts_within_the_quantiles(actions):
    actions[:, 3] = 0.25  # a dimension that never varies
    statistics = dataset_statistics(actions, actions, 1)
    scaled = normalise(actions, statistics)
    low, high = np.array(statistics["action"]["q01"]), np.array(statistics["action"]["q99"])
    expected = np.clip(2 * (actions - low) / (high - low + 1e-8) - 1, -1, 1)
    varies = np.ptp(actions, axis=0) > 0
    np.testing.assert_allclose(scaled[:, :6], np.where(varies, expected, 0)[:, :6], atol=1e-6)
    np.testing.assert_array_equal(scaled[:, 6], actions[:, 6])
    inside = (actions >= low) & (actions <= high) & (high - low > 1e-2)
    np.testing.assert_allclose(unnormalise(scaled, statistics)[inside], actions[inside], atol=1e-4)
