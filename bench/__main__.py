"""``python -m bench``: run the scenarios, print the table, keep the raw figures."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil

from .collectors import COLLECTORS
from .overload import OVERLOAD
from .record_cost import RECORD_COST
from .scenarios import SCENARIOS as SERVING
from .scenarios import Row, Setting
from .telemetry import TELEMETRY

_ROOT = Path(__file__).parent.parent
SCENARIOS = SERVING | OVERLOAD | TELEMETRY | COLLECTORS | RECORD_COST


def main() -> int:
    """Return 1 where a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each side")
    arguments = parser.parse_args()
    sys.path.append(str(_ROOT / "tests"))
    from support.tiny_model import write_tiny_model  # noqa: PLC0415 - after the path

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(write_tiny_model(Path(folder) / "tiny"), arguments.repeats)
        for name in arguments.only:
            print(f"... {name}: {(SCENARIOS[name].__doc__ or '').strip()}", file=sys.stderr)
            rows += SCENARIOS[name](setting)
    print(_machine())
    print(_table(rows))
    print(f"Raw figures: {_keep(rows)}")
    return 0 if all(row.holds is not False for row in rows) else 1


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("mlx", "mlx-lm", "mlx-pharos"))
    return (
        f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores, "
        f"Python {platform.python_version()}, {packages}"
    )


def _table(rows: list[Row]) -> str:
    lines = [
        "| scenario | figure | pharos | peer or limit | its figure | ratio | bound | holds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        holds = {None: "", True: "yes", False: "NO"}[row.holds]
        lines.append(
            f"| {row.scenario} | {row.figure} | {_spread(row.ours)} | {row.other_name} "
            f"| {_spread(row.other)} | {ratio} | {row.bound} | {holds} |"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    """Return the median, and the range behind it."""
    if not values:
        return ""
    return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def _keep(rows: list[Row]) -> str:
    folder = _ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"machine": _machine(), "rows": [asdict(row) for row in rows]}))
    return str(path.relative_to(_ROOT))


if __name__ == "__main__":
    raise SystemExit(main())
