# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Sphinx: `make docs` builds docs/ into build/docs, with warnings as errors."""

import hf_ssl


project = "hf_ssl"
author = "The hf_ssl authors"
copyright = "2026, The hf_ssl authors"
version = release = hf_ssl.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "published_template.md"]  # the template of published.md
html_theme = "furo"
html_title = "hf_ssl"
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]

# Headings are link targets, as on a forge.
myst_heading_anchors = 3
# Notebooks are run by tests/test_notebooks.py; here they are shown as they are.
nb_execution_mode = "off"

# Docstrings follow transformers: single backticks are code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
