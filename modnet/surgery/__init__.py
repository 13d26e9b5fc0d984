"""Surgery: chain in, chain out, no training."""

from modnet.surgery.adapting import adapt
from modnet.surgery.cutting import assemble, cut
from modnet.surgery.hybrid import hybrid
from modnet.surgery.stitching import fold_stitches, stitched, without_stitches
from modnet.surgery.transplant import Report, transplant

__all__ = [
    "Report",
    "adapt",
    "assemble",
    "cut",
    "fold_stitches",
    "hybrid",
    "stitched",
    "transplant",
    "without_stitches",
]
