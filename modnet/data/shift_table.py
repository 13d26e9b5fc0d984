"""The constants of the shift suites, all of them: with the code they fix every changed image, bit for bit.

They were chosen by eye on Fashion-MNIST and digits, before any network was trained, so that a person still recognises
what is shown. Lengths are shares of the image's side, so that a suite means the same at 8 and at 224 pixels.
"""

from __future__ import annotations

from modnet.randomness import Key

SHIFT_VERSION = 1  # raise it with any change of a constant or of the code that uses it
SHIFT_SEED = 20_240_415

RENDITIONS: dict[str, dict[str, float | tuple[int, ...]]] = {
    "sketch": {"radius": 0.05, "floor": 24},
    "emboss": {"reach": 0.036, "gain": 1.0},
    "poster": {"smooth": 0.036, "tones": (96, 0, 176, 255)},
    "silhouette": {"threshold": 0.625, "ink": 0, "paper": 255},
    "halftone": {"period": 0.143},
    "inverted": {},
    "stroke": {"radius": 0.036, "gain": 2.0},
    "texture": {"period": 0.16, "cell": 0.072, "gain": 1.75, "bright": (140, 255), "dark": (0, 56)},
}

# One value for each severity 1 … 5. "share" is of the image's side.
CORRUPTIONS: dict[str, dict[str, tuple[float, ...]]] = {
    "gaussian_noise": {"deviation": (0.06, 0.10, 0.15, 0.21, 0.28)},  # of the range of values
    "shot_noise": {"photons": (60, 25, 12, 7, 4)},  # counted where a pixel is white
    "impulse_noise": {"pixels": (0.02, 0.05, 0.09, 0.14, 0.20)},  # share that turns black or white
    "defocus_blur": {"share": (0.025, 0.04, 0.055, 0.075, 0.10)},  # radius of the disk
    "glass_blur": {"share": (0.036,) * 5, "pixels": (0.3, 0.5, 0.75, 1.0, 1.0), "rounds": (1, 1, 1, 1, 2)},
    "motion_blur": {"share": (0.10, 0.15, 0.20, 0.27, 0.35)},  # length of the line
    "zoom_blur": {"zoom": (1.12, 1.20, 1.28, 1.40, 1.55)},  # largest zoom of the mean
    "snow": {"pixels": (0.02, 0.04, 0.06, 0.08, 0.10), "whiten": (0.05, 0.10, 0.15, 0.20, 0.25)},
    "fog": {"opacity": (0.30, 0.42, 0.54, 0.66, 0.76)},
    "brightness": {"lift": (0.10, 0.20, 0.30, 0.40, 0.50)},
    "contrast": {"factor": (0.50, 0.40, 0.30, 0.20, 0.10)},
    "elastic_transform": {"share": (0.02, 0.03, 0.04, 0.055, 0.07)},  # standard deviation of the way a point moves
    "pixelate": {"factor": (0.70, 0.55, 0.45, 0.38, 0.32)},  # of the side that is kept
    "jpeg_compression": {"quality": (30, 20, 13, 8, 5)},
}


def severity_of(name: str, constant: str, severity: int) -> float:
    """A corruption's constant at a severity of 1 … 5."""
    return CORRUPTIONS[name][constant][severity - 1]


def shift_key(name: str) -> Key:
    """The key that a change draws its random numbers from."""
    return Key.of(SHIFT_SEED, name)
