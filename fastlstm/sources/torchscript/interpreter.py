"""Follow the code of an archive, in a run of its forward on the arrays of a builder.

The code is interpreted, not run: an expression is one of the few kinds that torch prints, a call
one of a function of the archive, of a method of its objects, of an operator of the table of ATen or
of those on numbers and lists. How many steps that takes, and how deep calls go, is bounded.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import SizeError, Value
from fastlstm.sources.aten import OPERATORS, Aten
from fastlstm.sources.aten.dtypes import code_of
from fastlstm.sources.aten.forward import Endless
from fastlstm.sources.aten.table import Size, is_array
from fastlstm.sources.torchscript.archive import ScriptObject
from fastlstm.sources.torchscript.builtins import ANYTHING, CONTAINERS, NUMBERS, Record
from fastlstm.sources.torchscript.code import Code, Function, Statement

__all__ = ["Interpreter"]

MAX_STEPS = 300_000
MAX_CALLS = 50  # of functions within functions
_NUMBER = int | float  # and bool


class _Named:
    """A dotted name that is no variable: of a function, a class, or an operator."""

    def __init__(self, path: str) -> None:
        self.path = path


class _Bound:
    """A method of an object."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name


class _Returned(Exception):  # noqa: N818  (it is no error)
    """A return that is not the last statement of its function."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Interpreter:
    """One run of the code.

    Parameters
    ----------
    code : Code
    constants : sequence
        What the code names ``CONSTANTS.c0`` and on.
    aten : Aten
        The operators, and the builder that they drive.
    paths : mapping of int to str
        By the id of an object, where it is in the module that was saved.
    """

    def __init__(
        self, code: Code, constants: Sequence[Any], aten: Aten, paths: Mapping[int, str]
    ) -> None:
        self.code, self.constants, self.aten, self.paths = code, constants, aten, paths
        self.steps = self.calls = 0
        self._path = ""  # of the module whose code is followed
        self._compared: tuple[Any, Any] | None = None

    def call(self, function: Function, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """What a function of the archive returns."""
        local: dict[str, Any] = {}
        known = [name for name, _, _ in function.parameters]
        if len(args) > len(known) or not set(named) <= set(known[len(args) :]):
            raise ConvertError(f"{function.name!r:.200} is called with other arguments than it has")
        local.update(zip(known, args, strict=False))
        local.update(named)
        for name, _, default in function.parameters:
            if name not in local:
                if default is None:
                    raise ConvertError(f"{function.name!r:.200} is called without {name!r:.80}")
                local[name] = self.value(default, {})
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise ConvertError(f"calls of the code are nested more than {MAX_CALLS} deep")
        try:
            self.block(function.body, local)
        except _Returned as returned:
            return returned.value
        finally:
            self.calls -= 1
        return None

    def method(self, owner: ScriptObject, name: str, args: Sequence[Any], named: Any) -> Any:
        """What a method of an object returns; layers that it makes are called as the object is."""
        function = self.code.method(owner.type, name)
        if function is None:
            raise ConvertError(f"the archive has no code for {owner.type}.{name}"[:300])
        before, self._path = self._path, self.paths.get(id(owner), self._path)
        try:
            with self._named(self._path):
                return self.call(function, [owner, *args], named)
        finally:
            self._path = before

    def _named(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Layers that are made within are called so; of the whole module, by their operators."""
        if not name:
            return contextlib.nullcontext()
        return self.aten.builder.at(name, f"module {name!r:.200}")

    # Statements

    def block(self, statements: Sequence[Statement], local: dict[str, Any]) -> None:
        for one in statements:
            try:
                self.statement(one, local)
            except ConvertError as error:
                # The line that it happened in, and not those that called it.
                if not getattr(error, "line", ""):
                    error.args = (f"{error} (in the line {one.text.strip()[:160]!r})",)
                    error.line = one.text  # type: ignore[attr-defined]
                raise

    def statement(self, one: Statement, local: dict[str, Any]) -> None:
        self.step()
        match one.kind:
            case "if":
                if self.decided(one.node, local):
                    self.block(one.body, local)
                else:
                    self.block(one.orelse, local)
            case "while":
                while self.decided(one.node, local):
                    self.block(one.body, local)
            case "for":
                self.loop(one, local)
            case "with":
                self.value(one.node, local)
                self.block(one.body, local)
            case _:
                self.plain(one.node, local)

    def loop(self, one: Statement, local: dict[str, Any]) -> None:
        items = self.value(one.node, local)
        if not isinstance(items, range | list):
            raise ConvertError("a loop over something else than a range")
        for item in items:
            self.step()
            local[one.target] = item
            self.block(one.body, local)

    def decided(self, node: ast.AST, local: dict[str, Any]) -> bool:
        """Whether a condition holds, which may not depend on the input."""
        self._compared = None
        value = self.aten.current(self.value(node, local))
        if isinstance(value, Value):
            raise ConvertError(
                "what is computed depends on numbers of the input; expected the same operations "
                "for every input"
            )
        return bool(value)

    def plain(self, node: ast.AST, local: dict[str, Any]) -> None:
        match node:
            case ast.Assign(targets=[target], value=value):
                self.assign(target, self.value(value, local), local)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                local[name] = self.value(value, local)
            case ast.Expr(value=value):
                self.value(value, local)
            case ast.Return(value=value):
                raise _Returned(None if value is None else self.value(value, local))
            case ast.Pass():
                pass
            case _:
                raise ConvertError(f"a {type(node).__name__} of the code is not read")

    def assign(self, target: ast.expr, value: Any, local: dict[str, Any]) -> None:
        match target:
            case ast.Name(id=name):
                local[name] = value
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                items = self.aten.current(value) if is_array(value) else value
                if not isinstance(items, list | tuple) or len(items) != len(parts):
                    raise ConvertError(f"{len(parts)} values are taken of what has another number")
                for part, item in zip(parts, items, strict=True):
                    self.assign(part, item, local)
            case ast.Attribute(value=owner, attr=name):
                held = self.value(owner, local)
                if not isinstance(held, ScriptObject):
                    raise ConvertError(f"attribute {name!r:.80} of no object is set")
                held.fields[name] = value
            case _:
                raise ConvertError(f"a {type(target).__name__} of the code is not assigned to")

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Endless(f"the code takes more than {MAX_STEPS} steps")

    # Expressions

    def value(self, node: ast.AST, local: dict[str, Any]) -> Any:
        """What an expression gives."""
        self.step()
        match node:
            case ast.Constant(value=value):
                if value is not None and not isinstance(value, bool | int | float | str):
                    raise ConvertError(f"a constant of type {type(value).__name__} in the code")
                return value
            case ast.Name(id=name):
                return local[name] if name in local else _global(name)
            case ast.Attribute(value=owner, attr=name):
                return self.attribute(self.value(owner, local), name)
            case ast.Call():
                return self.called(node, local)
            case ast.Tuple(elts=items):
                return tuple([self.value(item, local) for item in items])
            case ast.List(elts=items):
                return [self.value(item, local) for item in items]
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {self.value(k, local): self.value(v, local) for k, v in pairs if k}
            case ast.Subscript(value=of, slice=at):
                return self.item(self.value(of, local), self.value(at, local))
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
        raise ConvertError(f"a {type(node).__name__} of the code is not read")

    def item(self, of: Any, at: Any) -> Any:
        if not isinstance(of, list | tuple | dict | str):
            raise ConvertError("an item is taken of what has none")
        try:
            return of[self.whole(at) if isinstance(at, np.ndarray) else at]
        except (IndexError, KeyError, TypeError):
            raise ConvertError(f"item {at!r:.80} of {len(of)} is taken") from None

    def attribute(self, owner: Any, name: str) -> Any:
        if isinstance(owner, _Named):
            if owner.path == "CONSTANTS":
                number = name.removeprefix("c")
                if not number.isdecimal() or int(number) >= len(self.constants):
                    raise ConvertError(f"the archive has no constant {name!r:.40}")
                return self.constants[int(number)]
            return _Named(f"{owner.path}.{name}")
        if isinstance(owner, ScriptObject):
            if name in owner.fields:
                return owner.fields[name]
            if owner.type in self.code:
                known = self.code.script_class(owner.type)
                if name in known.methods:
                    return _Bound(owner, name)
                if name in known.attributes and known.attributes[name][1] is not None:
                    return self.value(known.attributes[name][1], {})  # type: ignore[arg-type]
            raise ConvertError(f"an object of {owner.type!r:.200} has no {name!r:.80}")
        if isinstance(owner, Record) and name in owner.names:
            return owner[owner.names.index(name)]
        return _Bound(owner, name)

    # Calls

    def called(self, node: ast.Call, local: dict[str, Any]) -> Any:
        function = self.value(node.func, local)
        if isinstance(function, _Named) and function.path in _SPECIAL:
            return self.special(function.path, node, local)
        args = [self.value(arg, local) for arg in node.args]
        named = {k.arg: self.value(k.value, local) for k in node.keywords if k.arg}
        if isinstance(function, _Bound):
            if isinstance(function.owner, ScriptObject):
                return self.method(function.owner, function.name, args, named)
            if function.name == "tolist":
                return self.operator("tolist", [function.owner], {})
            raise ConvertError(
                f"method {function.name!r:.80} of no object of the archive is called"
            )
        if not isinstance(function, _Named):
            raise ConvertError("what is called is no function")
        path = function.path
        if path.startswith("torch."):
            return self.operator(path.removeprefix("torch."), args, named)
        if path.startswith("ops.prim."):
            return self.primitive(path.removeprefix("ops.prim."), args)
        if path.startswith("ops.aten."):
            return self.operator(path.removeprefix("ops.aten."), args, named)
        if path.startswith("ops."):
            raise ConvertError(f"{path.removeprefix('ops.'):.200}: an operator of an extension of "
                               f"torch is not supported")  # fmt: skip
        if self.code.is_class(path):
            return self.made(path, args, named)
        return self.call(self.code.function(path), args, named)

    def made(self, name: str, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """An object of a class of the archive."""
        known = self.code.script_class(name)
        if known.base == "NamedTuple":
            fields = tuple(known.attributes)
            values = dict(zip(fields, args, strict=False)) | dict(named)
            if len(values) != len(fields):
                raise ConvertError(f"a {name!r:.200} is made of {len(values)} values")
            return Record.of(fields, tuple(values[field] for field in fields))
        one = ScriptObject(name, {})
        if "__init__" in known.methods:
            self.method(one, "__init__", args, named)
        return one

    def special(self, name: str, node: ast.Call, local: dict[str, Any]) -> Any:
        """What looks like a call and is none, or is one of Python's own."""
        args = node.args
        if name in ("annotate", "unchecked_cast"):
            return self.annotated(ast.unparse(args[0]), self.value(args[1], local))
        if name == "uninitialized":
            return None
        if name == "isinstance":
            return _is(self.value(args[0], local), ast.unparse(args[1]))
        values = [self.value(arg, local) for arg in args]
        match name, values:
            case "getattr", [owner, str(field)]:
                return self.attribute(owner, field)
            case "setattr", [ScriptObject() as owner, str(field), value]:
                owner.fields[field] = value
                return None
            case "range", _:
                return range(*[self.whole(value) for value in values])
            case "int" | "float" | "bool", [value]:
                return self.annotated(name, value, cast=True)
            case "str", [value]:
                return f"{value!s:.1000}"
            case "hasattr", [ScriptObject() as owner, str(field)]:
                return field in owner.fields
        raise ConvertError(f"{name} of {len(values)} arguments is not read")

    def annotated(self, kind: str, value: Any, cast: bool = False) -> Any:
        """A value of a type; an array of one number, where a number is meant, is that number."""
        if kind not in ("int", "float", "bool"):
            return value
        if is_array(value):
            value = self.operator("item", [value], {})
            cast = True
        if not cast or value is None:
            return value
        try:
            return {"int": int, "float": float, "bool": bool}[kind](value)
        except (ValueError, TypeError, OverflowError) as error:
            raise ConvertError(f"{kind}: {error}") from None

    def whole(self, value: Any) -> int:
        number = self.annotated("int", value)
        if not isinstance(number, int):
            raise ConvertError(f"a {type(value).__name__} is taken as a whole number")
        return number

    def operator(self, name: str, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """An operator of ATen, or of numbers and lists, as the first argument tells."""
        first = args[0] if args else None
        others = (*args[1:], *named.values())
        function: Callable[..., Any] | None = ANYTHING.get(name)
        if function is None and isinstance(first, list | tuple | dict | str):
            function = CONTAINERS.get(name)
            # A list of arrays is no list to torch.stack, and "bti,oi->bto" no text to einsum.
            if name in OPERATORS and any(map(is_array, others)) and isinstance(first, str):
                function = None
        elif function is None and isinstance(first, _NUMBER) and not any(map(is_array, others)):
            function = NUMBERS.get(name)
            if isinstance(others[0] if others else None, list | str) and name == "mul":
                function = CONTAINERS["mul"]
        if function is None:
            with contextlib.nullcontext() if self._path else self.aten.builder.at(name):
                return self.aten(name, args, named)
        if name in ("ne", "eq"):
            self._compared = (first, others[0])
        try:
            made = function(*args, **named)
        except (TypeError, ValueError, ArithmeticError, IndexError, KeyError, AttributeError) as e:
            raise ConvertError(f"{name}: {e}") from None
        if isinstance(made, int) and not -(2**63) <= made < 2**63:
            raise ConvertError("a whole number of the code has more than 64 bits")
        return made

    def primitive(self, name: str, args: Sequence[Any]) -> Any:
        """An operator of the language itself."""
        first = self.aten.current(args[0]) if args else None
        match name:
            case "RaiseException":
                raise self.raised(args)
            case "dtype":
                return code_of(first)
            case "device" | "layout" | "type":
                return {"device": "cpu", "layout": None, "type": "cpu"}[name]
            case "requires_grad":
                return True
            case "is_cuda" | "is_nested" | "is_mkldnn" | "is_sparse" | "is_xpu":
                return False
            case "is_quantized" | "is_meta" | "is_mps" | "is_xla" | "is_vulkan" | "is_leaf":
                return False
            case "NumToTensor":
                return np.asarray(first, "f4" if isinstance(first, float) else None)
            case "data" | "unchecked_unwrap_optional" | "grad":
                return args[0]
            case "min" | "max":
                return self.operator(name, args, {})
            case "shape":
                return self.operator("size", args, {})
            case "Print" | "profile" | "BailOut":
                return None
            case "itemsize":
                return 4
            case "T":
                return self.operator("numpy_T", args, {})
            case "ndim":
                return self.operator("dim", args, {})
        raise ConvertError(f"prim.{name:.80} is not supported")

    def raised(self, args: Sequence[Any]) -> ConvertError:
        """The error that the code raises; of a size that contradicts a weight, which they are."""
        text = f"the model refuses this input: {args[0] if args else ''!s:.300}"
        if self._compared is not None:
            one, other = self._compared
            both = [list(x) if isinstance(x, list | tuple) else [x] for x in (one, other)]
            if len(both[0]) == len(both[1]):
                for a, b in zip(*both, strict=True):
                    if isinstance(a, int) and isinstance(b, int) and a != b:
                        # Of a size and a constant, the constant is what is needed; of two sizes,
                        # the one that is not known yet is the larger one.
                        a_is_got = a > b
                        if isinstance(a, Size) != isinstance(b, Size):
                            a_is_got = isinstance(a, Size)
                        return SizeError(text, *((a, b) if a_is_got else (b, a)))
        return ConvertError(text)


_SPECIAL = {
    *("annotate", "unchecked_cast", "uninitialized", "isinstance", "getattr", "setattr", "hasattr"),
    *("range", "int", "float", "bool", "str"),
}
_ROOTS = {"torch", "ops", "__torch__", "CONSTANTS"}


def _global(name: str) -> Any:
    """What a name means that is no variable."""
    if name in _ROOTS or name in _SPECIAL:
        return _Named(name)
    if name in ("inf", "nan"):
        return float(name)
    raise ConvertError(f"the code uses {name!r:.80} before it is set")


def _is(value: Any, kind: str) -> bool:
    """Whether a value is of a type, by its text."""
    plain = {"int": int, "float": float, "bool": bool, "str": str}
    kinds = [k.strip(" ()") for k in kind.split(",")]
    for one in kinds:
        if one in plain and type(value) is plain[one]:
            return True
        if one == "Tensor" and is_array(value):
            return True
        if one.startswith(("List", "list")) and isinstance(value, list):
            return True
        if one.startswith(("Tuple", "tuple")) and isinstance(value, tuple):
            return True
        if one.startswith(("Dict", "dict")) and isinstance(value, dict):
            return True
        if one in ("NoneType", "None") and value is None:
            return True
        if isinstance(value, ScriptObject) and value.type == one:
            return True
    return False
