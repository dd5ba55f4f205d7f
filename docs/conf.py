import os
from importlib.metadata import version as installed_version

os.environ.pop("MPLBACKEND", None)  # figures of the tutorial are shown in the page

project = "bkgmatch"
author = "bkgmatch developers"
copyright = "2026, bkgmatch developers"
release = installed_version("bkgmatch")
version = ".".join(release.split(".")[:2])

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore = [("py:class", "concurrent.futures.Executor")]  # of Python itself

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": "spec, class_alias, reference_file_types",
}
autodoc_typehints = "none"  # the docstrings name the types
numpydoc_show_class_members = False

# The tutorial runs in a temporary folder; the log of the steps is left out.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_output_stderr = "remove"

# Pictures are made by the code beside them, of simulated exposures.
plot_include_source = True
plot_formats = [("png", 80)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_rcparams = {"image.cmap": "viridis", "font.size": 9}
plot_apply_rcparams = True

html_theme = "pydata_sphinx_theme"
html_title = "bkgmatch"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False
