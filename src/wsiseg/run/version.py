"""The version of wsiseg, which nobody needs to import the package's face for."""

__version__ = "0.1.0"
