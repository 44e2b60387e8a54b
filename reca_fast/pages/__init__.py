"""HTML pages that are one file each: they open without a server, load nothing, and follow the reader's light or dark.

A template of another room begins with `{% extends "page.html" %}` and fills the blocks `main` and, where it has one,
`script`; `{% import "parts.html" as parts %}` gives it the pieces that pages share. Whatever is put into a template is
escaped, so that a prompt is always text and never a tag.
"""

from .embed import embed
from .render import render

__all__ = ["embed", "render"]
