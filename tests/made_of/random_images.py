"""Images at random, of all formats and in all constellations, made by qemu-img in the folders of three pools.

The names in their headers are spelled in many ways: relative, absolute, through links and ``..``, as ``file:`` and ``json:``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KIB = 1 << 10
MIB = 1 << 20

POOLS = ("one", "two", "three")
BACKING_FORMAT, UNKNOWN = b"\xe2\x79\x2a\xca", b"\x12\x34\x56\x78"
"""Types of header extensions of qcow2: the backing file's format, and one that nobody knows."""
RAW_MARK = "user.astore.format"
DEEPEST = 5
"""Images in a chain."""

_NAMES = (
    "disk",
    "a b",
    "a:b",
    "50%25",
    "quer?y",
    "hash#tag",
    "com,ma",
    "grün",
    "eq=al",
    "json",
    "-x",
    "[b]",
    "it's",
    '"q"',
)


def qemu_img(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run qemu-img; it may fail."""
    return _run("qemu-img", *arguments, cwd=cwd)


def _run(*argv: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(os.fspath, argv)), capture_output=True, text=True, errors="replace", cwd=cwd, stdin=subprocess.DEVNULL
    )


@dataclass(frozen=True)
class Made:
    """An image file.

    :ivar path: by the path of its pool, or outside. :ivar driver: QEMU's driver for it. :ivar depth: images in its chain.
    """

    path: Path
    driver: str
    size: int
    depth: int = 1


@dataclass
class World:
    """Three folders of pools, one of them behind a link, folders outside, and images in them."""

    root: Path
    seed: int
    log: list[str] = field(default_factory=list)
    images: list[Made] = field(default_factory=list)
    outside: list[Made] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._count = 0
        root = self.root
        for folder in ("one", "three", "real/two", "outside/deep", "empty", "real/one", "real/outside"):
            (root / folder).mkdir(parents=True)
        (root / "two").symlink_to("real/two")
        (root / "link").symlink_to(root)
        (root / "one" / "away").symlink_to("../outside/deep")
        (root / "one" / "three").symlink_to("../three")
        (root / "real" / "two" / "up").symlink_to("../..")

    # ------------------------------------------------------------------------------------------------------- contents

    def _name(self, suffix: str, folder: Path) -> Path:
        self._count += 1
        odd = self.random.choice(_NAMES) if self.random.random() < 0.3 else "disk"
        return folder / f"{odd}{self._count}.{suffix}"

    def _folder(self) -> Path:
        return self.root / self.random.choice(POOLS)

    def _data(self, size: int) -> bytes:
        data = bytearray(size)
        for _ in range(self.random.randint(1, 4)):
            length = self.random.choice((512, 4096, 70_000))
            at = self.random.randrange(size) // 512 * 512
            data[at : at + length] = self.random.randbytes(min(length, size - at))
        return bytes(data)

    def _fill(self, path: Path, driver: str) -> None:
        """Write some patterns into an image, whatever it is backed by."""
        node: dict[str, Any] = {"driver": driver, "file": {"driver": "file", "filename": str(path)}}
        if driver in ("qcow2", "qcow", "qed", "vmdk"):
            node["backing"] = None
        commands: list[str] = []
        for _ in range(self.random.randint(1, 4)):
            length = self.random.choice((512, 4096, 64 * KIB))
            at = self.random.randrange(0, 192 * KIB, 512)
            commands += ["-c", f"write -P {self.random.randrange(1, 256)} {at} {length}"]
        if self.random.random() < 0.15:
            commands += ["-c", f"write -z {self.random.randrange(0, 128) * KIB} 64k"]
        _run("qemu-io", *commands, f"json:{json.dumps(node)}")

    # --------------------------------------------------------------------------------------------------- single images

    def raw(self, folder: Path) -> Made:
        """A raw file; one in six has an image's header in it, or an odd size."""
        path = self._name("raw", folder)
        size = self.random.choice((64, 192, 256, 1024)) * KIB
        data = self._data(size)
        kind = self.random.random()
        if kind < 0.1:
            data = data[: self.random.randrange(len(data)) | 1]
        path.write_bytes(data)
        if kind > 0.85 and self.images:  # what a guest may write: the header of an image, which names a volume
            other = self.random.choice(self.images)
            inner = path.with_suffix(".inner")
            self.create(inner, "qcow2", size, (str(other.path), other.driver))
            if inner.exists():
                head = inner.read_bytes()[: len(data)]
                path.write_bytes(head + data[len(head) :])
                inner.unlink()
            if self.random.random() < 0.6:
                os.setxattr(path, RAW_MARK, b"raw")
            else:
                return Made(path, "qcow2", size, other.depth + 1)
        return Made(path, "raw", len(data))

    def _options(self, driver: str) -> list[str]:
        choose, chance = self.random.choice, self.random.random
        if driver == "qcow2":
            options = [f"cluster_size={choose((512, 4096, 65536, 65536, 2 * MIB))}"]
            if chance() < 0.25:
                options.append("compat=0.10")
            elif chance() < 0.3:
                options.append("lazy_refcounts=on")
            elif chance() < 0.3:
                options = ["extended_l2=on,cluster_size=64k"]
            elif chance() < 0.2:
                options.append("compression_type=zstd")
            return options
        if driver == "vmdk":
            return [f"subformat={choose(('monolithicSparse',) * 5 + ('streamOptimized', 'monolithicFlat', *_SPLIT))}"]
        if driver == "vpc":
            return [f"subformat={choose(('dynamic', 'fixed'))}", *(["force_size=on"] if chance() < 0.5 else [])]
        if driver == "vhdx":
            return [f"subformat={choose(('dynamic', 'fixed'))}", "block_size=1M"]
        if driver == "qed":
            return [f"cluster_size={choose((4096, 65536))}"]
        if driver == "vdi":
            return ["static=on"] if chance() < 0.3 else []
        return []

    def create(
        self, path: Path, driver: str, size: int, backing: tuple[str, str | None] | None = None, *options: str
    ) -> bool:
        """Have qemu-img make an image; whether it did. It looks at no backing file, where the format lets it."""
        argv = ["create", "-q", "-f", driver, "-u"]
        if backing is not None:  # qemu-img insists on a format
            argv += ["-b", backing[0], "-F", backing[1] or ("raw" if driver == "qcow" else "qcow2")]
        if options:
            argv += ["-o", ",".join(options)]
        done = qemu_img(*argv, path, str(size), cwd=self.root / "empty")
        self.log.append(f"{' '.join(argv)} {path} {size}" + (f": {done.stderr.strip()}" if done.returncode else ""))
        if done.returncode:
            path.unlink(missing_ok=True)
        elif backing is not None and backing[1] is None and driver == "qcow2":
            self.log[-1] += ": format taken out"
            path.write_bytes(path.read_bytes().replace(BACKING_FORMAT, UNKNOWN, 1))
        return done.returncode == 0

    def plain(self, folder: Path, driver: str) -> Made:
        """An image that is backed by nothing."""
        path = self._name(driver, folder)
        size = self.random.choice((64, 192, 256, 1024)) * KIB
        options = self._options(driver)
        if driver == "qcow2" and self.random.random() < 0.08:
            options += self._data_file(folder, size)
        if not self.create(path, driver, size, None, *options):
            return self.raw(folder)
        if "subformat=streamOptimized" not in options:
            self._fill(path, driver)
        if driver == "qcow2" and self.random.random() < 0.1:
            qemu_img("snapshot", "-c", "s", path)
            self._fill(path, driver)
        elif driver in ("qcow2", "vmdk") and self.random.random() < 0.1:
            self._compress(path, driver)
        return Made(path, driver, size)

    def _data_file(self, folder: Path, size: int) -> list[str]:
        where = self.random.choice((folder, self._folder(), self.root / "outside"))
        path = self._name("data", where)
        if "," in path.name:
            path = path.with_name(path.name.replace(",", ""))
        return [f"data_file={path}", *(["data_file_raw=on"] if self.random.random() < 0.5 else [])]

    def _compress(self, path: Path, driver: str) -> None:
        new = path.with_suffix(".new")
        options = ["-o", "subformat=streamOptimized"] if driver == "vmdk" else []
        if qemu_img("convert", "-c", "-f", driver, "-O", driver, *options, path, new).returncode == 0:
            new.replace(path)
        new.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------------- overlays

    def overlay(self, folder: Path, base: Made) -> Made:
        """An image over another, whose name and format are told in some way."""
        choose, chance = self.random.choice, self.random.random
        driver = (
            "vmdk" if base.driver == "vmdk" and chance() < 0.7 else choose(("qcow2",) * 6 + ("qcow", "qed", "vmdk"))
        )
        path = self._name(driver, folder)
        size = base.size // 512 * 512 or 512
        if chance() < 0.3:
            size = choose((64 * KIB, 192 * KIB, MIB))
        told: str | None = base.driver
        kind = chance()
        if kind < 0.15:
            told = None
        elif kind < 0.27:
            told = choose(("raw", "qcow2", "vmdk", "vpc"))
        name = self._spelled(folder, base, told)
        options = [] if driver in ("vmdk", "qcow") else self._options(driver)
        if driver == "vmdk":
            told = "vmdk"
        if driver == "qcow":
            told = None
        if not self.create(path, driver, size, (name, told), *options):
            return self.plain(folder, "qcow2")
        if chance() < 0.8:
            self._fill(path, driver)
        return Made(path, driver, size, base.depth + 1)

    def _spelled(self, folder: Path, base: Made, told: str | None) -> str:
        path, chance = base.path, self.random.random()
        if chance < 0.3:
            return str(path)
        if chance < 0.5:
            return self._relative(folder, path)
        if chance < 0.58:
            return f"file:{self._absolute(path)}"
        if chance < 0.82:
            return self._absolute(path)
        if chance < 0.97:
            return self._json(base, told)
        return self.random.choice((f"{path}.gone", f"file:{path.name}", str(self.root / "outside"), path.name))

    def _relative(self, folder: Path, path: Path) -> str:
        """Seen from the folder as it is spelled; through a link ``..`` leads elsewhere, if anywhere."""
        if path.parent == folder:
            plain = self.random.choice((path.name, f"./{path.name}", f".//./{path.name}"))
            return f"./{path.name}" if ":" in path.name and self.random.random() < 0.8 else plain
        if self.random.random() < 0.3:
            return f"../{path.parent.name}/{path.name}"
        return os.path.relpath(path, os.path.realpath(folder))

    def _absolute(self, path: Path) -> str:
        ways: list[Callable[[], str]] = [
            lambda: str(path).replace("/", "//", 3),
            lambda: f"{self.root}/link/{path.parent.name}/./{path.name}",
            lambda: f"{path.parent}/../{path.parent.name}/{path.name}",  # through the link of "two": somewhere else
            lambda: f"{self.root}/one/away/../../{path.parent.name}/{path.name}",
            lambda: f"{self.root}/one/away/../{path.name}",
            lambda: f"{self.root}/real/two/up/{path.parent.name}/{path.name}",
            lambda: str(self._link(path)),
            lambda: str(self._link(path, hard=True)),
        ]
        return self.random.choice(ways)()

    def _link(self, path: Path, *, hard: bool = False) -> Path:
        """A link to a file in a pool's folder, or outside."""
        link = self._name("link", self.random.choice((path.parent, self._folder(), self.root / "outside")))
        if hard:
            os.link(os.path.realpath(path), link)
        else:
            link.symlink_to(self.random.choice((os.path.realpath(path), str(path))))
        return link

    def _json(self, base: Made, told: str | None) -> str:
        driver, path = told or base.driver, str(base.path)
        file = {"driver": "file", "filename": path}
        part = {"driver": "raw", "offset": 64 * KIB, "file": file}
        nodes: list[dict[str, Any]] = [
            *[{"driver": driver, "file": file}] * 3,
            {"file.driver": "file", "file.filename": path, "driver": driver},
            {"driver": driver, "file.filename": path},
            {"driver": driver, "file": {"filename": path}, "read-only": True},
            {"driver": "raw", "offset": 512, "size": 32 * KIB, "file": file},
            {"driver": driver, "file": part},
            {"driver": driver, "file": {"driver": "raw", "file": file}},
            {"driver": "raw", "file": {"driver": driver, "file": file}},
            {"driver": driver, "backing": None, "file": file},
            {"driver": driver, "backing": {"driver": "null-co", "size": MIB, "read-zeroes": True}, "file": file},
            {"driver": driver, "file": {**file, "locking": "off"}},
            {"driver": driver, "file": file, "cache": {"direct": False}, "discard": "unmap", "node-name": "n"},
            {"driver": driver, "unheard-of": 1, "file": file},
            {"driver": driver, "detect-zeroes": "on", "file": file},
            {"driver": "copy-on-read", "file": {"driver": driver, "file": file}},
            {"driver": driver, "file": {"driver": "file", "filename": base.path.name}},
            {"driver": driver, "file": file, "driver.x": 1},
            file,
        ]
        text = json.dumps(self.random.choice(nodes))
        if self.random.random() < 0.15 and "'" not in text and '\\"' not in text:
            text = text.replace('"', "'")
        return f"json:{text}"

    # ------------------------------------------------------------------------------------------------------ all of it

    def populate(self, count: int) -> None:
        """Make so many images in the pools, and what they need outside."""
        drivers = ("qcow2",) * 5 + ("qcow", "qed", "vmdk", "vmdk", "vmdk", "vdi", "vpc", "vpc", "vhdx", "parallels")
        for folder in (self.root / "outside", self.root / "real" / "one"):
            self.outside.append(self.raw(folder))
        for _ in range(count):
            folder, kind = self._folder(), self.random.random()
            shallow = [one for one in self.images if one.depth < DEEPEST]
            if kind < 0.62 and shallow:
                deep = [one for one in shallow if one.depth > 1 or one.driver != "raw"]
                base = self.random.choice(deep[-4:] if deep and self.random.random() < 0.6 else shallow)
                if self.random.random() < 0.05:
                    base = self.random.choice(self.outside)
                made = self.overlay(folder, base)
            elif kind < 0.72:
                made = self.raw(folder)
            else:
                made = self.plain(folder, self.random.choice(drivers))
            self.images.append(made)
            if self.random.random() < 0.04:
                link = self._link(made.path)
                if link.parent.name in POOLS:
                    self.images.append(Made(link, made.driver, made.size, made.depth))
            if self.random.random() < 0.1:  # a file of the same name, where a wrong way leads
                for place in ("real/one", "outside", "real/outside"):
                    decoy = self.root / place / made.path.name
                    if not os.path.lexists(decoy):
                        decoy.write_bytes(self._data(64 * KIB))


_SPLIT = ("twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
