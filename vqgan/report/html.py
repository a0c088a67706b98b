"""Templates rendered as pages that need nothing else: no network, no script, no other file."""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vqgan.report import line_chart as chart

OPEN = 12
"""Items of a long list that are open when the page is; the rest is behind a line."""


def render_page(template: Path, **values: object) -> str:
    """Renders a template, which may extend `base.html.jinja` and import `parts.html.jinja` of this folder."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "duration": duration}
    return environment.get_template(template.name).render(chart=chart, open=OPEN, **values)


def data_uri(image: Image.Image) -> str:
    """An image as the `src` of an img element."""
    png = io.BytesIO()
    image.save(png, "PNG", optimize=True)
    return png_uri(png.getvalue())


def png_uri(png: bytes) -> str:
    """The bytes of a PNG file as the `src` of an img element."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def duration(seconds: float) -> str:
    """`3 h 08 min`, `8 min 05 s`, `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
