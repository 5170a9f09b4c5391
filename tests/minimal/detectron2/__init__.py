"""What recipes for detectron2 are tested on: models of our own, not the package."""
