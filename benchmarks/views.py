"""What it costs a student to see the same few views of every image again and again, as it does with a teacher cache.

    python -m benchmarks.views --views all 4 16 1 --seeds 1 --out views -- --data cifar10-4k.zip \
        --teacher my_resnet.py:resnet56 --teacher-weights resnet56-cifar10jpeg.safetensors --student resnet8 \
        --epochs 40 --lr 0.1 --precision bf16-mixed

runs one `reldistill compare` for each number of views, with a teacher cache of its own (`all`: new views in every
epoch, and no cache). What is finished is not done again; with `--keep` the records that docs/results.md is made from
are copied to benchmarks/results.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from reldistill.core.run_files import RECORD_FILE
from reldistill.report.comparison.cell_records import ARRAYS_FILE, REFERENCE, TEST_FILE

RESULTS = Path(__file__).parent / "results"
_ENDS = ("compare.json", f"{REFERENCE}.json", TEST_FILE)
_KEPT = (*_ENDS, RECORD_FILE, ARRAYS_FILE)


def command(views: str, *, methods: list[str], seeds: int, out: str, options: list[str]) -> list[str]:
    """The comparison of one number of views."""
    cache = [] if views == "all" else ["--views", views, "--cache-teacher", f"{out}-cache/{views}"]
    own = ["--methods", *methods, "--seeds", str(seeds), "--out", f"{out}/{views}"]
    return ["reldistill", "compare", *own, *options, *cache]


def keep(out: Path) -> None:
    """Copy the records of what is finished, without the reference's arrays, which only cells that are to come need."""
    for folder in (file.parent for name in _ENDS for file in out.rglob(name)):
        for name in _KEPT:
            if (folder / name).is_file() and (folder.name, name) != (REFERENCE, ARRAYS_FILE):
                target = RESULTS / "views" / folder.relative_to(out) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, target)


def main() -> int:
    """Run what is not finished; 0 if all comparisons ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", nargs="+", default=["all", "4", "16", "1"])
    parser.add_argument("--methods", nargs="+", default=["none", "kd"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", default="views")
    parser.add_argument("--keep", action="store_true", help="copy what is there to benchmarks/results, run nothing")
    parser.add_argument("options", nargs="*", help="of every `reldistill compare`, behind --")
    given = parser.parse_args()
    if given.keep:
        keep(Path(given.out))
        return 0
    for views in given.views:
        words = command(views, methods=given.methods, seeds=given.seeds, out=given.out, options=given.options)
        print(shlex.join(words), flush=True)
        ended = subprocess.run([sys.executable, "-m", *words], check=False)
        if ended.returncode:
            return ended.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
