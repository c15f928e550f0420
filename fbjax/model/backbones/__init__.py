"""The backbones of patch features; each registers itself, with the kinds of weight file that it takes."""
