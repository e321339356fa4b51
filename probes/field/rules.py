"""The table of all rules: name of an operator -> what its outputs depend on."""

from collections.abc import Sequence

from probes.field import (
    rules_indexing,
    rules_layout,
    rules_pointwise,
    rules_reductions,
    rules_windows,
)
from probes.field.intervals import Field
from probes.field.operation import Operation, Rule

RULES: dict[str, Rule] = {
    **rules_pointwise.RULES,
    **rules_windows.RULES,
    **rules_layout.RULES,
    **rules_reductions.RULES,
    **rules_indexing.RULES,
}


def fields_of(op: Operation) -> list[Field | None]:
    """Apply the rule: what each output of ``op`` depends on, None for no input."""
    rule = RULES.get(op.base)
    if rule is None:
        rule = rules_pointwise.pointwise if rules_pointwise.is_pointwise(op) else unknown
    fields = list(rule(op))
    return fields * len(op.outs) if len(fields) == 1 else fields


def unknown(op: Operation) -> Sequence[Field | None]:
    """Let everything depend on everything, and say that there is no rule."""
    return op.whole("an operator without a rule", known=False)
