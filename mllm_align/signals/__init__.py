"""From a batch to small tensors: vision once, prefixes once, the head only where a response is scored."""

from mllm_align.signals.cached_reference import CachedReference
from mllm_align.signals.feature_cache import FeatureCache
from mllm_align.signals.measure import measure
from mllm_align.signals.options import EngineOptions
from mllm_align.signals.reference import AdaptersOff, FrozenCopy, NamedAdapter, Reference
from mllm_align.signals.replay import Replay

__all__ = [
    "AdaptersOff",
    "CachedReference",
    "EngineOptions",
    "FeatureCache",
    "FrozenCopy",
    "NamedAdapter",
    "Reference",
    "Replay",
    "measure",
]
