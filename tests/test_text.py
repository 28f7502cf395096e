"""Text of others is shown as it is, and does nothing."""

import html.parser

import markdown  # tensorboard takes it
import pytest

from dd_keras.utils import tables, text

HARMFUL = [
    "<img src=x onerror=alert(1)>",
    "</td></table><script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![image](http://example.com/x.png)",
    "<http://example.com>",
    "**bold** and `code` and _emphasis_",
    "a | b",
    "backslash \\ and \\| and \\[x]",
    "&lt;b&gt; &amp; &#60;",
    "snake_case_name and __init__",
]


class Page(html.parser.HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(markdown.markdown(page, extensions=["tables"]))

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not attributes or tag in ("td", "th")  # of their alignment

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("value", HARMFUL)
def test_markdown_shows_it_as_it_is(value):
    page = Page(f"- **name**: {text.markdown(value)}")
    assert page.tags == {"ul", "li", "strong"}
    assert page.text.strip() == f"name: {value}"


@pytest.mark.parametrize("value", HARMFUL)
def test_tables_in_markdown_show_it_as_it_is(value):
    rows = [(text.markdown(value), "1")]
    page = Page(tables.render(("name", "number"), rows, "markdown"))
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert value in page.text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain, été, 猫 (7)", "plain, été, 猫 (7)"),
        ("a\nb\r\t", r"a\nb\r\t"),
        ("\x1b[31m\x07\x9b", r"\x1b[31m\x07\x9b"),
        ("caf\udce9 \u202e", r"caf\udce9 \u202e"),
        (7, "7"),
    ],
)
def test_printable(value, shown):
    assert text.printable(value) == shown
    assert text.printable(value).isprintable()


def test_a_line_stays_a_line():
    page = Page(f"- {text.markdown('a' + chr(10) + '# title')}")
    assert page.tags == {"ul", "li"}
    assert page.text.strip() == r"a\n# title"
