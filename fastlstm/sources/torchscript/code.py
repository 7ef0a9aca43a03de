"""The text of the code in an archive, cut into functions and lines, and parsed a line at a time.

What torch prints (torch/csrc/jit/serialization/python_print.cpp) is a small part of Python: classes
of methods, and in these assignments, calls, ``if``, ``for``, ``while`` and ``return``. The text is
not trusted: how deep its brackets and blocks are nested, and what characters it is made of, is
checked before Python's parser sees a line of it.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.unpickle import Budget

__all__ = ["Code", "Function", "ScriptClass", "Statement"]

MAX_BRACKETS = 60
MAX_BLOCKS = 60
MAX_CHAIN = 60  # names, calls and indices that follow one another: a.b(c)[d]
MAX_NAMES = 100_000  # classes and functions of an archive

# Bytes that Python's parser takes for a character of a line, which it frees, and bytes of what it
# leaves for each of the signs that make a line more than one name; both measured of the worst lines
# that are let through, "a.b" and "[]" over and over.
PARSING_BYTES, SIGN_BYTES = 640, 540
SIGNS = ".,=([{\n"

# Neither ** nor not nor lambda: each could be nested without a bracket.
_TOKEN = re.compile(
    r"""(?P<space>[ \t]++)|(?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+"|'[^'\\]*+(?:\\.[^'\\]*+)*+')"""
    r"""|(?P<number>-?[0-9][0-9A-Za-z_.+]*+(?<=[0-9A-Za-z_.])|-?\.[0-9]++)|(?P<name>[^\W\d]\w*+)"""
    r"""|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<arrow>->)|(?P<dot>\.)|(?P<other>[,:=\n])"""
    r"""|(?P<minus>-)"""
)
_WORDS = frozenset({"lambda", "await", "yield", "async", "not", "and", "or", "is", "global",
                    "nonlocal", "import", "from", "try", "except", "del"})  # fmt: skip
_UNIT = re.compile(r"(class|def) +([^\W\d]\w*)")


@dataclass
class Statement:
    """A line, and the blocks below it.

    Parameters
    ----------
    text : str
        As it stands in the archive.
    node : ast.AST
        What it says: of ``if``, ``while`` and ``for``, the test or the range; else the statement.
    target : str
        The variable of a ``for``.
    body, orelse : list of Statement
    """

    text: str
    node: ast.AST
    kind: str
    target: str = ""
    body: list[Statement] = field(default_factory=list)
    orelse: list[Statement] = field(default_factory=list)


@dataclass(frozen=True)
class Function:
    """A function or method.

    Parameters
    ----------
    name : str
        Qualified.
    parameters : tuple of (str, str, default)
        The name, the text of the type, and the default of each: an expression, or None.
    body : list of Statement
    returns : str
        The text of the type of what it returns.
    """

    name: str
    parameters: tuple[tuple[str, str, ast.expr | None], ...]
    body: list[Statement]
    returns: str = ""


@dataclass(frozen=True)
class ScriptClass:
    """A class.

    Parameters
    ----------
    name : str
        Qualified.
    base : str
        ``"Module"``, ``"NamedTuple"``, ``"Enum"``, or "".
    attributes : dict of str to (str, expression or None)
        By name: the text of the type, and the value of a constant.
    methods : dict of str to str
        The text of each.
    """

    name: str
    base: str
    attributes: dict[str, tuple[str, ast.expr | None]]
    methods: dict[str, str]


class Code:
    """Classes and functions by their qualified names; each is parsed when it is first asked for.

    Parameters
    ----------
    texts : mapping of str to str
        By the qualified name of what a text defines, less the last part.
    budget : Budget
        Of memory, which parsing is charged to.
    """

    def __init__(self, texts: Mapping[str, str], budget: Budget) -> None:
        self._budget = budget
        self._units: dict[str, tuple[str, str]] = {}
        self._parsed: dict[str, ScriptClass | Function] = {}
        for module, text in texts.items():
            for kind, name, unit in _units(text):
                self._units[f"{module}.{name}"] = (kind, unit)
        if len(self._units) > MAX_NAMES:
            raise ConvertError(f"the archive defines more than {MAX_NAMES} classes and functions")

    def __contains__(self, name: str) -> bool:
        return name in self._units

    def is_class(self, name: str) -> bool:
        return self._units.get(name, ("",))[0] == "class"

    def function(self, name: str) -> Function:
        """A function that is no method."""
        if name not in self._parsed:
            if self._units.get(name, ("",))[0] != "def":
                raise ConvertError(f"the archive does not define {name!r:.200}")
            self._parsed[name] = self._function(name, self._units[name][1])
        made = self._parsed[name]
        assert isinstance(made, Function)
        return made

    def script_class(self, name: str) -> ScriptClass:
        """A class, with its methods still as text."""
        if name not in self._parsed:
            if not self.is_class(name):
                raise ConvertError(f"the archive does not define class {name!r:.200}")
            self._parsed[name] = self._class(name, self._units[name][1])
        made = self._parsed[name]
        assert isinstance(made, ScriptClass)
        return made

    def method(self, owner: str, name: str) -> Function | None:
        """A method of a class; None if it has none of that name."""
        full = f"{owner}.{name}"
        if full not in self._parsed:
            text = self.script_class(owner).methods.get(name)
            if text is None:
                return None
            self._parsed[full] = self._function(full, text)
        made = self._parsed[full]
        assert isinstance(made, Function)
        return made

    def _class(self, name: str, text: str) -> ScriptClass:
        head, _, body = text.partition("\n")
        base = re.search(r"\((\w*)\)", head)
        self._budget.charge(2 * len(text))
        methods: dict[str, str] = {}
        lines = body.split("\n")
        starts = [n for n, line in enumerate(lines) if line.startswith("  def ")]
        own = lines[: starts[0]] if starts else lines
        self._budget.charge(SIGN_BYTES * sum(sum(map(line.count, SIGNS)) + 1 for line in own))
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
            match = _UNIT.match(lines[start].strip())
            if match is not None:
                # A class of the archive has each method once, whatever another text calls it.
                methods.setdefault(match[2], "\n".join(lines[start:end]))
        attributes: dict[str, tuple[str, ast.expr | None]] = {}
        for line in own:
            if not line.strip():
                continue
            node = self._parse(_checked(line.strip()), "exec")
            match node:
                case ast.AnnAssign(target=ast.Name(id=key), annotation=kind, value=value):
                    attributes[key] = (ast.unparse(kind), value)
                case ast.Assign(
                    targets=[ast.Subscript(slice=ast.Constant(value=str(key)))], value=kind
                ):
                    attributes[key] = (ast.unparse(kind), None)
                case ast.Assign(targets=[ast.Name(id=key)], value=value):
                    attributes[key] = ("", value)
                case _:
                    raise ConvertError(
                        f"the code has a line that is not read: {line.strip()!r:.80}"
                    )
        return ScriptClass(name, base[1] if base else "", attributes, methods)

    def _function(self, name: str, text: str) -> Function:
        self._budget.charge(SIGN_BYTES * sum(map(text.count, SIGNS)) + 2 * len(text))
        lines = list(_logical(text))
        head = self._parse(f"{lines[0][1]} pass", "exec")
        if not isinstance(head, ast.FunctionDef):
            raise ConvertError(f"the code has no function where {name!r:.200} is to be")
        arguments = head.args
        if arguments.vararg or arguments.kwarg or arguments.posonlyargs:
            raise ConvertError(f"{name!r:.200} takes arguments in a form that is not read")
        plain = [*arguments.args, *arguments.kwonlyargs]
        defaults: list[ast.expr | None] = [None] * len(arguments.args)
        if arguments.defaults:
            defaults[-len(arguments.defaults) :] = arguments.defaults
        defaults += arguments.kw_defaults
        parameters = tuple(
            (a.arg, "" if a.annotation is None else ast.unparse(a.annotation), default)
            for a, default in zip(plain, defaults, strict=True)
        )
        body, end = self._block(lines, 1, lines[0][0])
        if end != len(lines):
            raise ConvertError(f"the code of {name!r:.200} is not indented as torch prints it")
        returns = "" if head.returns is None else ast.unparse(head.returns)
        return Function(name, parameters, body, returns)

    def _block(
        self, lines: list[tuple[int, str]], at: int, outside: int, depth: int = 0
    ) -> tuple[list[Statement], int]:
        """The statements that stand deeper than `outside`, and the line behind them."""
        made: list[Statement] = []
        if depth > MAX_BLOCKS:
            raise ConvertError(f"blocks of the code are nested more than {MAX_BLOCKS} deep")
        inside = lines[at][0] if at < len(lines) else 0
        while at < len(lines) and lines[at][0] == inside > outside:
            text = lines[at][1]
            word = text.partition(" ")[0].rstrip(":")
            at += 1
            if word == "else" and made and made[-1].kind == "if" and not made[-1].orelse:
                made[-1].orelse, at = self._block(lines, at, inside, depth + 1)
                continue
            one = self._statement(text, word)
            if word in ("if", "for", "while", "with"):
                one.body, at = self._block(lines, at, inside, depth + 1)
            made.append(one)
        if at < len(lines) and lines[at][0] > outside:
            raise ConvertError(f"a line of the code is not indented as torch prints it: "
                               f"{lines[at][1]!r:.80}")  # fmt: skip
        return made, at

    def _statement(self, text: str, word: str) -> Statement:
        if word not in ("if", "for", "while", "with"):
            return Statement(text, self._parse(text, "exec"), "plain")
        if not text.endswith(":"):
            raise ConvertError(f"a line of the code is not read: {text!r:.80}")
        rest, target = text[len(word) : -1].strip(), ""
        if word == "for":
            target, _, rest = rest.partition(" in ")
        if word == "with":
            rest = rest.partition(" as ")[0]
        return Statement(text, self._parse(rest, "eval"), word, target.strip())

    def _parse(self, text: str, mode: str) -> ast.AST:
        """One line as Python's parser sees it; its text has been checked."""
        self._budget.charge(PARSING_BYTES * len(text))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in strings
                tree = ast.parse(text, mode=mode)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConvertError(f"a line of the code is not read ({error}): {text!r:.80}") from None
        self._budget.release(PARSING_BYTES * len(text))
        if isinstance(tree, ast.Expression):
            return tree.body
        if not isinstance(tree, ast.Module) or len(tree.body) != 1:
            raise ConvertError(f"a line of the code is not one statement: {text!r:.80}")
        return tree.body[0]


def _units(text: str) -> Iterator[tuple[str, str, str]]:
    """Kind, name and text of each class and function of a file."""
    lines = text.split("\n")
    starts = [n for n, line in enumerate(lines) if line[:1] not in ("", " ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
        match = _UNIT.match(lines[start])
        if match is not None:
            yield match[1], match[2], "\n".join(lines[start:end])
        elif not re.match(r"op_version_set = \d+$|import \w", lines[start]):
            raise ConvertError(f"a line of the code is not read: {lines[start]!r:.80}")


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Indentation and text of each line, those joined that a bracket holds together."""
    depth, held, indent = 0, "", 0
    for line in text.split("\n"):
        stripped = line.strip()
        if not stripped:
            continue
        if not held:
            indent = len(line) - len(line.lstrip(" "))
        # A string is never cut by torch, so that brackets can be counted a line at a time.
        checked = _checked(stripped, depth)
        depth += _brackets(stripped)
        held = f"{held} {checked}" if held else checked
        if depth == 0:
            yield indent, held
            held = ""
    if held:
        raise ConvertError(f"a line of the code does not end: {held!r:.80}")


def _brackets(text: str) -> int:
    """How many brackets of a line are left open."""
    tokens = [match.lastgroup for match in _TOKEN.finditer(text)]
    return tokens.count("open") - tokens.count("close")


def _checked(text: str, depth: int = 0) -> str:
    """A line, if it is made of what torch prints and is nested no deeper than that."""
    chains = [0] * (MAX_BRACKETS + 2)
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ConvertError(
                f"the code has characters that torch does not print: {text[at : at + 40]!r}"
            )
        at = match.end()
        what = match.lastgroup
        if what == "name" and match[0] in _WORDS:
            raise ConvertError(f"the code has a word that torch does not print: {match[0]!r}")
        if what == "open":
            chains[depth] += 1
            depth += 1
            if depth > MAX_BRACKETS:
                raise ConvertError(f"brackets of the code are nested more than {MAX_BRACKETS} deep")
            chains[depth] = 0
        elif what == "close":
            depth = max(depth - 1, 0)
        elif what == "dot" or what == "minus":
            chains[depth] += 1
        elif what == "other":
            chains[depth] = 0
        if chains[depth] > MAX_CHAIN:
            raise ConvertError(
                f"more than {MAX_CHAIN} names, calls and indices follow one another in the code"
            )
    return text
