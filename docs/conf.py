from importlib.metadata import version as installed_version

project = "bkgmatch"
author = "bkgmatch developers"
copyright = "2026, bkgmatch developers"
release = installed_version("bkgmatch")
version = ".".join(release.split(".")[:2])

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
exclude_patterns = ["_build"]
nitpicky = False

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": "spec, class_alias, reference_file_types",
}
autodoc_typehints = "none"  # the docstrings name the types
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "bkgmatch"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False
