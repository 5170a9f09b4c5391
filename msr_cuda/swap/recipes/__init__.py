"""Recipes by library: ``<library>.py`` is imported by ``fuse`` where ``<library>`` already is."""
