"""The compiled form: used only while true, refused in one sentence, and made of modules that can be compiled."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import pytest

from windtunnel import compiled, compiler


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two sources that was compiled, in words only."""
    monkeypatch.delenv("WINDTUNNEL_PURE", raising=False)
    (tmp_path / "sim").mkdir()
    (tmp_path / "sim" / "kv.py").write_text("x = 1\n")
    (tmp_path / "events.py").write_text("y = 2\n")
    monkeypatch.setattr(compiled, "PACKAGE", tmp_path)
    monkeypatch.setattr(compiled, "ROOTS", ("sim", "events.py"))
    monkeypatch.setattr(compiled, "BOOK", tmp_path / "sources.json")
    write_book(tmp_path)
    return tmp_path


def write_book(package: Path, suffix: str = compiled.SUFFIX) -> None:
    stamps = {name: compiled.stamp(path) for name, path in compiled.sources().items()}
    (package / "sources.json").write_text(json.dumps({"suffix": suffix, "sources": stamps}))


def test_unchanged_sources_let_the_compiled_form_run(package: Path) -> None:
    assert compiled.why_not() is None
    source = package / "events.py"
    source.write_text(source.read_text())  # a checkout of the same text: only the time differs
    assert compiled.why_not() is None


def test_one_changed_byte_anywhere_turns_all_of_it_off(package: Path) -> None:
    (package / "events.py").write_text("y = 3\n")
    assert "sources changed" in str(compiled.why_not())


@pytest.mark.parametrize("change", ["new", "gone"])
def test_a_source_more_or_less_turns_it_off(package: Path, change: str) -> None:
    if change == "new":
        (package / "sim" / "agenda.py").write_text("")
    else:
        (package / "sim" / "kv.py").unlink()
    assert "sources changed" in str(compiled.why_not())


def test_another_python_no_book_a_torn_book_and_the_switch(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_book(package, ".cpython-399-vax.so")
    assert "another Python (.cpython-399-vax.so)" in str(compiled.why_not())
    (package / "sources.json").write_text('{"suffix": ')
    assert "not compiled" in str(compiled.why_not())
    (package / "sources.json").unlink()
    assert "not compiled" in str(compiled.why_not())
    write_book(package)
    monkeypatch.setenv("WINDTUNNEL_PURE", "1")
    assert "WINDTUNNEL_PURE" in str(compiled.why_not())


def test_without_a_compiler_plain_python_goes_on_and_one_sentence_says_so(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "sources.json").unlink()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(compiler.CompileError, match="no C compiler was found; install gcc or clang") as caught:
        compiler.build()
    assert caught.value.exit_code == 1


def test_a_failing_compiler_is_told_in_one_line() -> None:
    said = compiler._first_error("x.c:7:1: warning: w\nx.c:9:3: error: expected ';'\nerror: Command '['gcc', " + "'-O3', " * 200 + "]' failed")
    assert said == "x.c:9:3: error: expected ';'"
    assert len(compiler._first_error("error: Command '['false', " + "'-O3', " * 200 + "]' returned 1")) < 200
    assert compiler._first_error("") == "it said nothing"


QUIET_FACTS = {"Refusal", "EngineState", "ForwardPass"}  # made and read, never compared by compiled code


@cache
def trees() -> dict[str, ast.Module]:
    return {path.relative_to(compiled.PACKAGE).as_posix().removesuffix(".py").replace("/", "."): ast.parse(path.read_text())
            for path in compiled.PACKAGE.rglob("*.py")}


def bases(node: ast.ClassDef) -> list[str]:
    return [base.id for base in node.bases if isinstance(base, ast.Name)]


def test_every_subclass_of_a_compiled_class_is_compiled_too() -> None:
    found = trees()
    assert set(compiled.MODULES) <= set(found), "a module in the list does not exist"
    classes = {module: [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)] for module, tree in found.items()}
    hot = {node.name for module in compiled.MODULES for node in classes[module]}
    wrong = [(module, node.name) for module, nodes in classes.items() if module not in compiled.MODULES and not module.startswith("live.")
             for node in nodes if set(bases(node)) & (hot - {"Refusal", "Row"})]
    assert not wrong, "plain Python cannot derive from a compiled class: add the module to compiled.MODULES"


def test_compiled_modules_hold_nothing_that_people_implement_or_that_is_read_by_its_annotations() -> None:
    for module in compiled.MODULES:
        for node in ast.walk(trees()[module]):
            if isinstance(node, ast.ClassDef):
                assert "Protocol" not in bases(node), f"{module}.{node.name}: a compiled protocol refuses what only looks like it"
            if isinstance(node, ast.ClassDef):
                assert not [d for d in node.decorator_list if isinstance(d, ast.Name) and d.id == "fact"] or node.name in QUIET_FACTS, \
                    f"{module}.{node.name}: facts are compared and read field by field; keep them in plain modules"
            if isinstance(node, ast.Name):
                assert node.id != "Param", f"{module}: compiled classes lose their annotations, and sliders are made from them"


def test_compiled_constructors_pass_their_arguments_by_name_or_place() -> None:
    """mypyc 2 hands a starred dictionary to `super().__init__` as one positional argument."""
    for module in compiled.MODULES:
        for node in ast.walk(trees()[module]):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "__init__":
                assert not any(isinstance(a, ast.Starred) for a in node.args), module
                assert all(keyword.arg is not None for keyword in node.keywords), module
