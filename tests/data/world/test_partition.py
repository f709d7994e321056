"""Parts by content."""

from collections import Counter

import pytest

from mllm_align.data.world.partition import PARTS, check_part, part_of


def test_every_content_has_one_part_and_the_parts_their_shares():
    found = [part_of([4, number]) for number in range(4000)]
    assert found == [part_of([4, number]) for number in range(4000)]
    counts = Counter(found)
    assert [counts[part] / 4000 for part in PARTS] == pytest.approx([0.5, 0.2, 0.3], abs=0.03)


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="unknown split 'pairs'; there are train, validation, test"):
        check_part("pairs")
