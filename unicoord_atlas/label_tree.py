"""Trees of labels from files: who is whose parent, in three forms.

A CSV with the columns `father` and `child` (uHAF's form; an empty father makes a root), or the Cell Ontology as JSON,
perhaps zstd-compressed, whose terms have ids, labels and synonyms: CELLxGENE's, where a term names its ancestors, or
OBO Foundry's cl.json, a graph of nodes and edges.  A child may have several parents.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numcodecs.zstd

from .errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class LabelTree:
    """Nodes with their parents; checked when it is made: no cycle, no parent that is no node."""

    where: str
    """What errors name."""
    parents: Mapping[str, tuple[str, ...]]
    """Of every node; a root has none."""
    node_of: Mapping[str, str]
    """The node of every name that labels may use."""
    title_of: Mapping[str, str]
    """What a node is called where it becomes a category."""

    def __post_init__(self) -> None:
        for node, parents in self.parents.items():
            for parent in parents:
                if parent not in self.parents:
                    raise DataError(
                        f"{self.where}: {node!r} is an orphan: its father {parent!r} is nowhere a child; "
                        "add a line for it, with an empty father if it is a root"
                    )
        self._refuse_cycle()

    @cached_property
    def with_many_parents(self) -> tuple[str, ...]:
        """Nodes with more than one parent: they contribute to each."""
        return tuple(node for node, parents in self.parents.items() if len(parents) > 1)

    def find(self, label: str, column: str) -> str:
        """The node of a label, by any of its names, in any case; DataError names one that is not in the tree."""
        node = self.node_of.get(label, self.node_of.get(label.lower()))
        if node is None:
            close = difflib.get_close_matches(label, self.node_of, 3)
            hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
            raise DataError(
                f"{self.where}: label {label!r} of {column!r} is not in the tree{hint}; "
                "rename it with ingest --label-map, or call it unlabelled with ingest --unlabelled"
            )
        return node

    def ancestors(self, nodes: Collection[str]) -> set[str]:
        """The nodes and all above them."""
        found: set[str] = set()
        left = list(nodes)
        while left:
            node = left.pop()
            if node not in found:
                found.add(node)
                left += self.parents[node]
        return found

    def shares(
        self, node: str, among: Collection[str], known: dict[str, dict[str, float]] | None = None
    ) -> dict[str, float]:
        """How much of a node belongs to each of some nodes: to itself, or to the nearest above, even over parents.

        `known` keeps what was found on the way, for other nodes and the same `among`.
        """
        known = {} if known is None else known
        if node in among:
            return {node: 1.0}
        if node not in known:
            total: dict[str, float] = {}
            parts = [part for parent in self.parents[node] if (part := self.shares(parent, among, known))]
            for part in parts:
                for name, share in part.items():
                    total[name] = total.get(name, 0.0) + share / len(parts)
            known[node] = total
        return known[node]

    def _refuse_cycle(self) -> None:
        """Take away nodes without parents until none is left; what cannot be taken away holds a cycle."""
        waiting = {node: len(parents) for node, parents in self.parents.items()}
        children: dict[str, list[str]] = {}
        for node, parents in self.parents.items():
            for parent in parents:
                children.setdefault(parent, []).append(node)
        free = [node for node, count in waiting.items() if not count]
        while free:
            node = free.pop()
            del waiting[node]
            for child in children.get(node, ()):
                waiting[child] -= 1
                if not waiting[child]:
                    free.append(child)
        if waiting:
            path = [next(iter(waiting))]
            while path[-1] not in path[:-1]:
                path.append(next(parent for parent in self.parents[path[-1]] if parent in waiting))
            cycle = path[path.index(path[-1]) :]
            raise DataError(f"{self.where}: a cycle: {' < '.join(map(repr, cycle))}; take out one of its lines")


def read_tree(path: Path) -> LabelTree:
    """Read any of the forms; DataError names the file, the line or the term."""
    try:
        raw = path.read_bytes()
        if raw.startswith(_ZSTD):
            raw = bytes(numcodecs.zstd.Zstd().decode(raw))
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read as a tree of labels ({error})") from error
    return _ontology(text, path) if text.lstrip().startswith("{") else _fathers_and_children(text, path)


def _fathers_and_children(text: str, path: Path) -> LabelTree:
    reader = csv.DictReader(io.StringIO(text))
    columns = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
    if "father" not in columns or "child" not in columns:
        raise DataError(
            f"{path}: neither the Cell Ontology as JSON nor a CSV with the columns father and child; "
            f"its first line is {text.splitlines()[0][:80] if text else ''!r}"
        )
    parents: dict[str, list[str]] = {}
    for row in _rows(reader, path):
        father, child = ((row[columns[name]] or "").strip() for name in ("father", "child"))
        if not child:
            raise DataError(f"{path}, line {reader.line_num}: no child")
        known = parents.setdefault(child, [])
        if father and father not in known:
            known.append(father)
    return _tree(path, {node: tuple(fathers) for node, fathers in parents.items()}, {node: [node] for node in parents})


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + 1}: {error}") from error


def _ontology(text: str, path: Path) -> LabelTree:
    try:
        found: Any = json.loads(text)
        terms: dict[str, dict[str, Any]] = _terms_of_graphs(found["graphs"]) if "graphs" in found else found
        kept = {term: facts for term, facts in terms.items() if not facts.get("deprecated", False)}
        parents = {
            term: tuple(above for above, distance in facts["ancestors"].items() if distance == 1)
            for term, facts in kept.items()
        }
        names = {term: [term, str(facts["label"]), *facts.get("synonyms", ())] for term, facts in kept.items()}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: a term has no label or ancestors ({error}); is it the Cell Ontology?") from error
    return _tree(path, parents, names, {term: facts["label"] for term, facts in kept.items()})


def _terms_of_graphs(graphs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """OBO Foundry's nodes and edges in the other form: its .../CL_0000236 is CL:0000236; classes in use are kept."""
    terms: dict[str, dict[str, Any]] = {}
    for node in (node for graph in graphs for node in graph.get("nodes", ())):
        facts = node.get("meta", {})
        if "lbl" in node and node.get("type", "CLASS") == "CLASS" and not facts.get("deprecated", False):
            synonyms = [known["val"] for known in facts.get("synonyms", ()) if known["pred"] == "hasExactSynonym"]
            terms[_term(node["id"])] = {"label": node["lbl"], "ancestors": {}, "synonyms": synonyms}
    for edge in (edge for graph in graphs for edge in graph.get("edges", ())):
        child, parent = _term(edge["sub"]), _term(edge["obj"])
        if edge["pred"] == "is_a" and child in terms and parent in terms:
            terms[child]["ancestors"][parent] = 1
    return terms


def _term(address: str) -> str:
    return address.rpartition("/")[2].replace("_", ":", 1)


def _tree(
    path: Path,
    parents: Mapping[str, tuple[str, ...]],
    names: Mapping[str, list[str]],
    titles: Mapping[str, str] | None = None,
) -> LabelTree:
    """A node's own name goes before its label, and this before synonyms, which several terms may share."""
    node_of: dict[str, str] = {}
    for rank in (slice(0, 1), slice(1, 2), slice(2, None)):
        for node, known in names.items():
            for name in known[rank]:
                node_of.setdefault(name, node)
    for name, node in list(node_of.items()):
        node_of.setdefault(name.lower(), node)
    return LabelTree(str(path), parents, node_of, titles or {node: node for node in parents})
