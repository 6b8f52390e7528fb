"""LlamaGen text-to-image (arXiv 2406.06525)."""
