"""What recipes for YOLOX are tested on: models of our own, not the package."""
