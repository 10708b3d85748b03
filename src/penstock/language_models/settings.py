"""Settings that say which language model is used, and where it lives."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    model: str = "embedded"
    """`embedded`, a local folder, or a name on the Hugging Face Hub."""
    dtype: str = "float32"
    """Precision of the language model; SAEs always train in float32."""
    device: str = "cpu"
    """Where the language model and the SAEs live: cpu, cuda, cuda:1, mps."""
    device_map: str | None = None
    """Passed to transformers to spread a large model, e.g. `auto`; SAEs stay on `device`."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for sources you trust."""
