"""``fedq new NAME``: write a runnable app project."""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

import click

from fedq.cli.options import debug_option, json_option
from fedq.cli.output import print_json
from fedq.cli.problem import Problem

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*\Z")


@click.command()
@click.argument("name")
@click.option("--directory", "-d", type=click.Path(path_type=Path), help="Where to write it. [default: ./NAME]")
@json_option
@debug_option
def new(name: str, directory: Path | None, as_json: bool) -> None:
    """Write a runnable app project called NAME: a federated regression to start from, with its test."""
    package = package_name(name)
    target = directory if directory is not None else Path(name)
    written = write_project(name, package, target)
    if as_json:
        print_json({"directory": str(target), "package": package, "files": written})
        return
    click.echo(f"wrote {target}/: " + ", ".join(written))
    click.echo("go on with:")
    click.echo(f"  fedq demo {target}             # watch it on six nodes of this machine")
    click.echo(f"  fedq run {target} --follow     # submit it to the federation at FEDQ_REDIS_URL")


def package_name(name: str) -> str:
    """The import name of a project called ``name``. Raises Problem for a name that can have none."""
    package = name.lower().replace("-", "_")
    if keyword.iskeyword(package):
        raise Problem(f"{name!r} is a word of Python's own, which no package can have as its name; choose another name")
    if not _NAME.match(name):
        raise Problem(f"{name!r} cannot name a project: use letters, digits and '-', a letter first (such as my-app)")
    if package in ("fedq", "tests", "test"):
        raise Problem(f"{name!r} would hide another package; choose another name")
    return package


def write_project(name: str, package: str, target: Path) -> list[str]:
    """Write the project into the new directory ``target``, whole or not at all; return its files' relative paths."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Problem(f"{target} is there already; choose another name, or --directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{package}-", dir=target.parent))
    try:
        written = list(_fill(files("fedq.cli") / "templates" / "app", draft, {"name": name, "package": package}))
        draft.chmod(0o755)
        if target.exists():
            target.rmdir()
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return sorted(str(path.relative_to(draft)) for path in written)


def _fill(source: Traversable, target: Path, names: dict[str, str]) -> list[Path]:
    written: list[Path] = []
    for item in source.iterdir():
        if item.is_dir():
            folder = target / (names["package"] if item.name == "package" else item.name)
            folder.mkdir()
            written += _fill(item, folder, names)
        elif item.name.endswith(".in"):
            path = target / item.name.removesuffix(".in")
            path.write_text(Template(item.read_text(encoding="utf-8")).substitute(names), encoding="utf-8")
            written.append(path)
    return written
