"""RankE: policy and decoder co-evolution for discrete autoregressive text-to-image models (arXiv 2605.21195)."""
