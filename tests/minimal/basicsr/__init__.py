"""What recipes for basicsr are tested on: models of our own, not the package."""
