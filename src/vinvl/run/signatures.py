"""What a `_target_` takes, read from its source: importing takes seconds, and a misspelt key is to be told at once."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef | ast.Assign | ast.AnnAssign
BUILDERS = ("build",)  # class methods whose class decides about options


class FoundDefinition(NamedTuple):
    """A definition, and the module whose names it uses."""

    module: str
    node: Definition


def parameters_of(name: str) -> dict[str, Any] | None:
    """The parameters of what a dotted name stands for, with what they are annotated as; None if it takes any.

    What a constructor passes on as `**options` is what the class that it extends takes. None also where the source
    does not tell; then calling it will.
    """
    found = definition(name)
    if found is None:
        return None
    if isinstance(found.node, ast.ClassDef):
        return _of_class(found)
    return None if not isinstance(found.node, Function) else _of_functions([found], bound=_is_method(found.node))


def optional_parameters_of_class(name: str) -> set[str]:
    """Of a class's constructor, or that of the class whose `build` is named, the parameters that have defaults."""
    owner, _, last = name.rpartition(".")
    found = definition(owner if last in BUILDERS else name)
    if found is not None and _is_dataclass(found.node):
        return {one.target.id for one in _declared(found) if isinstance(one.target, ast.Name) and one.value is not None}
    constructor = None if found is None else _constructor(found)
    if constructor is None or not isinstance(constructor.node, Function):
        return set()
    return {one.arg for one, has_default in _arguments(constructor.node) if has_default}


def attributes_of(name: str) -> set[str]:
    """The names of a class's settings: what its body, its properties and its constructor name, and those it extends."""
    found, names = definition(name), set[str]()
    for one in [] if found is None else _lineage(found):
        assert isinstance(one.node, ast.ClassDef)
        for statement in one.node.body:
            names |= {target.id for target in _targets(statement) if isinstance(target, ast.Name)}
            if isinstance(statement, Function) and any(_last(one) == "property" for one in statement.decorator_list):
                names.add(statement.name)
            if isinstance(statement, Function) and statement.name in ("__init__", "__post_init__"):
                names |= {argument.arg for argument, _ in _arguments(statement)[1:]}
                names |= {
                    target.attr
                    for inner in ast.walk(statement)
                    for target in _targets(inner)
                    if isinstance(target, ast.Attribute)
                }
    return {one for one in names if not one.startswith("_")}


# Where a name is defined.


def definition(name: str) -> FoundDefinition | None:
    """The definition that a dotted name such as "pytorch_lightning.Trainer" leads to, through imports of it."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:depth])
        if _file_of(module) is None:
            continue
        found = _in_module(module, parts[depth])
        for inner in parts[depth + 1 :]:
            found = None if found is None else _in_class(found, inner)
        return found
    return None


@cache
def _file_of(module: str) -> Path | None:
    """The file of a module; nothing of its packages is imported."""
    first, *rest = module.split(".")
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *rest)
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return path
    return None


@cache
def _names(module: str) -> dict[str, Definition | tuple[str, str]]:
    """What a module's own statements define; what they import as (module, name)."""
    path, names = _file_of(module), dict[str, Definition | tuple[str, str]]()
    try:
        tree = ast.parse("" if path is None else path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return {}
    package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    for statement in _statements(tree.body):
        if isinstance(statement, Function | ast.ClassDef):
            names[statement.name] = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            names |= {target.id: statement for target in _targets(statement) if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
            source = ".".join([*above, *([statement.module] if statement.module else [])])
            names |= {one.asname or one.name: (source, one.name) for one in statement.names}
        elif isinstance(statement, ast.Import):
            names |= {one.asname or one.name.partition(".")[0]: (one.name, "") for one in statement.names}
    return names


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, also below `if TYPE_CHECKING:` and `try:`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements([*statement.body, *statement.orelse])


def _in_module(module: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> FoundDefinition | None:
    found = _names(module).get(name)
    if isinstance(found, tuple):
        source, original = found
        if (source, original) in seen or not original:
            return None
        return _in_module(source, original, seen | {(source, original)})
    return None if found is None else FoundDefinition(module, found)


def _in_class(found: FoundDefinition, name: str) -> FoundDefinition | None:
    if not isinstance(found.node, ast.ClassDef):
        return None
    for one in _lineage(found):
        assert isinstance(one.node, ast.ClassDef)
        for statement in one.node.body:
            if isinstance(statement, Function) and statement.name == name:
                return FoundDefinition(one.module, statement)
    return None


def _lineage(found: FoundDefinition) -> Iterator[FoundDefinition]:
    """A class and those that it extends, as far as their sources are there, the nearest first."""
    yield found
    for base in found.node.bases if isinstance(found.node, ast.ClassDef) else ():
        extended = _named(found.module, base)
        if extended is not None and isinstance(extended.node, ast.ClassDef):
            yield from _lineage(extended)


def _named(module: str, expression: ast.expr) -> FoundDefinition | None:
    """What a name or a dotted name in a module stands for."""
    if isinstance(expression, ast.Subscript):
        return _named(module, expression.value)
    written = ast.unparse(expression)
    first, _, rest = written.partition(".")
    imported = _names(module).get(first)
    if rest and isinstance(imported, tuple):
        return definition(".".join(filter(None, [*imported, rest])))
    return _in_module(module, written)


# What it takes.


def _of_class(found: FoundDefinition) -> dict[str, Any] | None:
    own = list(_lineage(found))
    making = next((one for one in own if _is_dataclass(one.node) or _own_constructor(one) is not None), None)
    if making is not None and _is_dataclass(making.node):
        fields = [one for each in reversed(own) for one in _fields(each)]
        return {name: _annotation(module, written) for module, name, written in fields}
    return _of_functions([one for each in own for one in [_own_constructor(each)] if one is not None], bound=True)


def _of_functions(functions: Sequence[FoundDefinition], *, bound: bool) -> dict[str, Any] | None:
    """The parameters of a function, and as long as each passes on what it does not name, of those after it."""
    names: dict[str, Any] = {}
    for found in functions:
        assert isinstance(found.node, Function)
        for argument, _ in _arguments(found.node)[bound:]:
            names.setdefault(argument.arg, _annotation(found.module, argument.annotation))
        others = found.node.args.kwarg
        if others is None:
            return names
        if isinstance(others.annotation, ast.Subscript) and _last(others.annotation.value) == "Unpack":
            fields = _named(found.module, others.annotation.slice)
            for each in [] if fields is None else _lineage(fields):
                names |= {name: _annotation(module, written) for module, name, written in _fields(each)}
            return names
    return None


def _arguments(function: Function) -> list[tuple[ast.arg, bool]]:
    """The named parameters of a function, and whether each has a default."""
    told = function.args
    plain = [*told.posonlyargs, *told.args]
    without = len(plain) - len(told.defaults)
    found = [(one, place >= without) for place, one in enumerate(plain)]
    return found + [(one, default is not None) for one, default in zip(told.kwonlyargs, told.kw_defaults, strict=True)]


def _own_constructor(found: FoundDefinition) -> FoundDefinition | None:
    assert isinstance(found.node, ast.ClassDef)
    own = [one for one in found.node.body if isinstance(one, Function) and one.name == "__init__"]
    return FoundDefinition(found.module, own[0]) if own else None


def _constructor(found: FoundDefinition) -> FoundDefinition | None:
    if not isinstance(found.node, ast.ClassDef):
        return None
    return next((one for each in _lineage(found) if (one := _own_constructor(each)) is not None), None)


def _fields(found: FoundDefinition) -> list[tuple[str, str, ast.expr]]:
    """(module, name, annotation) of what the body of a class declares."""
    kept = _declared(found)
    return [(found.module, one.target.id, one.annotation) for one in kept if isinstance(one.target, ast.Name)]


def _declared(found: FoundDefinition) -> list[ast.AnnAssign]:
    """The declarations in the body of a class that its constructor takes, where it is a dataclass."""
    assert isinstance(found.node, ast.ClassDef)
    declared = [one for one in found.node.body if isinstance(one, ast.AnnAssign)]
    return [
        one
        for one in declared
        if "ClassVar" not in ast.unparse(one.annotation)
        and not (one.value is not None and "init=False" in ast.unparse(one.value))
    ]


def _is_method(function: Function) -> bool:
    """Whether its first parameter is not the caller's to give."""
    first = [one.arg for one, _ in _arguments(function)[:1]]
    return first in (["self"], ["cls"])


def _is_dataclass(node: Definition) -> bool:
    return isinstance(node, ast.ClassDef) and any(_last(one) == "dataclass" for one in node.decorator_list)


def _targets(statement: ast.AST) -> list[ast.expr]:
    if isinstance(statement, ast.AnnAssign):
        return [statement.target]
    return list(statement.targets) if isinstance(statement, ast.Assign) else []


def _last(expression: ast.expr) -> str:
    """The last part of a dotted name, called or not."""
    inner = expression.func if isinstance(expression, ast.Call) else expression
    return inner.attr if isinstance(inner, ast.Attribute) else inner.id if isinstance(inner, ast.Name) else ""


# What annotations mean.


class _Scope(Mapping[str, Any]):
    """The names of a module as annotations use them; whatever is neither of Python nor its alias is an empty class."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __getitem__(self, name: str) -> Any:
        own = _names(self.module).get(name)
        if own is None and hasattr(builtins, name):
            return getattr(builtins, name)
        if isinstance(own, tuple) and own[0].partition(".")[0] in sys.stdlib_module_names:
            module = import_module(own[0])
            return getattr(module, own[1], Any) if own[1] else module
        found = _in_module(self.module, name)
        if found is None:
            return Any
        if isinstance(found.node, ast.ClassDef):
            protocol = any(_last(base) == "Protocol" for base in found.node.bases)
            return Any if protocol else type(name, (), {})
        value = found.node.value if isinstance(found.node, ast.Assign | ast.AnnAssign) else None
        return _annotation(found.module, value)

    def __iter__(self) -> Iterator[str]:
        return iter(_names(self.module))

    def __len__(self) -> int:
        return len(_names(self.module))


def _annotation(module: str, written: ast.expr | None) -> Any:
    """What an annotation means, Any where it cannot be told."""
    if isinstance(written, ast.Constant) and isinstance(written.value, str):
        written = ast.parse(written.value, mode="eval").body
    if isinstance(written, ast.Subscript) and _last(written.value) in ("Annotated", "Required", "NotRequired"):
        inner = written.slice.elts[0] if isinstance(written.slice, ast.Tuple) else written.slice
        return _annotation(module, inner)
    if written is None or any(isinstance(one, ast.Call | ast.Lambda) for one in ast.walk(written)):
        return Any
    try:
        return eval(compile(ast.Expression(written), module, "eval"), {"__builtins__": {}}, _Scope(module))
    except Exception:  # an annotation that only a type checker can resolve
        return Any
