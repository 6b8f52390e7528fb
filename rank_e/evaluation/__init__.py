"""How well a run does: metrics, the networks that they read images with, and benchmarks."""
