"""Print the folder in which an installed package has a header: PACKAGE HEADER."""

import sys
from importlib import metadata

package, header = sys.argv[1:]
suffix = "include/" + header
found = [f for f in metadata.distribution(package).files or [] if str(f).endswith(suffix)]
if not found:
    # Some packages nest: .../include/cccl/nv/target
    found = [f for f in metadata.distribution(package).files or [] if str(f).endswith("/" + header)]
if not found:
    sys.exit(f"{package} has no {header}")
path = str(found[0].locate())
print(path[: -len(header) - 1])
