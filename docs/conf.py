"""How Sphinx builds these pages: offline, warnings are errors (`make docs`)."""

project = "nutlet"
author = "the nutlet authors"
copyright = "the nutlet authors, Apache-2.0"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "nutlet"
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
