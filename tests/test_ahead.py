"""What is made ahead, and who waits for whom: the same items in the same order, little in memory, faults where they belong."""

import threading
import time
import traceback
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotate.ahead import ahead
from annotate.faults import LOGGER, tracebacks_to
from annotate.groups import batched, grouped


def running():
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_items_come_in_order_and_no_more_are_made_than_asked_for(count):
    made, far = [], []

    def items():
        for number in range(20):
            made.append(number)
            yield number

    for taken, number in enumerate(ahead(items(), count)):
        assert number == taken
        time.sleep(0.002)  # time enough to run too far ahead
        far.append(len(made) - taken - 1)
    assert max(far) == count and made == list(range(20)) and not running()


@pytest.mark.parametrize("count", [0, 2])
def test_an_exception_comes_after_the_items_before_it_with_its_traceback(count):
    def fails_here():
        raise OSError("the disk is gone")

    def items():
        yield 1
        yield 2
        fails_here()

    seen = []
    with pytest.raises(OSError, match="the disk is gone") as error:
        seen += [seen.append(item) for item in ahead(items(), count)]
    assert seen == [1, 2] and not running()
    assert "fails_here" in "".join(traceback.format_exception(error.value))


def test_the_thread_ends_with_whoever_asks():
    closed = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    with pytest.raises(ZeroDivisionError), closing(ahead(items(), 4)) as read:
        for _ in read:
            1 / 0  # noqa: B018
    assert not running()
    del read
    assert closed == [True]


def test_what_a_thread_logs_goes_to_the_log_of_its_work_alone(tmp_path):
    def items(name):
        for number in range(3):
            LOGGER.error("%s %d", name, number)
            yield number

    def work(name):
        with tracebacks_to(tmp_path / name):
            list(ahead(items(name), 1))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "other"):
        assert (tmp_path / name).read_text().splitlines() == [f"{name} {number}" for number in range(3)]


@given(keys=st.lists(st.sampled_from("abcdef"), max_size=60), size=st.integers(1, 5), waiting=st.integers(1, 12))
def test_each_item_is_in_one_group_of_its_key_and_few_wait(keys, size, waiting):
    taken, groups = [0], []

    def items():
        for place, key in enumerate(keys):
            taken[0] = place + 1
            yield key, place

    for group in grouped(items(), size, waiting):
        groups.append(group)
        assert len({keys[place] for place in group}) == 1 and len(group) <= size and group == sorted(group)
        assert taken[0] - sum(map(len, groups)) <= waiting
    assert sorted(place for group in groups for place in group) == list(range(len(keys)))
    if waiting >= len(keys):  # nothing has to go before its time
        assert all(len(group) == size for group in groups[: sum(keys.count(key) // size for key in set(keys))])


def test_the_group_goes_that_waits_for_the_longest_time():
    """Lone viewpoints pass by; those that come again and again fill their groups."""
    keys = [key for number in range(20) for key in (f"alone{number}", "often")]
    groups = list(grouped(((key, key) for key in keys), 8, 10))
    assert [len(group) for group in groups if group[0] == "often"] == [8, 8, 4]
    assert sum(len(group) == 1 for group in groups) == 20


@pytest.mark.parametrize("waiting", [10, 1000])
def test_lone_items_go_together_and_whole_groups_stay_their_own(waiting):
    """As Bridge's are: nearly every viewpoint comes once, some come often."""
    keys = [key for number in range(20) for key in (f"alone{number}", "often")] + ["pair", "pair"]
    groups = list(grouped(((key, key) for key in keys), 8, waiting, 4))
    assert [len(group) for group in groups if group[0] == "often"] == [8, 8, 4]
    others = [group for group in groups if group[0] != "often"]
    assert sorted(key for group in others for key in group) == sorted(key for key in keys if key != "often")
    assert all("often" not in group and len(group) <= 8 for group in others)
    assert all(len(group) >= 4 for group in others[:-1])


def test_groups_go_together_until_they_are_enough():
    groups = [[1] * size for size in (8, 1, 1, 8, 3)]
    assert [[len(group) for group in batch] for batch in batched(groups, 9)] == [[8, 1], [1, 8], [3]]
    assert [len(batch) for batch in batched(groups, 1)] == [1] * 5
