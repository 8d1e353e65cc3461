"""The studio as a Space: the page of `hf-taskvec studio`, open to everybody."""

from __future__ import annotations

import threading

from hf_taskvec.command.studio import StudioSettings, desk_of
from hf_taskvec.studio.page import serve

if __name__ == "__main__":
    serve(desk_of(StudioSettings(host="0.0.0.0")), server_name="0.0.0.0", server_port=7860)
    threading.Event().wait()
