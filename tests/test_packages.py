"""What is given away: wheels and sdists of astore and its plugins, and README's lines that install them.

Without the internet: what astore depends on is put back into wheels, from where the environment of the tests has it.
"""

from __future__ import annotations

import csv
import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import blocks, commands
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import astore

ROOT = Path(__file__).parent.parent
PLUGINS = ("fleet", "gluster", "iscsi", "netfs", "rbd")
FOLDERS = {"astore": ROOT} | {f"astore-{name}": ROOT / "plugins" / name for name in PLUGINS}
README = (ROOT / "README.md").read_text()


def project(name: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((FOLDERS[name] / "pyproject.toml").read_text())["project"]
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def wheel_again(installed: Distribution, folder: Path) -> None:
    """Put an installed distribution back into a wheel, from its list of files."""
    tags = re.findall(r"^Tag: (.+)-(.+)-(.+)$", installed.read_text("WHEEL") or "", re.MULTILINE)
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    stem = f"{installed.name.replace('-', '_')}-{installed.version}"
    info = next(str(one).partition("/")[0] for one in installed.files or () if ".dist-info/" in str(one))
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as archive:
        record = []
        for file in installed.files or ():
            own = str(file).startswith(("../", f"{info}/RECORD", f"{info}/INSTALLER", f"{info}/direct_url"))
            if not own and "__pycache__" not in str(file):
                archive.write(Path(str(file.locate())), str(file))
                record.append([str(file), "", ""])
        with archive.open(f"{info}/RECORD", "w") as out:
            lines = [",".join(row) for row in [*record, [f"{info}/RECORD", "", ""]]]
            out.write("\n".join(lines).encode() + b"\n")


def needed(requirements: list[str], seen: dict[str, Distribution]) -> dict[str, Distribution]:
    """The installed distributions that requirements need, and those need, except astore's own."""
    for text in requirements:
        requirement = Requirement(text)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", "cli", "testing", *requirement.extras)
        )
        if wanted and requirement.name not in seen and requirement.name not in FOLDERS:
            seen[requirement.name] = found = distribution(requirement.name)
            needed([one for one in found.requires or () if "extra ==" not in one], seen)
    return seen


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels and sdists of the three distributions."""
    folder = tmp_path_factory.mktemp("dist")
    for place in FOLDERS.values():
        argv = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
        subprocess.run(argv, cwd=place, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def index(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheels of the three and of all that they depend on."""
    folder = tmp_path_factory.mktemp("index")
    for wheel in built.glob("*.whl"):
        (folder / wheel.name).symlink_to(wheel)
    seen: dict[str, Distribution] = {}
    for wheel in built.glob("*.whl"):
        needed(metadata(wheel).get_all("Requires-Dist", []), seen)
    for one in seen.values():
        wheel_again(one, folder)
    return folder


def wheel_of(name: str, folder: Path) -> Path:
    (found,) = folder.glob(f"{name.replace('-', '_')}-*.whl")
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_what_the_index_shows(name: str, built: Path) -> None:
    """Licence with its text, authors, keywords, addresses, and a page whose links lead somewhere."""
    found = metadata(wheel_of(name, built))
    assert found["License-Expression"] == "LGPL-2.1-or-later"
    assert found["License-File"] == "LICENSE"
    assert found["Author"] == "the astore authors"
    assert len(found["Keywords"].split(",")) >= 5
    assert {line.partition(",")[0] for line in found.get_all("Project-URL", [])} >= {"Homepage", "Repository", "Issues"}
    assert found["Description-Content-Type"] == "text/markdown"
    assert [link for link in re.findall(r"\]\(([^)]+)\)", found.get_payload()) if "://" not in link] == []
    with zipfile.ZipFile(wheel_of(name, built)) as archive:
        (text,) = [archive.read(one) for one in archive.namelist() if one.endswith("/licenses/LICENSE")]
    assert text == (ROOT / "LICENSE").read_bytes()
    assert b"GNU LESSER GENERAL PUBLIC LICENSE" in text


def test_an_index_takes_them(built: Path) -> None:
    """twine, which uploads them, has nothing to say against their metadata and their pages."""
    argv = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("PASSED")) == (0, 2 * len(FOLDERS)), done.stdout + done.stderr


def test_links_of_the_readme_lead_to_files() -> None:
    """They are whole addresses, so that they work wherever the page is shown; what they name is in the repository."""
    base = project("astore")["urls"]["Repository"] + "/blob/main/"
    defined = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", README, re.MULTILINE))
    assert len(defined) > 10
    for address in defined.values():
        assert address.startswith(base)
        assert (ROOT / address.removeprefix(base)).is_file(), address
    prose = re.sub(r"^```.*?^```$|`[^`]+`", "", README, flags=re.MULTILINE | re.DOTALL)
    used = {re.sub(r"\s+", " ", two or one) for one, two in re.findall(r"\[([^\]]+)\](?:\[([^\]]+)\])?(?!:)", prose)}
    assert used == set(defined)


def test_the_address_can_be_changed(tmp_path: Path) -> None:
    """scripts/address.sh knows each file that has the repository's address, and changes all of them."""
    old, new = project("astore")["urls"]["Repository"], "https://example.org/somebody/storage"
    kept = [ROOT, *(ROOT / one for one in ("debian", "docs", "manual", "scripts", "examples", "astore", "plugins"))]
    files = [file for folder in kept for file in (folder.iterdir() if folder == ROOT else folder.rglob("*"))]
    having = [one.relative_to(ROOT) for one in files if one.is_file() and old.encode() in one.read_bytes()]
    assert len(having) > 5
    for file in having:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    address = [ROOT / "scripts" / "address.sh"]
    assert subprocess.run(address, capture_output=True, text=True, check=True).stdout == f"{old}\n"
    subprocess.run([*address, new], env={**os.environ, "ROOT": str(tmp_path)}, check=True)
    for file in having:
        text = (tmp_path / file).read_text()
        assert (text.count(new), old in text) == ((ROOT / file).read_text().count(old), False)
    assert subprocess.run([*address, "nonsense"], capture_output=True, check=False).returncode == 2


def test_sdists_have_tests_and_docs(built: Path) -> None:
    """An unpacked sdist of astore is what make test needs; the plugins' have their page and the licence."""
    names: dict[str, set[str]] = {}
    for name in FOLDERS:
        (sdist,) = built.glob(f"{name.replace('-', '_')}-*.tar.gz")
        with tarfile.open(sdist) as archive:
            names[name] = {one.partition("/")[2] for one in archive.getnames()}
        assert {"LICENSE", "README.md", "pyproject.toml"} <= names[name]
    ours = names["astore"]
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "constraints.txt", "scripts/setup.sh"} <= ours
    assert {"debian/control", ".ci/run", ".github/workflows/ci.yml"} <= ours
    assert {"tests/test_packages.py", "docs/concepts.md", "beds/__init__.py", "plugins/gluster/pyproject.toml"} <= ours
    assert not [one for one in ours if one.startswith((".venv", "build/", "dist/", ".git/"))]


def test_versions_fit() -> None:
    """A plugin and the extra that brings it accept each other's versions."""
    versions = {name: Version(project(name)["version"]) for name in FOLDERS}
    assert str(versions["astore"]) == astore.__version__
    extras = project("astore")["optional-dependencies"]
    for name in FOLDERS:
        if name != "astore":
            (back,) = [Requirement(one) for one in project(name)["dependencies"] if Requirement(one).name == "astore"]
            (there,) = [Requirement(one) for one in extras[name.removeprefix("astore-")]]
            assert versions["astore"] in back.specifier
            assert there.name == name
            assert versions[name] in there.specifier


def test_plugins_are_for_the_same_pythons() -> None:
    """A plugin's page names the versions of Python that astore's does."""

    def pythons(name: str) -> list[str]:
        return [one for one in project(name)["classifiers"] if one.startswith("Programming Language")]

    assert {name: pythons(name) for name in FOLDERS} == dict.fromkeys(FOLDERS, pythons("astore"))


def test_what_setup_installs() -> None:
    """The benchmarks have the file system for drills, and the tests what they refuse to be without."""
    _, begin, rest = (ROOT / "scripts" / "setup.sh").read_text().partition("gluster_packages=")
    chosen, end, _ = rest.partition("\nsay() {")
    assert begin and end
    script = f'set -u; what=$1; GLUSTER=yes; CEPH=no\n{begin}{chosen}\necho "$packages"'
    for what, packages in {
        "bench": {"python3-pyfuse3", "qemu-utils", "gcc", "libvirt-daemon"},
        "test": {"python3-pyfuse3", "qemu-block-extra", "libxml2-utils", "libvirt-daemon", "strace"},
    }.items():
        shown = subprocess.run(["sh", "-c", script, "sh", what], capture_output=True, text=True, check=True).stdout
        assert packages <= set(shown.split())


def installations() -> Iterator[str]:
    """README's lines that install astore, without their comments."""
    yield from re.findall(r'^\$ pip install "(astore\[[^"]+\])"', README, re.MULTILINE)


EXPECTED = {
    "astore[cli]": {"dir"},
    "astore[cli,gluster]": {"dir", "gluster"},
    "astore[cli,iscsi]": {"dir", "iscsi-direct"},
    "astore[cli,netfs]": {"dir", "netfs"},
    "astore[cli,rbd]": {"dir", "rbd"},
    "astore[cli,fleet]": {"dir"},
}


def test_what_the_tests_need_is_pinned() -> None:
    """Their tools, and what those and astore need, have the versions that were tested together."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    (tools,) = re.findall(r"^TOOLS='(.*)'$", (ROOT / "scripts" / "setup.sh").read_text(), re.MULTILINE)
    ours = [text for name in FOLDERS for text in project(name)["dependencies"]]
    found = needed([*tools.split(), *ours, *project("astore")["optional-dependencies"]["cli"]], {})
    assert len(found) > 50
    assert {name: pinned.get(canonicalize_name(name)) for name in found} == {
        name: one.version for name, one in found.items()
    }


def test_the_readme_installs_each_extra() -> None:
    assert list(installations()) == list(EXPECTED)


def test_the_first_commands_of_the_first_page(index: Path, tmp_path: Path) -> None:
    """docs/start.md: a new environment, an installation into it, and the demonstration. The index is a folder here."""
    (block,) = [one for one in blocks(ROOT / "docs" / "start.md") if one.text.startswith("$ python3 -m venv ")]
    settings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
    }
    argv = ["bash", "-euo", "pipefail", "-c", "\n".join([*commands(block.text), "command -v astore"])]
    done = subprocess.run(argv, env=settings, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refreshed in" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "astore-env" / "bin" / "astore")


@pytest.mark.parametrize("what", EXPECTED)
def test_installing_into_an_empty_environment(what: str, index: Path, tmp_path: Path) -> None:
    """pip finds all of it in the folder, and the command has the backends that README says."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    argv = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-compile",
    ]
    settings = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [*argv, "--no-index", "--find-links", index, what], env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    backends = [environment / "bin" / "astore", "backend", "list", "--json"]
    told = subprocess.run(backends, env=settings, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r'"type": "([\w-]+)"', told)) == EXPECTED[what]


def test_a_record_is_a_table(index: Path) -> None:
    """The wheels that are made again here are wheels: each file of theirs is in their list."""
    for wheel in index.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            (record,) = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
            listed = {row[0] for row in csv.reader(archive.read(record).decode().splitlines())}
            assert listed == set(archive.namelist())


def test_the_debian_package_is_of_this_version() -> None:
    """Its changelog begins with it, and what it needs of Python is what the project needs."""
    (version,) = re.findall(r"\Aastore \(([^)]+)\) ", (ROOT / "debian" / "changelog").read_text())
    assert version == astore.__version__
    control = (ROOT / "debian" / "control").read_text()
    assert f"python3 ({project('astore')['requires-python'].replace('>=', '>= ')})" in control
    assert project("astore")["urls"]["Homepage"] in control


def test_the_service_is_what_the_page_says() -> None:
    """The service runs a command that there is, once, and again only if a pool failed; it ends no process of a mount."""
    unit = dict(
        re.findall(r"^(\w+)=(.*)$", (ROOT / "debian" / "astore.astore-autostart.service").read_text(), re.MULTILINE)
    )
    assert (unit["Type"], unit["Restart"], unit["KillMode"]) == ("oneshot", "on-failure", "process")
    command = unit["ExecStart"].split()
    assert command[:3] == ["/usr/bin/astore", "pool", "start"]
    help_ = subprocess.run(
        [sys.executable, "-m", "astore", *command[1:3], "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert [option for option in command[3:] if option.startswith("-") and option not in help_] == []
    page = (ROOT / "docs" / "at-boot.md").read_text()
    assert unit["RestartSec"] in page
    assert "KillMode=process" in page
    assert "astore.astore-autostart.service" in page


def test_continuous_integration_is_one_program() -> None:
    """The workflow calls .ci/run, and targets of the Makefile."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "run: bash .ci/run" in workflow
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"run: make (\w+)", workflow)) <= targets
