"""Makes the compiled form of the modules on the hot path (`compiled.MODULES`), with mypyc and a C compiler; a minute or two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from windtunnel.compiled import BOOK, GROUP, HOME, MODULES, PACKAGE, SUFFIX, sources, stamp, why_not
from windtunnel.errors import WindtunnelError

LIMIT_S = 900.0
# No contraction of a*b + c into one rounding: results must not depend on whether a machine has the instruction.
SETUP = """\
from mypyc.build import mypycify
from setuptools import setup
import sys
flags = ["--config-file", "mypy.ini"]
made = mypycify(flags + {files!r}, group_name={group!r}, opt_level="3", debug_level="0")
for extension in made:
    plain = [flag for flag in extension.extra_compile_args if flag != "-Werror"]
    extension.extra_compile_args = plain + (["-ffp-contract=off"] if sys.platform != "win32" else [])
setup(name="windtunnel-compiled", ext_modules=made)
"""
MYPY = """\
[mypy]
ignore_missing_imports = true
follow_imports = silent
"""
FOREIGN = ("pandas", "pyarrow", "pydantic", "scipy", "yaml", "httpx", "simpy")


class CompileError(WindtunnelError):
    """The compiled form could not be made; plain Python goes on running."""

    exit_code = 1


def build() -> bool:
    """Compile into the package, or do nothing where that was done already. True: compiled now.

    Raises CompileError: no mypyc, no C compiler, a package that cannot be written to, or a compiler's own error.
    """
    if not os.environ.get("WINDTUNNEL_PURE") and why_not() is None:
        return False
    for module, package in (("mypyc", "mypy"), ("setuptools", "setuptools")):
        if find_spec(module) is None:
            raise CompileError(f"{package} is not installed", hint="pip install 'windtunnel[compiled]'")
    if shutil.which(os.environ.get("CC", "cc")) is None:
        raise CompileError("no C compiler was found", hint="install gcc or clang, or set CC; without one everything works, at half the speed")
    if not os.access(PACKAGE, os.W_OK):
        raise CompileError(f"{PACKAGE} cannot be written to", hint="run `windtunnel compile` as the user who installed the package")
    stamps = {name: stamp(path) for name, path in sources().items()}
    with tempfile.TemporaryDirectory(prefix="windtunnel-compile-") as folder:
        made = _make(Path(folder))
        fresh = Path(tempfile.mkdtemp(prefix="_compiled-", dir=PACKAGE))
        for name, path in made.items():
            shutil.copy2(path, fresh / f"{name}{SUFFIX}")
    (fresh / BOOK.name).write_text(json.dumps({"suffix": SUFFIX, "sources": stamps}))
    remove()
    try:
        fresh.rename(HOME)
    except OSError:  # another process was faster with the same sources
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def remove() -> None:
    """Forget the compiled form."""
    shutil.rmtree(HOME, ignore_errors=True)


def _first_error(output: str) -> str:
    """What went wrong, in one line that fits a screen."""
    lines = output.splitlines() or ["it said nothing"]
    found = next((line for line in lines if "error: " in line and "Command" not in line), next((x for x in lines if "rror" in x), lines[-1])).strip()
    return found if len(found) <= 200 else f"{found[:90]} … {found[-90:]}"


def _make(folder: Path) -> dict[str, Path]:
    """Compile a copy of the sources; the extension modules by full name."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "_compiled", "data", "sims", "*.so"))
    files = [f"{PACKAGE.name}/{module.replace('.', '/')}.py" for module in MODULES]
    (folder / "setup.py").write_text(SETUP.format(files=files, group=GROUP.removesuffix("__mypyc")))
    (folder / "mypy.ini").write_text(MYPY + "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in FOREIGN))
    env = {**os.environ, "WINDTUNNEL_PURE": "1"}
    try:
        ran = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, env=env, capture_output=True, text=True,
                             timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise CompileError(f"the compiler did not end in {LIMIT_S:.0f} s", hint="plain Python goes on working") from None
    if ran.returncode:
        raise CompileError(f"the compiler failed: {_first_error(ran.stdout + ran.stderr)}", hint="plain Python goes on working; please report this")
    return {path.relative_to(folder).as_posix().removesuffix(SUFFIX).replace("/", "."): path for path in folder.rglob(f"*{SUFFIX}")
            if path.relative_to(folder).parts[0] != "build"}
