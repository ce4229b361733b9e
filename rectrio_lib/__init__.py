"""RecTrio: find pictures that look alike, with triplet networks."""

from importlib.metadata import version

__version__ = version("rectrio")
