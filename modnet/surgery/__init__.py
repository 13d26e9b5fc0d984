"""Surgery: chain in, chain out, no training."""

from modnet.surgery.adapting import adapt
from modnet.surgery.cutting import assemble, cut
from modnet.surgery.hybrid import hybrid
from modnet.surgery.pruning import with_mediators, with_nearest_links
from modnet.surgery.stitching import fold_stitches, least_squares_stitch, stitched, without_stitches
from modnet.surgery.transplant import Family, Report, family_of, transplant

__all__ = [
    "Family",
    "Report",
    "adapt",
    "assemble",
    "cut",
    "family_of",
    "fold_stitches",
    "hybrid",
    "least_squares_stitch",
    "stitched",
    "transplant",
    "with_mediators",
    "with_nearest_links",
    "without_stitches",
]
