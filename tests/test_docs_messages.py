"""The page of messages quotes what the code says: every message that it has, and every status."""

import ast
import re
from functools import cache
from pathlib import Path

from bkgmatch import image_backgrounds, levels, match, spectra

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "messages.rst").read_text(encoding="utf-8")
TERM = re.compile(r"^(``.+``)\n(?=   \S)", re.MULTILINE)
QUOTED = [quoted for term in TERM.findall(PAGE) for quoted in re.findall(r"``(.+?)``", term)]
STATUS = re.compile(r"^   \* - ``(.+?)``\n     - (?:Sky|Level|MRS|Image|all)", re.MULTILINE)
LISTED = STATUS.findall(PAGE)

# What only programmers see, who call functions with arrays: their docstrings tell what they take.
OF_ARRAYS = {
    "__init__", "detectors", "execution", "exposures", "image_backgrounds", "leave_one_out", "planes",
    "polynomial_arrays", "simulate", "skymatch", "stored",
}  # fmt: skip
NO_MESSAGE = {"\0: \0"}  # only puts the name of a file before another message
NOT_SHOWN = re.compile("\0 is damaged$|is no record of bkgmatch")  # caught, and told as "cannot be read"


def said(node):
    """Text of a string, with a null character in the place of each value that is put in; None if it is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[.\d]*[sdfg]", "\0", node.value).replace("%%", "%")
    if isinstance(node, ast.JoinedStr):
        return "".join("\0" if isinstance(part, ast.FormattedValue) else said(part) for part in node.values)
    return None


@cache
def modules():
    source = ROOT / "src" / "bkgmatch"
    files = sorted(source.rglob("*.py"))
    return {str(f.relative_to(source).with_suffix("")): ast.parse(f.read_text(encoding="utf-8")) for f in files}


@cache
def strings():
    """All texts of the code but docstrings."""
    nodes = [node for tree in modules().values() for node in ast.walk(tree)]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return sorted({text for node in nodes if id(node) not in docstrings and (text := said(node))})


def told(tree):
    """Messages of errors and of warnings in the log."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):  # is it a warning, and its text
            is_warning, line = node.value.elts
            if said(line) and not (isinstance(is_warning, ast.Constant) and is_warning.value is False):
                yield said(line)
        call = node.exc if isinstance(node, ast.Raise) else node
        if not (isinstance(call, ast.Call) and call.args):
            continue
        is_warning = isinstance(call.func, ast.Attribute) and call.func.attr in ("warning", "error")
        text = said(call.args[0]) if isinstance(node, ast.Raise) or is_warning else None
        if text:
            yield text


def pattern(quoted):
    return re.compile(".*".join(map(re.escape, quoted.split("..."))), re.DOTALL)


def test_the_page_is_read():
    assert len(QUOTED) > 150
    assert len(LISTED) > 10
    assert all(len(quoted.replace("...", "").strip()) >= 10 for quoted in QUOTED), "what is so short fits anything"


def test_the_code_says_what_is_quoted():
    assert [q for q in [*QUOTED, *LISTED] if not any(pattern(q).search(text) for text in strings())] == []


def test_all_that_the_code_says_is_there():
    patterns = [pattern(quoted) for quoted in QUOTED]
    missing = {
        f"{name}: {text}".replace("\0", "...")
        for name, tree in modules().items()
        if name not in OF_ARRAYS
        for text in told(tree)
        if text not in NO_MESSAGE and not NOT_SHOWN.search(text) and not any(p.search(text) for p in patterns)
    }
    assert missing == set(), "add these to docs/messages.rst"


def test_every_status_is_there():
    codes = {
        value
        for module in (match, levels, spectra, image_backgrounds)
        for name, value in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    }
    assert {"matched", "fixed", "made", "all voxels clipped"} < codes
    of_pairs = {"used", "down-weighted", "rejected"}
    assert (codes | of_pairs) - {levels.LYOT} - set(LISTED) == set()
