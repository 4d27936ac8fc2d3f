"""The version of sktl: files name it, and the package is built with it."""

__version__ = "0.1.0"
