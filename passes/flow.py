"""Maximum flow and minimum cut: which values to keep of those between where they are made and read."""

from __future__ import annotations

from collections import deque

INFINITE = 1 << 60


class Flow:
    """Maximum flow by Dinic's algorithm (E. A. Dinic, 1970): blocking flows in layered networks, without
    recursion."""

    def __init__(self) -> None:
        self.adjacent: list[list[int]] = []  # per node the edges that leave it; edge e and e ^ 1 are reverses
        self.heads: list[int] = []
        self.room: list[int] = []

    def node(self) -> int:
        self.adjacent.append([])
        return len(self.adjacent) - 1

    def edge(self, a: int, b: int, capacity: int) -> int:
        e = len(self.heads)
        self.heads += [b, a]
        self.room += [capacity, 0]
        self.adjacent[a].append(e)
        self.adjacent[b].append(e + 1)
        return e

    def tail(self, e: int) -> int:
        return self.heads[e ^ 1]

    def sink_side(self, source: int, sink: int) -> set[int]:
        """Saturate the network; the nodes from which the sink can still be reached."""
        while (level := self._levels(source, sink)) is not None:
            self._block(source, sink, level)
        seen, queue = {sink}, deque([sink])
        while queue:
            n = queue.popleft()
            for e in self.adjacent[n]:
                m = self.heads[e]
                if m not in seen and self.room[e ^ 1] > 0:
                    seen.add(m)
                    queue.append(m)
        return seen

    def _levels(self, source: int, sink: int) -> list[int] | None:
        """Distances from the source in the residual network; None when the sink is out of reach."""
        level = [-1] * len(self.adjacent)
        level[source] = 0
        queue = deque([source])
        while queue:
            n = queue.popleft()
            for e in self.adjacent[n]:
                m = self.heads[e]
                if level[m] < 0 and self.room[e] > 0:
                    level[m] = level[n] + 1
                    queue.append(m)
        return level if level[sink] >= 0 else None

    def _block(self, source: int, sink: int, level: list[int]) -> None:
        """Push flow along shortest paths until each of them has a full edge."""
        following = [0] * len(self.adjacent)
        path: list[int] = []
        n = source
        while True:
            if n == sink:
                pushed = min(self.room[e] for e in path)
                for e in path:
                    self.room[e] -= pushed
                    self.room[e ^ 1] += pushed
                path.clear()
                n = source
                continue
            edges = self.adjacent[n]
            while following[n] < len(edges):
                e = edges[following[n]]
                if self.room[e] > 0 and level[self.heads[e]] == level[n] + 1:
                    break
                following[n] += 1
            else:
                if n == source:
                    return
                e = path.pop()
                n = self.tail(e)
                following[n] += 1
                continue
            path.append(e)
            n = self.heads[e]
