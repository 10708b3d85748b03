"""Settings of the language model."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from penstock.devices import AUTO, resolve_device


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """The language model, its device and its precision."""

    model: str = "embedded"
    """`embedded`, a local folder, or a name on the Hugging Face Hub."""
    dtype: str = "float32"
    """Precision of the language model; SAEs always train in float32."""
    device: str = AUTO
    """Device of the language model and the SAEs: cpu, cuda or cuda:1; auto is cuda on a machine with a GPU."""
    device_map: str | None = None
    """Passed to transformers to spread a large model over devices, e.g. `auto`; SAEs stay on `device`."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for sources you trust."""

    def resolve(self, loaded_on: torch.device | None = None) -> "LanguageModelConfig":
        """Fill in the device, and make the path of a local folder absolute, so that it works in every directory.

        Args:
            loaded_on: The language model's device, if it is loaded. `auto` then means this device.

        Raises:
            ValueError: a setting would have no effect, or the model is on another device than the settings say.
        """
        decided = replace(self, device=self._device(loaded_on))
        if self.model == "embedded":
            self._refuse(
                "part of the package", revision=self.revision, trust_remote_code=self.trust_remote_code or None
            )
            return decided
        folder = Path(self.model).expanduser()
        if not folder.is_dir():
            return decided
        self._refuse("a local folder", revision=self.revision)
        return replace(decided, model=os.path.abspath(folder))

    def on_device(self, device: str) -> "LanguageModelConfig":
        """Return the same settings with language model and SAEs on one device."""
        return replace(self, device=device, device_map=None)

    def _device(self, loaded_on: torch.device | None) -> str:
        if loaded_on is None:
            return resolve_device(self.device)
        if self.device == AUTO:
            return str(loaded_on)
        asked = torch.device(resolve_device(self.device))
        # With a device_map the model is spread over devices, and `device` is that of the SAEs.
        if self.device_map is None and (asked.type != loaded_on.type or asked.index not in (None, loaded_on.index)):
            raise ValueError(
                f"device={self.device!r}, but the language model was loaded on {loaded_on}. Load it on that device, or "
                "leave device out to train on the model's device."
            )
        return self.device

    def _refuse(self, kind: str, **idle: object) -> None:
        for name, value in idle.items():
            if value is not None:
                raise ValueError(
                    f"{name}={value!r} has no effect with model={self.model!r}, which is {kind}. Leave it out."
                )
