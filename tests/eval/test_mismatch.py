import pytest

from eval_items import item
from mllm_align_eval.mismatch import other_images


def make(sizes, split="adversarial"):
    return [
        item(f"{split}{c}-{n}", cluster=f"{split}{c}", split=split)
        for c, size in enumerate(sizes)
        for n in range(size)
    ]


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (1, 2, 3), (5, 1, 1, 1, 1, 1), (3, 2, 1, 3), (2,) * 50])
def test_every_picture_once_and_never_of_the_own_cluster(sizes):
    items = make(sizes) + make((2, 2, 2), split="in_distribution")
    chosen = other_images(items)
    assert sorted(chosen) == list(range(len(items)))
    assert all(items[index].cluster != items[other].cluster for index, other in enumerate(chosen))
    assert all(items[index].split == items[other].split for index, other in enumerate(chosen))


def test_the_same_for_any_order_and_another_for_another_seed():
    items = make((1,) * 30)

    def by_id(order, seed=0):
        return {order[i].id: order[o].id for i, o in enumerate(other_images(order, seed))}

    assert by_id(items) == by_id(items[::-1])
    assert by_id(items) != by_id(items, seed=1)


def test_too_few_scenes():
    with pytest.raises(ValueError, match="3 of 5 items are about one scene"):
        other_images(make((3, 1, 1)))
