"""What else a run does between its stages, wherever `pipeline.dvc` reproduces them."""

from collections.abc import Sequence

from pipeline.graph import Node


class Between:
    """Called around DVC's work; it raises nothing."""

    options: tuple[str, ...] = ()
    """More of `dvc repro`."""

    def before(self, nodes: Sequence[Node]) -> None:
        """Called with the nodes that a process of DVC is about to reproduce."""

    def after(self, node: Node) -> None:
        """Called when a node has ended well."""


BETWEEN: list[Between] = []
"""What is done while this process's nodes are reproduced."""
