"""`python -m jax_qconv`: what is installed, tuning, tuned plans and compiled kernels."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from typing import Any

import jax_qconv
from jax_qconv import _cli
from jax_qconv._networks import NETWORKS


def _candidates(text: str) -> int | str:
    return text if text == "all" else int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jax_qconv", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, devices and the state of each engine")

    tune = commands.add_parser("tune", help="tune the convolutions of well-known networks")
    _add_networks(tune)
    tune.add_argument(
        "--candidates",
        type=_candidates,
        help="plans to try beside cuDNN's suggestions: a number, or 'all' (see jax_qconv.tune)",
    )
    tune.add_argument(
        "--paddings",
        action="store_true",
        help="also with other numbers of stored channels, and tell where pad_to= would pay",
    )
    tune.add_argument(
        "--merges",
        action="store_true",
        help="also with other numbers of merged groups, and tell where merge_groups= would pay",
    )
    tune.add_argument("--again", action="store_true", help="also what has been tuned")
    tune.add_argument("--workers", type=int, help="processes (half of the cores, at most 8)")

    plans = commands.add_parser("plans", help="look after the store of tuned plans")
    actions = plans.add_subparsers(dest="action", required=True)
    match: dict[str, Any] = {
        "metavar": "TEXT",
        "help": "only those that have each of its words, as `list` shows them: a field of the "
        "problem or its beginning (x=1 for batch 1), a digest, or a part of the other columns",
    }
    show = actions.add_parser("show", help="everything that was tried for some problems")
    show.add_argument("match", **match)
    table = actions.add_parser("list", help="a line for each plan")
    table.add_argument("--match", default="", **match)
    table.add_argument("--shipped", action="store_true", help="also those of the package")
    clear = actions.add_parser("clear", help="forget plans")
    chosen = clear.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--match", **match)
    chosen.add_argument("--all", action="store_true", help="all of them")
    export = actions.add_parser("export", help="write the plans for one GPU and cuDNN to a file")
    export.add_argument("file", type=pathlib.Path)
    export.add_argument("--match", default="", **match)
    export.add_argument("--rankings", action="store_true", help="with all that was tried")
    load = actions.add_parser("import", help="take plans over from a file")
    load.add_argument("file", type=pathlib.Path)
    load.add_argument("--replace", action="store_true", help="also where there is one already")

    kernels = commands.add_parser("kernels", help="own kernels for machines without NVRTC")
    actions = kernels.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="compile those of well-known networks to a file")
    export.add_argument("file", type=pathlib.Path)
    _add_networks(export)
    export.add_argument(
        "--compute-capability", type=int, default=90, help="of the GPUs: 90 for sm_90 (90)"
    )
    load = actions.add_parser("load", help="take kernels over from a file")
    load.add_argument("file", type=pathlib.Path)
    return parser


def _add_networks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", nargs="+", choices=NETWORKS, required=True, help="which networks"
    )
    parser.add_argument("--batch", type=_batches, default=[1, 8, 128], help="sizes (1,8,128)")


def _batches(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def main(argv: list[str] | None = None) -> int | str | None:
    """Parse the command line and run the command; returns the exit status or a complaint."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "info":
            print(jax_qconv.info())
        elif args.command == "tune":
            # This process computes nothing: it leaves the memory to those that tune.
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
            return _cli.tune(args)
        else:
            actions = _cli.PLANS if args.command == "plans" else _cli.KERNELS
            complaint = actions[args.action](args)
            sys.stdout.flush()
            return complaint
    except BrokenPipeError:
        # `| head` has seen enough; nor is there anyone to tell when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return "interrupted; what was finished is stored"
    except (RuntimeError, ValueError, OSError) as error:
        return f"{parser_name(args)}: {error}"
    return None


def parser_name(args: argparse.Namespace) -> str:
    """The command as it was given, for messages."""
    return " ".join(filter(None, ["jax_qconv", args.command, getattr(args, "action", None)]))


if __name__ == "__main__":
    sys.exit(main())
