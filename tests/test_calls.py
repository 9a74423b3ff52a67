import numpy as np
import pytest

from unicoord_atlas.calls import Caller, CallRule, ParentShares
from unicoord_atlas.errors import UsageError
from unicoord_atlas.schema import LabelColumn

TYPES = LabelColumn(name="cell_type", categories=("CD4 T", "CD8 T", "Mono"), counts=(1, 1, 1))
CLASSES = LabelColumn(name="cell_class", categories=("Lymphoid", "Myeloid"), counts=(1, 1))
SHARES = ParentShares(parent="cell_class", child="cell_type", shares=((1, 0), (1, 0), (0, 1)))
PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.45, 0.45, 0.1], [0.3, 0.25, 0.45], [0.0, 0.0, 1.0]], np.float32)


def named(caller: Caller, calls: np.ndarray, levels: np.ndarray) -> list[tuple[str, str]]:
    return [(caller.categories[call], caller.levels[level]) for call, level in zip(calls, levels, strict=True)]


def test_a_call_backs_off_to_the_parent_and_then_to_nothing():
    caller = Caller([TYPES, CLASSES], [SHARES], "cell_type", CallRule(min_confidence=0.6, max_novelty_p=0))
    assert named(caller, *caller.call(PROBABILITIES, None)) == [
        ("CD4 T", "cell_type"),
        ("Lymphoid", "cell_class"),
        ("unassigned", "unsure"),
        ("Mono", "cell_type"),
    ]


def test_a_strange_cell_is_not_called_however_sure():
    caller = Caller([TYPES, CLASSES], [SHARES], "cell_type", CallRule(min_confidence=0.6, max_novelty_p=0.01))
    p_values = np.array([0.5, 0.5, 0.005, 0.005], np.float32)
    assert named(caller, *caller.call(PROBABILITIES, p_values))[2:] == [("unassigned", "novel")] * 2


def test_a_label_without_a_parent_is_called_or_not():
    caller = Caller([TYPES, CLASSES], [SHARES], "cell_class", CallRule(0.6))
    assert caller.levels == ("cell_class", "unsure", "novel")
    assert named(caller, *caller.call(np.array([[0.5, 0.5]], np.float32), None)) == [("unassigned", "unsure")]


@pytest.mark.parametrize("rule", [(1.5, 0.01), (0.5, -1.0)])
def test_a_rule_outside_probabilities_is_refused(rule):
    with pytest.raises(UsageError, match="between 0 and 1"):
        CallRule(*rule)


def test_a_class_called_unassigned_leaves_the_others_alone():
    label = LabelColumn(name="cell_type", categories=("B", "unassigned", "vascular"), counts=(1, 1, 1))
    caller = Caller([label], [], "cell_type", CallRule(min_confidence=0.6, max_novelty_p=0))
    unsure = np.array([[0.4, 0.3, 0.3], [0.1, 0.1, 0.8]], np.float32)
    assert named(caller, *caller.call(unsure, None)) == [("unassigned", "unsure"), ("vascular", "cell_type")]
