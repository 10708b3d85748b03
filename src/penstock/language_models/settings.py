"""Settings that say which language model is used, and where it lives."""

import os
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Which language model is read, on which device and in which precision."""

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

    def resolve(self) -> "LanguageModelConfig":
        """The same with the path of a local folder absolute, so that it is found from every directory.

        Raises:
            ValueError: a setting would have no effect.
        """
        if self.model == "embedded":
            self._refuse("in the package", revision=self.revision, trust_remote_code=self.trust_remote_code or None)
            return self
        folder = Path(self.model).expanduser()
        if not folder.is_dir():
            return self
        self._refuse("in a local folder", revision=self.revision)
        return replace(self, model=os.path.abspath(folder))

    def _refuse(self, where: str, **idle: object) -> None:
        for name, value in idle.items():
            if value is not None:
                raise ValueError(
                    f"{name}={value!r} has no effect with model={self.model!r}, which lies {where}. Leave it out."
                )
