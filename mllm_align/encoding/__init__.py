"""Using a trained encoder: its files beside a model's, vectors of images and texts, sentence-transformers."""

from mllm_align.encoding.encoder import Encoded, Encoder, load_encoder
from mllm_align.encoding.files import KeptEmbedding, embedding_of, has_embedding, load_embedding, save_embedding
from mllm_align.encoding.sentence_transformers import export_sentence_transformers

__all__ = [
    "Encoded",
    "Encoder",
    "KeptEmbedding",
    "embedding_of",
    "export_sentence_transformers",
    "has_embedding",
    "load_embedding",
    "load_encoder",
    "save_embedding",
]
