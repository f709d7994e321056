from __future__ import annotations

import copy
import pickle

from mllm_align.objectives import CoCa, InfoNCE, Symile


def test_options_by_place_by_name_and_by_default() -> None:
    options = InfoNCE("contrast_image", temperature=0.2).options
    assert (options["image"], options["text"], options["temperature"]) == ("contrast_image", "chosen", 0.2)
    assert "momentum=" not in InfoNCE().extra_repr()
    assert "momentum=0.0" in InfoNCE(momentum=0.0).extra_repr()


def test_what_is_handed_on_is_told_as_the_part_has_it() -> None:
    options = CoCa(caption_weight=3.0, text="caption", text_prompt="Say:").options
    assert list(options)[:3] == ["contrast_weight", "caption_weight", "layer"]
    assert (options["caption_weight"], options["layer"], options["text"]) == (3.0, 0.5, "caption")
    assert options["temperature"] == 0.07  # a default of the contrast
    assert Symile(third="sign", layer=2).options["layer"] == 2
    assert Symile().options["text"] == "caption"


def test_copies_tell_the_same() -> None:
    objective = InfoNCE.hcl(beta=0.5)
    for other in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert other.extra_repr() == objective.extra_repr()
        assert "beta=0.5" in other.extra_repr()
