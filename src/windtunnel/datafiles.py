"""Where the data files are: beside the source tree, or inside the installed package."""

from __future__ import annotations

import os
from pathlib import Path

from windtunnel.errors import ConfigFileError

PACKAGE = Path(__file__).resolve().parent


def data_path(name: str) -> Path:
    """The data file `name` (such as "catalog/gpus.yaml"): in $WINDTUNNEL_DATA, the package's data, or the repository's.

    Raises ConfigFileError with the places that were looked in.
    """
    places = [PACKAGE / "data", PACKAGE.parent.parent / "data"]
    if os.environ.get("WINDTUNNEL_DATA"):
        places.insert(0, Path(os.environ["WINDTUNNEL_DATA"]))
    for place in places:
        if (place / name).exists():
            return place / name
    raise ConfigFileError(f'no data file "{name}"', hint=f"looked in {', '.join(str(p) for p in places)}")
