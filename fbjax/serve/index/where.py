"""Filters of a search, such as ``colour == "Blue" and price < 50``, checked and put into Milvus' words.

The grammar is that of Python's comparisons. What is not a comparison of a field with a value is refused, so that a
filter reaches no other part of the database.
"""

import ast
from collections.abc import Mapping
from typing import Literal

from fbjax.core.registry import meant

Kind = Literal["text", "number"]
MAX_LENGTH, MAX_PARTS, MAX_DEPTH = 2000, 300, 20  # characters; parts of the tree, and how deep it is
LARGEST = 1e300
ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
COMPARISONS: dict[type, str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
FORM = 'compare fields with values, such as colour == "Blue" and price < 50, or colour in ["Blue", "Red"]'


def milvus_filter(where: str, fields: Mapping[str, Kind]) -> str:
    """`where` as a filter of Milvus, "" for a blank one. Raises ValueError with the remedy for anything else."""
    if not where.strip():
        return ""
    if len(where) > MAX_LENGTH:
        raise ValueError(f"the filter has {len(where):,} characters: use at most {MAX_LENGTH:,}")
    try:
        tree = ast.parse(where.strip(), mode="eval").body
        if sum(1 for _ in ast.walk(tree)) > MAX_PARTS:
            raise ValueError(f"the filter has more than {MAX_PARTS} parts: use fewer comparisons")
        if _depth(tree) > MAX_DEPTH:
            raise ValueError(f"the filter has more than {MAX_DEPTH} brackets or nots inside each other: use fewer")
        return _translated(tree, fields)
    except (SyntaxError, UnicodeEncodeError, RecursionError, MemoryError):
        raise ValueError(f"filter {where!r} cannot be read: {FORM}") from None


def differs(field: str, value: str) -> str:
    """The filter of Milvus for products whose text field has another value."""
    return f"{field} != {_text(value)}"


def both(*filters: str) -> str:
    """The filter of Milvus for products that meet all of `filters`; blank ones are met by every product."""
    return " and ".join(f"({part})" for part in filters if part)


def _depth(node: ast.AST) -> int:
    return 1 + max(map(_depth, ast.iter_child_nodes(node)), default=0)


def _translated(node: ast.expr, fields: Mapping[str, Kind]) -> str:
    match node:
        case ast.BoolOp(op=op, values=values):
            word = " and " if isinstance(op, ast.And) else " or "
            return word.join(f"({_translated(value, fields)})" for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return f"not ({_translated(operand, fields)})"
        case ast.Compare(left=ast.Name(id=field), ops=[op], comparators=[value]) if type(op) in COMPARISONS:
            return _comparison(field, COMPARISONS[type(op)], value, fields)
    raise ValueError(f"filter {ast.unparse(node)!r} is no comparison: {FORM}")


def _comparison(field: str, operator: str, node: ast.expr, fields: Mapping[str, Kind]) -> str:
    if field not in fields:
        raise ValueError(f"the index has no field {field!r} among {', '.join(fields)}{meant(field, fields)}")
    if operator not in ("in", "not in"):
        return f"{field} {operator} {_value(node, field, fields[field])}"
    if not isinstance(node, ast.List | ast.Tuple) or not node.elts:
        raise ValueError(f'filter {field} {operator} {ast.unparse(node)}: give a list, such as ["Blue", "Red"]')
    return f"{field} {operator} [{', '.join(_value(value, field, fields[field]) for value in node.elts)}]"


def _value(node: ast.expr, field: str, kind: Kind) -> str:
    sign = ""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node, sign = node.operand, "-"
    match node, kind:
        case ast.Constant(value=str(value)), "text" if not sign:
            value.encode()  # half a surrogate pair is no text
            return _text(value)
        case ast.Constant(value=int(value) | float(value)), "number" if _is_number(value):
            return f"{sign}{float(value)!r}"
    wanted = "a number" if kind == "number" else 'text in quotes, such as "Blue"'
    raise ValueError(f"filter: {field} holds {kind}s, not {ast.unparse(node)}; compare it with {wanted}")


def _is_number(value: float) -> bool:
    return not isinstance(value, bool) and abs(value) < LARGEST


def _text(value: str) -> str:
    """In quotes, with the escapes that Milvus knows. Others are left as they are: JSON's are more."""
    return '"' + value.translate(ESCAPES) + '"'
