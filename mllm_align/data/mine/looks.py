"""Pictures that are the same to the eye: saved again, in another size, or mirrored.

An encoder would find more, and call pictures the same that are not; here two pictures are alike only if 64 patches of
them have the same mean colours. Of a photograph that is saved as JPEG of quality 30, or halved, none is more than 3 of
255 off; one object of a twentieth of its width makes it 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.spatial import KDTree

SIDE = 8
TOLERANCE = 5  # of 255, in every patch and colour
AT_ONCE = 1024  # looks whose neighbours are in memory


def look_of(image: Image.Image) -> bytes:
    """The mean colours of 8 x 8 patches of an RGB image."""
    return image.resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()


def alike(looks: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Places of two looks of pictures that are the same to the eye, or mirror images; a pair may come twice.

    Args:
        looks: What `look_of` gave, each once.
    """
    if not looks:
        return
    patches = np.frombuffer(b"".join(looks), np.uint8).reshape(-1, SIDE, SIDE, 3).astype(np.int16)
    tree = KDTree(_coarse(patches))
    for start in range(0, len(patches), AT_ONCE):
        for asked in (patches[start : start + AT_ONCE], patches[start : start + AT_ONCE, :, ::-1]):
            # No mean of patches is further off than the patches are.
            near = tree.query_ball_point(_coarse(asked), TOLERANCE + 1e-6, p=np.inf, return_sorted=True)
            for place, others in enumerate(near):
                later = np.array([other for other in others if other > start + place], dtype=np.int64)
                differences = np.abs(patches[later] - asked[place]).max((1, 2, 3), initial=0)
                yield from ((start + place, int(other)) for other in later[differences <= TOLERANCE])


def are_alike(first: Image.Image, second: Image.Image) -> bool:
    """Whether two RGB images are the same picture to the eye."""
    looks = sorted({look_of(first), look_of(second)})
    return len(looks) == 1 or any(alike(looks))


def _coarse(patches: np.ndarray) -> np.ndarray:
    """(N, 12): the mean colours of the quarters."""
    half = SIDE // 2
    return patches.reshape(-1, 2, half, 2, half, 3).mean((2, 4)).reshape(-1, 12)
