"""Carries out a Dockerfile's RUN, COPY and ENV without Docker: `unshare --mount python3 docker/replay.py TARGET ROOT`.

Each stage is an overlay on ROOT that begins with what its parent has written, in a folder that is removed at the end;
RUN is a chroot into it. Covers the instructions that our Dockerfile has, and stops at any other. Not here: networks,
users, caches.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

DOCKERFILE = Path(__file__).with_name("Dockerfile")
CONTEXT = DOCKERFILE.parents[1]
_ONLY_FOR_RUNNING = {"EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD", "USER", "SHELL"}


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it."""

    parent: str
    instructions: list[tuple[str, str]]


@dataclass(frozen=True)
class Built:
    """A stage that was carried out: what it has written, and what the next stage inherits."""

    written: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"


def read_stages(text: str) -> dict[str, Stage]:
    """Stages by name, in order. An ARG before the first FROM is not resolved: it names the base image."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    stages: dict[str, Stage] = {}
    instructions: list[tuple[str, str]] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            instructions = []
            stages[name] = Stage(parent, instructions)
        else:
            instructions.append((word, rest.strip()))
    return stages


def needed(stages: dict[str, Stage], target: str) -> list[str]:
    """The stages that `target` is made of, itself included, in the order of the file."""
    found: set[str] = set()
    waiting = [target]
    while waiting:
        name = waiting.pop()
        if name in stages and name not in found:
            found.add(name)
            copies = [rest for word, rest in stages[name].instructions if word == "COPY"]
            waiting += [stages[name].parent, *re.findall(r"--from=(\S+)", " ".join(copies))]
    return [name for name in stages if name in found]


class Replay:
    """Carries out stages under `work`. Mounts stay until `unmount`."""

    def __init__(self, root: Path, work: Path) -> None:
        self._root = root
        self._work = work
        self._built: dict[str, Built] = {}

    def build(self, name: str, stage: Stage) -> None:
        """Carry out one stage, after those that it needs."""
        begun = self._built.get(stage.parent, Built())
        upper, scratch, merged = (self._work / f"{name}.{part}" for part in ("upper", "scratch", "merged"))
        for folder in (upper, scratch, merged):
            folder.mkdir()
        if begun.written:  # a layer on the layer it lies in is refused, so parents are copied, not stacked
            subprocess.run(["cp", "--archive", f"{begun.written}/.", upper], check=True)
        options = f"lowerdir={self._root},upperdir={upper},workdir={scratch}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
        for folder in ("proc", "dev"):
            subprocess.run(["mount", "--bind", f"/{folder}", merged / folder], check=True)
        built = replace(begun, written=upper)
        for word, rest in stage.instructions:
            built = self._carry_out(word, rest, built, merged)
        self._built[name] = built

    def run(self, name: str, command: list[str]) -> None:
        """Run a command in a stage, as a container would: as nobody in particular, with its environment."""
        print(f"==> {' '.join(command)}", flush=True)
        subprocess.run(
            ["chroot", "--userspec=10001:10001", self._work / f"{name}.merged", *command],
            env=_outside() | self._built[name].environment | {"HOME": "/home/rewright"},
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def unmount(self) -> None:
        """Undo every mount and remove what was built. A folder with a mount left in it is not touched."""
        for merged in self._work.glob("*.merged"):
            subprocess.run(["umount", "--recursive", merged], check=False)
        for merged in self._work.glob("*.merged"):
            merged.rmdir()
        shutil.rmtree(self._work)

    def _carry_out(self, word: str, rest: str, built: Built, root: Path) -> Built:
        if word == "RUN":
            print(f"==> {rest}", flush=True)
            started = time.monotonic()
            command = ["chroot", root, "/bin/bash", "-euo", "pipefail", "-c", f"cd {built.workdir} && {rest}"]
            subprocess.run(command, env=_outside() | built.environment, check=True)
            print(f"    {time.monotonic() - started:.0f} s", flush=True)
        elif word == "COPY":
            self._copy(rest.split(), built, root)
        elif word == "WORKDIR":
            (root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            return replace(built, workdir=rest)
        elif word in ("ENV", "ARG"):
            inherited = _outside() | built.environment
            values = dict(re.findall(r"(\w+)=(\S*)", rest))
            values = {k: re.sub(r"\$(\w+)", lambda m: inherited.get(m[1], ""), v) for k, v in values.items()}
            if word == "ARG":  # given from outside, else its default
                values = {name: os.environ.get(name, value) for name, value in values.items()}
            return replace(built, environment=built.environment | values)
        elif word not in _ONLY_FOR_RUNNING:
            sys.exit(f"{DOCKERFILE}: {word} is not known here")
        return built

    def _copy(self, words: list[str], built: Built, root: Path) -> None:
        options = dict(w.removeprefix("--").split("=", 1) for w in words if w.startswith("--"))
        *sources, target = [w for w in words if not w.startswith("--")]
        begin = self._work / f"{options['from']}.merged" if "from" in options else CONTEXT
        goal = root / Path(built.workdir, target).relative_to("/")
        for source in sources:
            path = begin / source.lstrip("/")
            if path.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(
                    path, goal, symlinks=True, dirs_exist_ok=True, ignore=None if "from" in options else ignore
                )
            else:
                copied = Path(shutil.copy2(path, goal))
                if "chmod" in options:
                    copied.chmod(int(options["chmod"], 8))


def _outside() -> dict[str, str]:
    """What of this process's environment a build may see: the way, and how pip reaches its index."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    return kept | {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


def main(target: str, root: str) -> None:
    stages = read_stages(DOCKERFILE.read_text(encoding="utf-8"))
    if target not in stages:
        sys.exit(f"{DOCKERFILE} has no stage {target!r}: {', '.join(stages)}")
    replay = Replay(Path(root), Path(tempfile.mkdtemp(prefix="rewright-image-")))
    try:
        for name in needed(stages, target):
            replay.build(name, stages[name])
        replay.run(target, ["rewright", "--help"])
        replay.run(target, ["rewright", "serve", "--dry-run"])
    finally:
        replay.unmount()
    print(f"docker: the commands of target {target} ran")


if __name__ == "__main__":
    main(*sys.argv[1:])
