"""Reports as pages of HTML: one file each, with nothing to load or to run.

content.py says what there is to tell, images.py has the images, comparison.py
what several classifiers are compared by; page.py makes pages of it, by the
templates in templates/. Pages take Jinja2 and matplotlib, of the extra `apps`.
"""

from dd_keras.evaluation.html_report.comparison import compare_to_html
from dd_keras.evaluation.html_report.images import AttackedImages
from dd_keras.evaluation.html_report.page import UNIT, require_libraries, write

__all__ = [
    "UNIT",
    "AttackedImages",
    "compare_to_html",
    "require_libraries",
    "write",
]
