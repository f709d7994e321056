"""One benchmark per file: its questions as items, its readings, its metrics. A further one is a row of the table."""

from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.amber import AMBER
from mllm_align_eval.benchmarks.aro import ARO
from mllm_align_eval.benchmarks.chair import CHAIR
from mllm_align_eval.benchmarks.cvbench import CVBENCH
from mllm_align_eval.benchmarks.docvqa import DOCVQA
from mllm_align_eval.benchmarks.hallusion import HALLUSION
from mllm_align_eval.benchmarks.infovqa import INFOVQA
from mllm_align_eval.benchmarks.mmhal import MMHAL
from mllm_align_eval.benchmarks.mmvm import MMVM
from mllm_align_eval.benchmarks.mmvp import MMVP
from mllm_align_eval.benchmarks.mmvp_vlm import MMVP_VLM
from mllm_align_eval.benchmarks.objhal import OBJHAL
from mllm_align_eval.benchmarks.own import OWN
from mllm_align_eval.benchmarks.pope import POPE
from mllm_align_eval.benchmarks.popev2 import POPEV2
from mllm_align_eval.benchmarks.realworldqa import REALWORLDQA
from mllm_align_eval.benchmarks.retrieval import COCO_RETRIEVAL, FLICKR30K
from mllm_align_eval.benchmarks.scienceqa import SCIENCEQA
from mllm_align_eval.benchmarks.sugarcrepe import SUGARCREPE, SUGARCREPE_CAPTIONS
from mllm_align_eval.benchmarks.sugarcrepe_pp import SUGARCREPE_PP
from mllm_align_eval.benchmarks.textvqa import TEXTVQA
from mllm_align_eval.benchmarks.winoground import WINOGROUND
from mllm_align_eval.benchmarks.world import validation_items, world_items
from mllm_align_eval.benchmarks.world_correspondence import WORLD_CORRESPONDENCE
from mllm_align_eval.benchmarks.world_documents import WORLD_DOCUMENTS
from mllm_align_eval.benchmarks.world_retrieval import WORLD_NEGATIVES, WORLD_RETRIEVAL
from mllm_align_eval.benchmarks.world_sugarcrepe_pp import WORLD_SUGARCREPE_PP
from mllm_align_eval.benchmarks.world_winoground import WORLD_WINOGROUND
from mllm_align_eval.benchmarks.world_zero_shot import WORLD_ZERO_SHOT
from mllm_align_eval.benchmarks.zero_shot import ZERO_SHOT

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        AMBER,
        ARO,
        CHAIR,
        COCO_RETRIEVAL,
        CVBENCH,
        DOCVQA,
        FLICKR30K,
        HALLUSION,
        INFOVQA,
        MMHAL,
        MMVM,
        MMVP,
        MMVP_VLM,
        OBJHAL,
        OWN,
        POPE,
        POPEV2,
        REALWORLDQA,
        SCIENCEQA,
        SUGARCREPE,
        SUGARCREPE_CAPTIONS,
        SUGARCREPE_PP,
        TEXTVQA,
        WINOGROUND,
        WORLD_CORRESPONDENCE,
        WORLD_DOCUMENTS,
        WORLD_NEGATIVES,
        WORLD_RETRIEVAL,
        WORLD_SUGARCREPE_PP,
        WORLD_WINOGROUND,
        WORLD_ZERO_SHOT,
        ZERO_SHOT,
    )
}

__all__ = ["BENCHMARKS", "validation_items", "world_items"]
