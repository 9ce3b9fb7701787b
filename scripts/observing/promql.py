"""What a PromQL expression names."""

from dataclasses import dataclass

import promql_parser
from promql_parser import (
    AggregateExpr,
    BinaryExpr,
    Call,
    MatrixSelector,
    ParenExpr,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
)


@dataclass(frozen=True)
class Selector:
    """Series that an expression selects; `aggregation` is the nearest one around it."""

    name: str
    matchers: tuple  # of (label, operator, value)
    aggregation: str | None


def parse(expression):
    """Returns the expression's selectors, and the labels that it groups or joins by. Raises ValueError."""
    selectors, labels = [], set()

    def visit(node, aggregation):
        match node:
            case VectorSelector():
                matchers = ((m.name, str(m.op).removeprefix("MatchOp."), m.value) for m in node.matchers.matchers)
                selectors.append(Selector(node.name, tuple(matchers), aggregation))
            case MatrixSelector():
                visit(node.vector_selector, aggregation)
            case AggregateExpr():
                labels.update(node.modifier.labels if node.modifier else [])
                visit(node.expr, str(node.op))
            case BinaryExpr():
                modifier = node.modifier
                if modifier and modifier.matching:
                    labels.update(modifier.matching.labels)
                visit(node.lhs, aggregation)
                visit(node.rhs, aggregation)
            case Call():
                for argument in node.args:
                    visit(argument, aggregation)
            case ParenExpr() | UnaryExpr() | SubqueryExpr():
                visit(node.expr, aggregation)

    visit(promql_parser.parse(expression), None)
    return selectors, labels
