"""`python -m jax_qconv info`: what is installed and which engines are usable."""

from __future__ import annotations

import argparse

import jax_qconv


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(prog="python -m jax_qconv", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, devices and the state of each engine")
    parser.parse_args(argv)
    print(jax_qconv.info())


if __name__ == "__main__":
    main()
