"""Janus-Pro (arXiv 2501.17811)."""
