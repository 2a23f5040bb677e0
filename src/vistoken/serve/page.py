"""The web page at ``/``: mounted on the server's own application, in the same process.

app = create_app(engines, settings, extend=page_for(engines, settings))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vistoken.core.errors import MachineError
from vistoken.serve.page_guard import PageGuard
from vistoken.serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vistoken.serve.engine import EmbeddedEngine

_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def page_for(
    engines: Mapping[str, EmbeddedEngine], settings: ServeSettings | None = None
) -> Callable[[FastAPI], FastAPI]:
    """What :func:`~vistoken.serve.app.create_app` takes as ``extend`` to have the page at ``/``.

    Args:
        engines: The models that the page offers, by name.
        settings: Limits on pictures; the server's.

    Returns:
        A function that mounts the page.

    Raises:
        MachineError: gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise MachineError(
            "the web page needs gradio, which is not installed; run "
            "pip install 'vistoken[serve]', or serve without it: --no-page"
        )
    for name, value in _QUIET.items():  # read when gradio is imported
        os.environ.setdefault(name, value)
    settings = settings or ServeSettings()

    def mount(app: FastAPI) -> FastAPI:
        return _mount(app, engines, settings)

    return mount


def _mount(app: FastAPI, engines: Mapping[str, EmbeddedEngine], settings: ServeSettings) -> FastAPI:
    import gradio

    from vistoken.serve.page_layout import lay_out_page

    assets = resources.files("vistoken.serve") / "assets"
    fonts = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    theme: Any = gradio.themes.Base(font=fonts[0], font_mono=fonts[1])
    mounted: FastAPI = gradio.mount_gradio_app(
        app,
        lay_out_page(engines, settings),
        path="/",
        theme=theme,
        css=(assets / "page.css").read_text(encoding="utf-8"),
        js=(assets / "page.js").read_text(encoding="utf-8"),
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=settings.max_body_bytes,
        app_kwargs={"docs_url": None, "redoc_url": None},
    )
    mounted.add_middleware(PageGuard)
    return mounted
