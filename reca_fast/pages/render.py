"""A template filled in."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

SHELL = Path(__file__).parent


def render(template: Path, *, title: str, **values: object) -> str:
    """The HTML of a template that extends `page.html`.

    Args:
        template: its file, which lies beside the code that fills it.
        title: of the page, in the browser's tab and on top of the page.
        values: what the template names. Text is escaped.

    Raises:
        jinja2.UndefinedError: the template names what is not given.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, SHELL]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(title=title, **values)
