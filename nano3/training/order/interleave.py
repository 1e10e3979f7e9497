"""Spread fixed numbers of samples of several datasets evenly over a stage, with a closed form in both directions.

The datasets are the leaves of a Huffman tree. At each node, of the first n samples that arrive there,
(n * left + total // 2) // total go to the left: Bresenham's line. So the number of samples of each dataset among the
first n of the stage is monotone in n, is exact at the end of the stage, and is close to the proportional number in
between: a rounding of at most 1/2 at each node, multiplied by the dataset's share of every node below it. With up to
three datasets the difference stays below 1, and below 2 with any number (tests/training/order/test_permutation.py).
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# Samples in a stage: products of two such numbers fit into 64 bits.
LARGEST_STAGE = (1 << 32) - 1


@dataclass(frozen=True)
class Node:
    """`count` samples, all of the dataset `name`, or of the datasets below `left` and `right`."""

    count: int
    name: str = ""
    left: "Node | None" = None
    right: "Node | None" = None


class Interleave:
    """Which dataset each sample of a stage comes from. `counts` are the samples of each dataset in the stage."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = {name: count for name, count in counts.items() if count}
        self.total = sum(self.counts.values())
        waiting = [(count, number, Node(count, name)) for number, (name, count) in enumerate(self.counts.items())]
        heapq.heapify(waiting)
        while len(waiting) > 1:
            (_, _, right), (_, number, left) = heapq.heappop(waiting), heapq.heappop(waiting)
            node = Node(left.count + right.count, left=left, right=right)
            heapq.heappush(waiting, (node.count, number, node))
        self.root = waiting[0][2] if waiting else Node(0)

    @cached_property
    def _paths(self) -> dict[str, list[tuple[int, int, bool]]]:
        """For each dataset, (samples of the node, samples of its left child, goes left) from the root down."""
        paths: dict[str, list[tuple[int, int, bool]]] = {}

        def walk(node: Node, path: list[tuple[int, int, bool]]) -> None:
            if node.left is None or node.right is None:
                paths[node.name] = path
                return
            walk(node.left, [*path, (node.count, node.left.count, True)])
            walk(node.right, [*path, (node.count, node.left.count, False)])

        walk(self.root, [])
        return paths

    def before(self, name: str, n: int) -> int:
        """Return how many of the first `n` samples of the stage are of a dataset."""
        return int(self.count_before(name, n))

    def count_before(self, name: str, n: Any) -> Any:
        """Return `before` of one number, or of a uint64 array of them."""
        if name not in self.counts:
            return n * 0
        for total, left, goes_left in self._paths[name]:
            to_left = (n * left + total // 2) // total
            n = to_left if goes_left else n - to_left
        return n

    def locate(self, n: int) -> tuple[str, int]:
        """Return the dataset of sample `n` of the stage, and how many of its samples come before."""
        node = self.root
        while (left := node.left) is not None and (right := node.right) is not None:
            total = node.count
            to_left = (n * left.count + total // 2) // total
            goes_left = ((n + 1) * left.count + total // 2) // total > to_left
            node, n = (left, to_left) if goes_left else (right, n - to_left)
        return node.name, n

    def sample_of(self, name: str, index: int) -> int:
        """Return the sample of the stage that is number `index` of its dataset: the inverse of `locate`."""
        for total, left, goes_left in reversed(self._paths[name]):
            half, right = total // 2, total - left
            if goes_left:
                index = -(-((index + 1) * total - half) // left) - 1
            else:
                index = (half + index * total) // right
        return index
