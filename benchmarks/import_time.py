"""Import sktl, and import just what it stands on."""

from __future__ import annotations

import subprocess
import sys

from common import arguments, report, take_turns


def main() -> None:
    """Run all sides and print how they compare."""
    args = arguments(__doc__, repeats=7)

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    base = "import torch, torchvision, sklearn.base, sklearn.utils"
    medians = take_turns(
        {
            "torch, torchvision and scikit-learn": lambda: run(base),
            "and skorch": lambda: run(f"{base}, skorch"),
            "sktl": lambda: run("import sktl"),
        },
        args.repeats,
    )
    report(medians, "torch, torchvision and scikit-learn")


if __name__ == "__main__":
    main()
