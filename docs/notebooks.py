"""Each guide as a notebook to download, with the outputs of the build.

MyST-NB runs the guides and keeps the notebooks beside the site; this puts them
into it, and a link at the top of each guide's page.
"""

import pathlib
import shutil


def _add_link(app, page, template, context, doctree):
    del app, template, doctree
    if page.startswith("guides/") and "body" in context:
        name = page.partition("/")[2]
        # In the site, a guide's page and its notebook share their folder.
        context["body"] = (
            f'<p class="notebook"><a href="{name}.ipynb" download>'
            f"Download this guide as a notebook</a></p>{context['body']}"
        )


def _copy(app, error):
    if error is None and app.builder.name == "html":
        site = pathlib.Path(app.outdir)
        executed = site.parent / "jupyter_execute" / "guides"
        for notebook in executed.glob("*.ipynb"):
            shutil.copy(notebook, site / "guides" / notebook.name)


def setup(app):
    """Registers what is done for each page, and at the end."""
    app.connect("html-page-context", _add_link)
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True}
