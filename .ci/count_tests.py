"""Print how many tests of a folder ran and were skipped, by pytest's own report (--junitxml)."""

from __future__ import annotations

import argparse
import sys
from xml.etree import ElementTree


def main() -> int | str:
    """Count, print, and say what is wrong, if anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", help="file that pytest wrote")
    parser.add_argument("folder", help="such as tests/gpu")
    parser.add_argument("--require", choices=["some", "all"], help="fail unless so many ran")
    args = parser.parse_args()

    module = args.folder.replace("/", ".") + "."
    tests = [
        test
        for test in ElementTree.parse(args.report).iter("testcase")
        if test.get("classname", "").startswith(module)
    ]
    skipped = sum(test.find("skipped") is not None for test in tests)
    ran = len(tests) - skipped
    print(f"{args.folder}: {ran} tests ran, {skipped} were skipped")
    if not tests:
        return f"{args.report} knows no test of {args.folder}."
    if args.require and (ran == 0 or (args.require == "all" and skipped)):
        return f"{args.require} of the tests of {args.folder} have to run."
    return 0


if __name__ == "__main__":
    sys.exit(main())
