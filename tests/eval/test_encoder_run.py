"""Encoders compared: paired statistics by hand, ties in the report, and the command with models of every sort."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval_encoders import Constant, Drawn, Told
from eval_items import item
from mllm_align.cli import main
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.sugarcrepe_pp import SUGARCREPE_PP
from mllm_align_eval.benchmarks.world_retrieval import negative_items, pool_items
from mllm_align_eval.encoder_run import compare_encoders
from mllm_align_eval.similarity import similarity_rows
from mllm_align_eval.statistics import mcnemar_exact, paired_difference


@pytest.fixture(scope="module")
def asked():
    return [*pool_items(48), *negative_items(6)]


def better(items):
    """Right about four pictures of five, and of the rest as good as chance."""
    drawn, owner = Drawn(32), {each.prompt: each.cluster for each in items if not each.is_closed and each.prompt}
    known = sorted(owner.values())[: len(owner) * 4 // 5]
    return Told(
        lambda picture: drawn.vector(picture.name.encode()),
        lambda text: drawn.vector((owner[text] if owner.get(text) in known else text).encode()),
    )


def test_arms_are_paired(asked, tmp_path):
    arms = {"before": Drawn(32, 1), "after": better(asked)}
    results = compare_encoders({name: lambda each=each: each for name, each in arms.items()}, asked, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["primary"] == results["primary"]
    texts = [each for each in asked if each.split == "text_to_image"]
    right = {}
    for name, encoder in arms.items():
        rows = similarity_rows(encoder, asked)
        right[name] = [float(np.argmax(rows[each.id]) == each.truth["targets"][0]) for each in texts]
    key = "world_retrieval/text_to_image/r1"
    assert results["arms"]["after"][key]["value"] == np.mean(right["after"]) > np.mean(right["before"])
    expected = paired_difference(right["after"], right["before"], [each.cluster for each in texts])
    found = results["differences"]["after-before"][key]
    assert (found["value"], found["low"], found["high"]) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert found["excludes_zero"]
    assert set(results["primary"]["after-before"]) == {"world_retrieval/r_mean", "world_negatives/acc_mean8"}
    assert results["primary"]["after-before"]["world_retrieval/r_mean"]["p_holm"] < 0.01
    first = [each for each in asked if each.split == "swap_object" and each.kind == "caption"]
    hits = []
    for encoder in (arms["after"], arms["before"]):
        rows = similarity_rows(encoder, asked)
        hits.append([rows[each.id][0] > rows[each.id][1] for each in first])
    only_after, only_before, p = mcnemar_exact(*hits)
    assert results["mcnemar"]["after-before"]["world_negatives/swap_object/acc"] == {
        "only_first": only_after,
        "only_second": only_before,
        "p": p,
    }
    # Nothing is read off a similarity as off a probability.
    assert not any("pmi" in key or "per_byte" in key or "ece" in key for key in results["arms"]["after"])
    report = (tmp_path / "report.md").read_text()
    assert "These scores compare the cosines of embeddings; nothing was written." in report
    assert "log-probab" not in report
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_ties_of_a_collapsed_encoder_are_reported(asked, tmp_path):
    encoders = {"base": Drawn, "collapsed": Constant}
    results = compare_encoders(encoders, asked, tmp_path)
    cells = results["arms"]["collapsed"]
    assert cells["world_retrieval/r_mean"]["value"] == cells["world_negatives/acc_mean8"]["value"] == 0
    report = (tmp_path / "report.md").read_text()
    assert "Ties, which count as wrong: Rendered retrieval 96 of 96, Rendered hard negatives 96 of 96." in report


def test_texts_against_texts(tmp_path):
    row = {"filename": "a.jpg", "caption": "a cat", "caption2": "one cat", "negative_caption": "a dog"}
    (tmp_path / "swap_obj.json").write_text(json.dumps([row]))
    items = [each for each in SUGARCREPE_PP.read(tmp_path, PictureFolder(None, "")) if not each.pictures]
    results = compare_encoders({"one": Drawn, "two": lambda: Drawn(seed=1)}, items, tmp_path / "out")
    assert "sugarcrepe_pp/swap_obj/tot_acc" in results["arms"]["two"]


def test_what_is_refused(asked, tmp_path):
    with pytest.raises(ValueError, match="there is no encoder to score"):
        compare_encoders({}, asked, tmp_path)
    with pytest.raises(ValueError, match="'q' is no question that a dual encoder can answer"):
        compare_encoders({"a": Drawn}, [item("q")], tmp_path)
    (tmp_path / "report.md").touch()
    with pytest.raises(FileExistsError, match=r"report\.md exists: name another folder, or --overwrite"):
        compare_encoders({"a": Drawn}, asked, tmp_path)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mllm_align_eval.encoders.encoder_of", lambda name, **_: Drawn(seed=len(name)))
    command = ["eval", "encoders", "before=a", "after=bc", "--benchmark", "world_retrieval"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "before: Ties, which count as wrong: Rendered retrieval 0 of 512." in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["model"] == {"encoders": {"before": "a", "after": "bc"}}
    assert main([*command, "--dimensions", "4", "--output", str(tmp_path / "cut")]) == 0
    cut = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert cut["model"]["dimensions"] == 4
    assert cut["arms"]["before"] != results["arms"]["before"]
    assert main([*command, "--dimensions", "400", "--output", str(tmp_path / "more")]) == 2
    assert "vectors have 16 numbers: 400 of them cannot be kept" in capsys.readouterr().err
    assert main([*command[:-1], "pope", "--output", str(tmp_path / "pope")]) == 2
    assert "pope is not answered by similarities" in capsys.readouterr().err
    assert main(["eval", "encoders", "x/a", "y/a", "--output", str(tmp_path / "no")]) == 2
    assert "x/a and y/a would both be called 'a'" in capsys.readouterr().err
