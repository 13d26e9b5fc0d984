"""Draw a shift suite as one picture: a row for each change, a column for each class.

python scripts/contact_sheet.py fashion-mnist r sheet.png
"""

from __future__ import annotations

import sys

import torch
from PIL import Image, ImageDraw

from modnet.data import load_suite
from modnet.data.shifts import Parts
from modnet.recipe.sources import Source

CELL, MARGIN, LABEL = 84, 4, 150  # pixels


def main(source: str, shift: str, target: str) -> None:
    """Write the sheet of one source and suite to ``target``."""
    suite = load_suite(f"{source}-{shift}", Source(name=source), shift)
    test = suite.dataset.test
    rows = torch.stack([(test.labels == c).nonzero()[0, 0] for c in range(len(suite.dataset.classes))])
    few = test.take(rows)
    assert isinstance(suite.parts, Parts)
    every = {"original": few} | dict(Parts(few, suite.parts.changes))
    step = CELL + MARGIN
    sheet = Image.new("RGB", (LABEL + step * len(rows), step * len(every)), (128, 128, 128))
    for line, (name, split) in enumerate(every.items()):
        ImageDraw.Draw(sheet).text((2, line * step + CELL // 2), name)
        for column, image in enumerate(split.images):
            pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
            cell = Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST)
            sheet.paste(cell, (LABEL + column * step, line * step))
    sheet.save(target)


if __name__ == "__main__":
    main(*sys.argv[1:4])
