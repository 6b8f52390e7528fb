"""Janus-Pro (arXiv 2501.17811): names in its files, for those too that start without torch."""

from rank_e.io.manifest import Format

FORMAT = Format("janus", "run `rank-e convert janus`")
TEXT_EMBEDDING = "language_model.embed_tokens.weight"
"""The frozen text embedding's name beside the policy's own weights."""
