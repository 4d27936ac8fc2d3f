"""Peak memory of a frozen fit from files: 20,000 images beside 2,000."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from common import arguments, pictures
from PIL import Image

FIT = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from common import weights_file
from sktl import PretrainedImageClassifier
paths = sorted(map(str, Path({files!r}).glob("*.jpg")))[:{images}]
y = [i % 10 for i in range(len(paths))]
clf = PretrainedImageClassifier("resnet18", weights=weights_file("resnet18"), image_size=64)
clf.set_params(optimizer="adamw", max_epochs=10).fit(paths, y)
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def main() -> None:
    """Print the peak memory of both fits in MB."""
    args = arguments(__doc__, few=2000, many=20000, size=64)
    with tempfile.TemporaryDirectory() as files:
        X, _ = pictures(2000, args.size)
        for i in range(args.many):
            picture = X[i % len(X)].copy()
            picture[0, 0] = i % 256, i // 256, 0  # no two files are the same
            Image.fromarray(picture).save(Path(files, f"{i:06}.jpg"), quality=95)
        peaks = []
        for n in (args.few, args.many):
            code = FIT.format(folder=sys.path[0], files=files, images=n)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            peaks.append(int(done.stdout))
            print(f"  {n:6} images: {peaks[-1]} MB")
        print(f"  {peaks[1] - peaks[0]} MB more")


if __name__ == "__main__":
    main()
