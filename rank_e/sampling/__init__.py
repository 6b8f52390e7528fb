"""Sampling from a policy and scoring under the sampled distribution; here what is known of both without torch."""

LOGITS_AT_ONCE = 1 << 25
"""Logits that scoring computes at a time: 128 MiB of float32, a few times that with what the filters make of them."""


def positions_at_once(rows: int, vocab: int) -> int:
    """Of how many positions (>= 1) the logits of `rows` rows over `vocab` tokens are computed at a time."""
    return max(1, LOGITS_AT_ONCE // (rows * vocab))
