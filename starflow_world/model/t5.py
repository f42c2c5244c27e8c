"""Text for published models: hidden states of a T5 encoder, computed once per prompt and cached on disk.

As published: prompts are padded to L tokens, padding is masked inside T5, its states are zero, and the flow attends to
them. A prompt of more than L tokens raises DataError (the published program truncates it, and with it the aspect at its
end). Weights are read as safetensors only.
"""

import gc
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starflow_world.errors import CheckpointError, DataError
from starflow_world.io.files import is_file, is_folder, read_tensors, write_tensors
from starflow_world.io.hub import fetch
from starflow_world.io.pretrained import check_pretrained, unlogged

FILES = ("*.json", "*.safetensors", "*.model")
SMALL, SAMPLES, SAMPLE = 1 << 22, 64, 1 << 16
DECODER = ("decoder.", "lm_head.")
"""Beginnings of names of a whole T5 that its encoder has no use for."""
CHECKED = 2
"""Edition of kept states: those of the first were kept without a check of the encoder's tensors, and are not read."""


class T5Text:
    """T5 encoder from a local folder or hub name: strings -> (B, L, width).

    `cache`: folder for hidden states, one file per prompt; the encoder is loaded if a prompt is not cached. A file is
    named by the digest of prompt, length, dtype and encoder, so states of another encoder are never used.
    """

    def __init__(
        self, source: str, length: int, *, cache: Path | str | None = None, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.folder, self.length = local_folder(source, FILES), length
        self.device, self.dtype = torch.device(device), dtype
        self.cache = None if cache is None else Path(cache)
        self._identity: str | None = None
        self._tokenizer: Any = None
        self._model: Any = None
        self._last: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode texts (B) as states (B, L, width) in float32, on the device. Those of one call are kept for the next.
        """
        last = self._last
        self._last = {text: last[text] if text in last else self._states(text) for text in dict.fromkeys(texts)}
        return torch.stack([self._last[text] for text in texts]).to(self.device)

    def _states(self, text: str) -> Tensor:
        path = None if self.cache is None else self.cache / f"{self._digest(text)}.safetensors"
        if path is not None and is_file(path):
            tensors, _ = read_tensors(path, sealed=True)
            states = tensors.get("states", torch.empty(0))
            if states.ndim == 2 and len(states) == self.length:
                return states.float()
            raise CheckpointError(f"{path}: expected {self.length} states, found {tuple(states.shape)}; delete it")
        states = self._run(text)
        if path is not None:
            write_tensors(path, {"states": states}, {"text": text, "encoder": str(self.folder)}, sealed=True)
        return states

    def _digest(self, text: str) -> str:
        if self._identity is None:
            self._identity = identity(self.folder)
        facts = [CHECKED, text, self.length, str(self.dtype), self._identity]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def check(self, text: str) -> None:
        """Raise DataError for a text of more tokens than the encoder takes; loads the tokenizer only."""
        if self.cache is not None and is_file(self.cache / f"{self._digest(text)}.safetensors"):
            return
        count = len(self._tokens()(text).input_ids)
        if count > self.length:
            raise DataError(f"prompt: expected at most {self.length} tokens, found {count}; shorten {text!r:.80}")

    @torch.no_grad()
    def _run(self, text: str) -> Tensor:
        self.check(text)
        model, tokenizer = self._encoder(), self._tokens()
        inputs = tokenizer(text, padding="max_length", max_length=self.length, return_tensors="pt").to(self.device)
        ids, present = inputs.input_ids, inputs.attention_mask
        with torch.autocast(self.device.type, enabled=False):  # equal states under any autocast of the caller
            states = model(input_ids=ids, attention_mask=present).last_hidden_state
        return (states * present[:, :, None])[0].float().cpu()

    def _tokens(self) -> Any:
        """Load the tokenizer, once; it takes no weights."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            with self._one_error():
                self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        return self._tokenizer

    def release(self) -> None:
        """Give the memory of the encoder back; it is loaded again for the next prompt that is not kept."""
        if self._model is not None:
            self._model = None
            gc.collect()  # it may refer to itself

    def _encoder(self) -> Any:
        """Load the encoder, once. Raises CheckpointError, also for tensors that are missing, unknown or not finite."""
        if self._model is None:
            from transformers import T5EncoderModel

            with self._one_error(), unlogged("transformers"):
                model, loading = T5EncoderModel.from_pretrained(
                    self.folder, local_files_only=True, use_safetensors=True, dtype=self.dtype,
                    output_loading_info=True,
                )
            model = model.to(self.device).eval()
            check_pretrained(self.folder, "a T5 encoder", model, loading, unused=DECODER)
            self._model = model
        return self._model

    @contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # transformers raises many kinds of errors
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{self.folder}: expected a T5 encoder, found {reason:.200}") from None


def local_folder(source: str, files: Sequence[str]) -> Path:
    """Return `source` if it is a folder, else a local copy of the hub's files, downloaded if necessary."""
    return Path(source) if is_folder(source) else fetch(source, files)


def identity(folder: Path) -> str:
    """Return a digest of the files of a model: all bytes of small ones, size and samples of large ones."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            if size <= SMALL:
                digest.update(file.read())
            for index in range(SAMPLES if size > SMALL else 0):
                file.seek(index * (size - SAMPLE) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()
