"""The page itself, in Gradio: pictures in, what the models say of them out. Nothing in it comes from elsewhere."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vinvl.asking.given import ExamplePicture
from vinvl.asking.seen import Seen, able, answered, called, captioned, differing, look, pictures_needed, scored
from vinvl.pages.pages import rendered
from vinvl.predictor import Predictor
from vinvl.run.errors import UserError, say
from vinvl.run.signals import Interrupted

SESSIONS = 50  # open pages whose pictures' regions are kept; the oldest gives way
UNUSED = 3600  # seconds after which what a page has been given is forgotten
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}


@contextmanager
def gradio(folder: Path) -> Iterator[Any]:
    """The package, told to send nothing and to keep what is uploaded in `folder`; UserError if it is missing."""
    before = dict(os.environ)
    os.environ.update(QUIET | {"GRADIO_TEMP_DIR": str(folder)})
    try:
        try:
            import gradio as package
        except ImportError:
            raise UserError("The page is made with Gradio, which is not installed: pip install 'vinvl[app]'.") from None
        logging.getLogger("httpx").setLevel(logging.WARNING)
        yield package
    finally:
        os.environ.clear()
        os.environ.update(before)


def serve(
    models: Sequence[Predictor],
    examples: Sequence[ExamplePicture],
    *,
    host: str,
    port: int | None,
    most_megabytes: int,
) -> None:
    """Serves the page until the process is told to end; what was uploaded does not outlive the look at it.

    Args:
        examples: picture files to choose from.
        port: None for the first that is free from 7860 on.
        most_megabytes: of an uploaded file.

    Raises:
        UserError: Gradio is missing, or the port is not free.
    """
    with TemporaryDirectory(prefix="vinvl-app-") as folder, gradio(Path(folder)) as gr:
        page = page_of(gr, models, examples)
        try:
            _, address, _ = page.launch(
                server_name=host, server_port=port, max_file_size=most_megabytes * 2**20, **look_of(gr), **CLOSED
            )
        except OSError:
            raise UserError(
                f"No page can be served at host={host} port={'null' if port is None else port}: pass another port, "
                "null for one that is free, and for host an address of this machine."
            ) from None
        try:
            say(f"Open {address} in a browser. Ctrl-C ends it.")
            threading.Event().wait()
        except Interrupted as stopped:
            say(f"{stopped}.")
            sys.exit(stopped.exit_code)
        finally:
            page.close(verbose=False)


BARE: dict[str, Any] = {"apply_default_css": False, "padding": False}  # our own styles alone
CLOSED: dict[str, Any] = {  # nothing goes out, nothing is recorded, and no page of Gradio's own is offered
    "share": False, "quiet": True, "prevent_thread_lock": True, "footer_links": [], "run_history": False,
    "enable_monitoring": False, "ssr_mode": False, "pwa": False, "mcp_server": False,
    "state_session_capacity": SESSIONS,
}  # fmt: skip


def look_of(gr: Any) -> dict[str, Any]:
    """Fonts of the system, and the styles and the script of our own pages."""
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    return {
        "theme": gr.themes.Base(**fonts, primary_hue="blue", neutral_hue="gray"),
        "head": rendered("ask_head.html"),
    }


def page_of(gr: Any, models: Sequence[Predictor], examples: Sequence[ExamplePicture]) -> Any:
    """The page's parts, by what the models can, and what happens when they are used."""
    thumbnails = [one.small for one in examples]
    with gr.Blocks(title="Ask a picture", analytics_enabled=False, delete_cache=(60, 60)) as page:
        gr.HTML(
            rendered("ask.html", show="heading", models=[(called(one), one.trained.task) for one in models]), **BARE
        )
        with gr.Row(elem_classes="parts"):
            with gr.Column(min_width=320):
                sides = ("Left picture", "Right picture") if pictures_needed(models) == 2 else ("Picture",)
                slots = [_slot(gr, side, thumbnails) for side in sides]
            with gr.Column(min_width=320):
                results = _asking(gr, models, [state for _, _, state, _ in slots])
        for upload, gallery, state, shown in slots:
            outputs = [upload, state, shown, *results]

            def show(path: str | None, emptied: int = len(results)) -> list[Any]:
                seen, html = _seen(models, path)
                return [None, seen, html, *[""] * emptied]

            def given(path: str | None, show: Callable[..., list[Any]] = show) -> list[Any]:
                try:
                    return show(path)
                finally:
                    _forget(path)

            def chosen(event: gr.SelectData, show: Callable[..., list[Any]] = show) -> list[Any]:
                return show(examples[event.index].place)

            _on(upload.upload, given, [upload], outputs)
            if gallery is not None:
                _on(gallery.select, chosen, None, outputs)
    return page


def _slot(gr: Any, side: str, thumbnails: list[Any]) -> tuple[Any, Any, Any, Any]:
    """The upload of a picture, the examples if there are any, what is known of the picture, and where it is shown."""
    upload = gr.File(label=side, height=120, elem_classes="upload")
    gallery = None
    if thumbnails:
        gallery = gr.Gallery(
            thumbnails, label="or take one of these", columns=6, height="auto", allow_preview=False, buttons=[],
            object_fit="cover", elem_classes="examples", interactive=False,
        )  # fmt: skip
    return upload, gallery, gr.State(None, time_to_live=UNUSED), gr.HTML(**BARE)


def _asking(gr: Any, models: Sequence[Predictor], states: list[Any]) -> list[Any]:
    """The questions, captions and sentences that these models take; where what they say is shown."""
    results = []
    if able(models, "ask"):
        question = gr.Textbox(label="Question", placeholder="what is on the table?", max_length=500)
        button, answers = gr.Button("Ask", variant="primary"), gr.HTML(**BARE)
        ask = _telling("answers", states, lambda pictures, text: answered(models, pictures[0], text))
        _on([question.submit, button.click], ask, [*states, question], [answers])
        results.append(answers)
    if able(models, "caption"):
        button, captions = gr.Button("Write a caption", variant="primary"), gr.HTML(**BARE)
        _on(
            button.click,
            _telling("captions", states, lambda pictures, _: captioned(models, pictures[0])),
            states,
            [captions],
        )
        results.append(captions)
    if able(models, "score"):
        about = "both pictures" if len(states) == 2 else "the picture"
        text = gr.Textbox(label=f"Sentence about {about}", placeholder="a dog lies on a sofa", max_length=500)
        button, scores = gr.Button("Score it", variant="primary"), gr.HTML(**BARE)
        score = _telling("scores", states, lambda pictures, text: scored(models, pictures, text))
        _on([text.submit, button.click], score, [*states, text], [scores])
        results.append(scores)
    return results


def _on(events: Any, does: Callable[..., Any], inputs: Any, outputs: list[Any]) -> None:
    """One at a time, whoever asks: the models have one set of cores, or one device."""
    for event in events if isinstance(events, list) else [events]:
        event(
            does, inputs, outputs, show_progress="minimal", concurrency_limit=1, concurrency_id="models",
            api_visibility="private",
        )  # fmt: skip


def _telling(
    show: str, states: list[Any], work: Callable[[list[Seen], str], list[dict[str, Any]]]
) -> Callable[..., str]:
    """What answers an event with a part of ask.html, or with the sentence that says why there is none."""

    def tell(*values: Any) -> str:
        pictures, text = values[: len(states)], "".join(values[len(states) :])
        given = [one for one in pictures if one is not None]
        try:
            if pictures[0] is None:
                raise UserError("Give a picture first.")
            return rendered("ask.html", show=show, text=text, told=work(given, text))
        except UserError as error:
            return _problem(error)

    return tell


def _seen(models: Sequence[Predictor], path: str | None) -> tuple[Seen | None, str]:
    """A picture file as the models have it, and the part of the page that shows it or says what is wrong with it."""
    if path is None:
        return None, ""
    try:
        seen = look(models, path)
    except UserError as error:
        return None, _problem(error)
    return seen, rendered("ask.html", show="regions", drawings=differing(models, seen))


def _problem(error: UserError) -> str:
    return rendered("ask.html", show="problem", sentence=str(error))


def _forget(path: str | None) -> None:
    """Removes an uploaded file, and the folder that it has for itself."""
    if path is not None:
        Path(path).unlink(missing_ok=True)
        with suppress(OSError):  # another page has been given the same file
            Path(path).parent.rmdir()
