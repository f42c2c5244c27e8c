"""The device that a user names."""

import torch

from starflow_world.errors import ConfigError


def read_device(name: str) -> torch.device:
    """Return the device of a name such as cpu, cuda or cuda:1; auto: a GPU if there is one. Raises ConfigError for a
    name that is none, and for a device that this machine lacks."""
    known = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(known if name == "auto" else name)
        torch.zeros(1, device=device).item()  # a name may be valid without a device behind it
    except Exception as error:  # torch raises many kinds of errors for devices
        reason = str(error).partition("\n")[0]
        expected = f"device: expected one of this machine (auto, cpu{', cuda' * torch.cuda.is_available()})"
        raise ConfigError(f"{expected}, found {name!r:.40}: {reason:.120}") from None
    return device
