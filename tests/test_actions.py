"""Chunks, statistics and scaling: OpenVLA's rules."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pixel160k.format.actions import action_chunk, chunk_mask, dataset_statistics, normalise, unnormalise

values = st.floats(-10, 10, width=32)


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
    actions, states = generator.normal(size=(500, 7)), generator.normal(size=(500, 8))
    statistics = dataset_statistics(actions, states, trajectories=9)
    assert set(statistics) == {"action", "proprio", "num_transitions", "num_trajectories"}
    assert set(statistics["action"]) == {"mean", "std", "max", "min", "q01", "q99", "mask"}
    assert statistics["action"]["mask"] == [True] * 6 + [False]
    assert (statistics["num_transitions"], statistics["num_trajectories"]) == (500, 9)
    np.testing.assert_allclose(statistics["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    np.testing.assert_allclose(statistics["proprio"]["std"], states.std(0))


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
