"""Items that a thread makes ahead: their order, the position, errors."""

import threading

import pytest

from hypelora_jax.data.iterator import ReadAhead


def test_items_come_in_order_and_end():
    items = ReadAhead(20, lambda i: i * i, ahead=3)
    assert [next(items) for _ in range(20)] == [i * i for i in range(20)]
    with pytest.raises(StopIteration):
        next(items)


def test_at_most_so_many_items_are_made_ahead_in_another_thread():
    made, threads = [], set()

    def make(i: int) -> int:
        made.append(i)
        threads.add(threading.current_thread())
        return i

    items = ReadAhead(100, make, ahead=4)
    items.get_state()
    assert made == [], "nothing is made before the first item is asked for"
    next(items)
    items._futures[-1].result()  # waits for the thread
    assert made == [0, 1, 2, 3, 4]
    assert threading.main_thread() not in threads and len(threads) == 1


def test_the_position_moves_forwards_and_backwards():
    items = ReadAhead(10, lambda i: i)
    assert [next(items) for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    assert items.get_state() == {"next_index": 6}
    items.set_state({"next_index": 2})
    assert next(items) == 2
    items.set_state({"next_index": 9})
    assert next(items) == 9
    with pytest.raises(StopIteration):
        next(items)


def test_an_error_is_raised_by_the_item_that_has_it():
    def make(i: int) -> int:
        if i == 2:
            raise ValueError("item 2 is broken")
        return i

    items = ReadAhead(5, make)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="item 2 is broken"):
        next(items)
