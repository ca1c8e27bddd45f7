"""The long runs behind the results, one after the other, for as long as a machine can be spared.

    python -m benchmarks.queue --data DATA --out QUEUE [STEP …]

works off the steps below, or those that are named. What is finished is not done again, and what was cut short
continues: each step is a command that can be repeated. DATA is a folder with `cifar10-jpeg.zip`,
`tiny-imagenet-40.zip`, `teacher/` and `foundation/`; everything is written below QUEUE, where the commands run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RIVALS = "none kd kd+rkd dkd reviewkd simkd cwd patch_kl serkd sekd serkd+sekd"
CIFAR = (
    "--data cifar10-10k.zip --teacher {data}/teacher/my_resnet.py:resnet56 "
    "--teacher-weights {data}/teacher/resnet56-cifar10jpeg.safetensors --lr 0.2 --precision bf16-mixed"
)
LITE2 = (
    "--teacher tf_efficientnet_lite2 --teacher-weights {data}/foundation/tf_efficientnet_lite2.safetensors "
    "--teacher-head none --teacher-image-size 128 --image-size 64"
)
PHOTOS = "{data}/tiny-imagenet-40.zip"
LONG = "--epochs 40 --seeds 3"


@dataclass(frozen=True)
class Step:
    """Commands that belong together.

    Args:
        commands: what is run; `{data}` stands for the folder of the data.
        probed: a comparison whose cells are measured by the probes of `reldistill evaluate` afterwards.
    """

    commands: tuple[str, ...]
    probed: str = ""


STEPS = {
    # A pair of CNNs until nothing moves: who is ahead then?
    "cifar": Step(
        (
            "python -m benchmarks.subset {data}/cifar10-jpeg.zip cifar10-10k.zip --images 1000 --val test",
            f"reldistill compare --methods {RIVALS} {CIFAR} {LONG} --student resnet20 --cache-teacher cifar-cache "
            f"--out cifar",
        )
    ),
    # A teacher without classes, labelled photographs.
    "headless": Step(
        (
            f"reldistill compare --methods none rkd serkd sekd features patch_kl --data {PHOTOS} {LITE2} {LONG} "
            f"--student mobilenetv3_small_100 --cache-teacher lite2-cache --out headless",
        )
    ),
    # The same photographs without their labels, then what the features know of them.
    "unlabelled": Step(
        (
            f"reldistill compare --methods rkd serkd sekd features patch_kl --data {PHOTOS} --task features {LITE2} "
            f"{LONG} --student mobilenetv3_small_100 --cache-teacher lite2-cache --out unlabelled",
        ),
        probed="unlabelled",
    ),
    # Photographs, with a teacher that learned their classes.
    "photographs": Step(
        (
            f"reldistill train --data {PHOTOS} --model tf_efficientnet_lite2 --model-weights "
            f"{{data}}/foundation/tf_efficientnet_lite2.safetensors --image-size 128 --epochs 6 --lr 0.02 "
            f"--hold-out-test --out photographs-teacher --resume",
            f"reldistill compare --methods {RIVALS} --data {PHOTOS} --teacher photographs-teacher "
            f"--teacher-image-size 128 --image-size 64 {LONG} --student mobilenetv3_small_100 "
            f"--cache-teacher photographs-cache --out photographs",
        )
    ),
}


def run(step: Step, *, data: Path, out: Path) -> int:
    """The first exit status that is not 0, or 0; commands run in `out`."""
    for command in step.commands:
        words = [word.format(data=data) for word in shlex.split(command)]
        print(shlex.join(words), flush=True)
        program = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", *words]
        if code := subprocess.run(program, cwd=out, env=_with_benchmarks(), check=False).returncode:
            return code
    for cell in sorted((out / step.probed).glob("*/seed-*")) if step.probed else ():
        target = cell / "probes.json"
        if target.is_file():
            continue
        words = [
            "reldistill",
            "evaluate",
            str(cell),
            "--data",
            PHOTOS.format(data=data),
            "--probe",
            "knn",
            "linear",
            "--json",
        ]
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return done.returncode
        target.write_text(done.stdout, encoding="utf-8")
    return 0


def _with_benchmarks() -> dict[str, str]:
    """The environment, in which these benchmarks are found from any folder."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def main() -> int:
    """Work off the steps; the first exit status that is not 0, or 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; by default all")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for name in given.steps:
        if name not in STEPS:
            parser.error(f"no such step: {name}; there are {', '.join(STEPS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    codes = [run(STEPS[name], data=given.data.resolve(), out=given.out.resolve()) for name in given.steps or STEPS]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
