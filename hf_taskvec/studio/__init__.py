"""The studio: sliders merge vectors, bars tell what that does; only `page` needs Gradio (extra `studio`)."""

from hf_taskvec.studio.bank import Bank, Lever, Moment
from hf_taskvec.studio.bench import Bench
from hf_taskvec.studio.opening import VECTORS, open_bank
from hf_taskvec.studio.setting import Setting

__all__ = ["VECTORS", "Bank", "Bench", "Lever", "Moment", "Setting", "open_bank"]
