"""Commands about answers that any model gave, and your own benchmarks: eval questions, score, poll, pairs, tasks."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from mllm_align.cli.commands import add_command

# Written out, because to import the benchmarks takes seconds; a test compares.
NAMES = (
    "amber, aro, chair, coco_retrieval, cvbench, docvqa, flickr30k, hallusion, infovqa, mmhal, mmvm, mmvp, "
    "mmvp_vlm, objhal, own, pope, popev2, realworldqa, scienceqa, sugarcrepe, sugarcrepe_captions, "
    "sugarcrepe_pp, textvqa, winoground, world_correspondence, world_documents, world_negatives, "
    "world_retrieval, world_sugarcrepe_pp, world_winoground, world_zero_shot, zero_shot"
)
PARSERS = ("strict", "official", "lmms-eval", "vlmevalkit", "cambrian", "s-vco")
LOST = 3  # exit status with --fail-on-lost
DATA_HELP = (
    "folder with the benchmark's annotations, folder that holds it by the benchmark's name (default: "
    "$MLLM_ALIGN_DATA), one file of them, or hub"
)


def add(evaluation: Any) -> None:
    """Adds `eval questions`, `eval score`, `eval poll`, `eval pairs` and `eval tasks`."""
    text = "print a benchmark's questions as JSON lines, for any model: id, split, image, prompt"
    questions = add_command(evaluation, "questions", _questions, text)
    score = add_command(evaluation, "score", _score, "score answers that any model gave; none is loaded")
    for command in (questions, score):
        command.add_argument("benchmark", metavar="BENCH", help=NAMES)
        command.add_argument("--data", help=DATA_HELP)
    text = (
        "JSON lines with the id of a question and the text it got, or scores of its choices; for retrieval also .npy"
    )
    given = score.add_mutually_exclusive_group(required=True)
    given.add_argument("--answers", metavar="FILE", help=text)
    text = (
        "a model whose similarities are the scores, for benchmarks of captions, classes and retrieval: CLIP- or "
        "SigLIP-like, a folder with embedding.json, or an LVLM"
    )
    given.add_argument("--dual-encoder", metavar="MODEL", help=text)
    score.add_argument("--images", metavar="FOLDER", help="of the pictures, for --dual-encoder")
    score.add_argument("--format", choices=("lmms-eval", "vlmevalkit"), help="the answers are a file of that harness")
    score.add_argument("--json", metavar="OUT", help="file for the scores: {key: {value, low, high, n}}")
    score.add_argument("--overwrite", action="store_true", help="replace that file")
    text = "whose rules hold (default: official, where there is one; strict for scores, of which a tie is wrong)"
    score.add_argument("--parser", choices=PARSERS, help=text)
    add_judge_options(score, "the answers' name + .judge.jsonl")
    add_fail_on_lost(score)

    text = "make POPE's polling questions from your own annotations"
    poll = add_command(evaluation, "poll", _poll, text)
    poll.add_argument("annotations", help="COCO instances (.json), or JSON lines of image and objects (.jsonl)")
    poll.add_argument("--output", required=True, help="folder; the questions go to pope/ in it")
    poll.add_argument("--num-images", type=int, default=500, help="how many are drawn (default: %(default)s)")
    text = "objects asked about with yes, and as many with no (default: %(default)s, as POPE)"
    poll.add_argument("--per-image", type=int, default=3, help=text)
    poll.add_argument("--seed", type=int, default=0)
    text = "make MMVP-style questions from pairs that `data counterfactual` made"
    pairs = add_command(evaluation, "pairs", _pairs, text)
    pairs.add_argument("rows", help="a file, a folder, a dataset on the Hub, or world:pairs")
    pairs.add_argument("--output", required=True, help="folder; questions and pictures go to mmvp/ in it")
    pairs.add_argument("--split")
    pairs.add_argument("--seed", type=int, default=0)
    text = "write closed questions as tasks of lmms-eval, for its --include_path"
    tasks = add_command(evaluation, "tasks", _tasks, text)
    tasks.add_argument("benchmark", metavar="BENCH", help=f"world, {NAMES}")
    tasks.add_argument("--output", required=True, help="folder for the tasks; missing or empty")
    tasks.add_argument("--data", help=DATA_HELP)
    tasks.add_argument("--num-scenes", type=int, default=300, help="of the rendered world (default: %(default)s)")
    tasks.add_argument("--seed", type=int, default=0, help="of the rendered world")


def _poll(arguments: argparse.Namespace) -> None:
    from mllm_align_eval.polling import read_objects, write_polls

    images = read_objects(Path(arguments.annotations))
    settings = {"num_images": arguments.num_images, "per_image": arguments.per_image, "seed": arguments.seed}
    for path in write_polls(images, Path(arguments.output) / "pope", **settings):
        print(f"wrote {path}")
    print(
        f"next: mllm-align eval run MODEL --benchmark pope --data {shlex.quote(arguments.output)} --images FOLDER "
        f"--output OUT, with the folder that holds {images[0].image}"
    )


def _pairs(arguments: argparse.Namespace) -> None:
    from mllm_align.data.loading import load_rows
    from mllm_align_eval.mined_pairs import write_mined_pairs

    folder = Path(arguments.output) / "mmvp"
    count = write_mined_pairs(load_rows(arguments.rows, arguments.split), folder, seed=arguments.seed)
    print(f"wrote {count} pairs to {folder}; evaluate them with --data {folder.parent} --images {folder / 'images'}")


def _tasks(arguments: argparse.Namespace) -> None:
    from mllm_align_eval.benchmarks.world import world_items
    from mllm_align_eval.lmms_bridge.tasks import write_tasks
    from mllm_align_eval.run import benchmark_items

    if arguments.benchmark == "world":
        count = arguments.num_scenes
        items = world_items(count, count, count, seed=arguments.seed)
    else:
        items = benchmark_items(known(arguments.benchmark), arguments.data)
    group, *names = write_tasks(items, arguments.output)
    print("\n".join(names))
    print(f"next: python -m lmms_eval --include_path {shlex.quote(arguments.output)} --tasks {group} --model ...")


def _questions(arguments: argparse.Namespace) -> None:
    import json

    from mllm_align_eval.run import benchmark_items
    from mllm_align_eval.scoring import questions_of

    for question in questions_of(benchmark_items(known(arguments.benchmark), arguments.data)):
        print(json.dumps(question, ensure_ascii=False))


def _score(arguments: argparse.Namespace) -> None:
    from mllm_align_eval.answer_file import read_answers
    from mllm_align_eval.benchmarks import BENCHMARKS
    from mllm_align_eval.benchmarks.locating import folder_beside
    from mllm_align_eval.encoders import encoder_of
    from mllm_align_eval.importing import import_texts
    from mllm_align_eval.report.scores import print_lost, print_scores, write_scores
    from mllm_align_eval.run import benchmark_items
    from mllm_align_eval.scoring import answered_splits, estimates, measures_of, reading_of_answers
    from mllm_align_eval.similarity import check_scored_by_rows, similarity_rows

    benchmark = BENCHMARKS[known(arguments.benchmark)]
    parser = arguments.parser or benchmark.default_parser
    benchmark.reading(parser)
    if arguments.json is not None and Path(arguments.json).exists() and not arguments.overwrite:
        raise FileExistsError(f"{arguments.json} exists: name another file, or --overwrite")
    if arguments.dual_encoder is None and arguments.images is not None:
        raise ValueError("--images is for --dual-encoder: answers are scored without the pictures")
    if arguments.dual_encoder is not None and arguments.format is not None:
        raise ValueError("--format is of a file of answers: leave it out beside --dual-encoder")
    images = arguments.images
    if arguments.dual_encoder is not None and images is None and benchmark.pictures_beside:
        images = str(folder_beside(arguments.data, benchmark))
    items = benchmark_items(benchmark.name, arguments.data, images)
    if arguments.dual_encoder is not None:
        check_scored_by_rows(items)
        if images is None and arguments.data != "hub" and not benchmark.is_rendered:
            raise ValueError(images_missing(benchmark.name))
        given: Any = similarity_rows(encoder_of(arguments.dual_encoder), items)
    elif arguments.format is not None:
        given = import_texts(Path(arguments.answers), arguments.format, benchmark.name, items)
    else:
        given = read_answers(arguments.answers, items)
    items, left = answered_splits(items, given)
    if left:
        print(f"nothing was answered of {', '.join(left)}: not scored", file=sys.stderr)
    judge = judge_of(arguments, f"{arguments.answers}.judge.jsonl")
    scores = estimates(measures_of(benchmark, items, given, parser, judge))
    if arguments.json is not None:
        write_scores(scores, Path(arguments.json), judge.card() if judge is not None else None)
    print_scores(scores, f"{benchmark.title}, {parser} rules" + (f", {judge.caption()}" if judge is not None else ""))
    lost = print_lost(reading_of_answers(benchmark, items, given), Path(arguments.answers or "").name, parser)
    if lost and arguments.fail_on_lost:
        raise SystemExit(LOST)


def add_fail_on_lost(command: argparse.ArgumentParser) -> None:
    """The option that makes lost answers a failure."""
    text = "exit with status 3 where more than 2 %% of the written answers could not be read or were cut"
    command.add_argument("--fail-on-lost", action="store_true", help=text)


def add_judge_options(command: argparse.ArgumentParser, cache: str) -> None:
    """The options that name a judge; `cache` says where its replies are kept by default."""
    command.add_argument(
        "--judge", metavar="URL|MODEL", help="a chat endpoint's address, or a chat model, that judges"
    )
    command.add_argument("--judge-model", metavar="NAME", help="what the endpoint calls the judge")
    command.add_argument("--judge-runs", type=int, default=1, metavar="N", help="times each is judged (default: 1)")
    command.add_argument("--judge-cache", metavar="FILE", help=f"its replies (default: {cache})")
    command.add_argument("--key-env", metavar="NAME", help="environment variable with the endpoint's key")


def judge_of(arguments: argparse.Namespace, cache: str) -> Any:
    """The judge that the options name, or None."""
    from mllm_align_eval.judge import load_judge

    if arguments.judge is None:
        return None
    kept = arguments.judge_cache or cache
    return load_judge(arguments.judge, arguments.judge_model, arguments.key_env, kept, arguments.judge_runs)


def images_missing(name: str) -> str:
    """What to say where a benchmark's pictures are needed and no folder was named."""
    from mllm_align_eval.benchmarks import BENCHMARKS

    benchmark = BENCHMARKS[name]
    hub = ", or take the copy on the Hub with --data hub" if benchmark.hub else ""
    return (
        f"--images is missing: {name} needs its pictures. Get them ({benchmark.image_origin}), put them into a folder "
        f"and name it with --images FOLDER{hub}"
    )


def known(name: str, *further: str) -> str:
    """The name of a benchmark.

    Raises:
        ValueError: If there is no such one.
    """
    from mllm_align_eval.benchmarks import BENCHMARKS

    if name not in (*BENCHMARKS, *further):
        raise ValueError(f"no benchmark is called {name!r}; there are {', '.join((*further, *BENCHMARKS))}")
    return name
