"""Prompts as the published model reads them, and their states: computed once, kept by digest."""

import hashlib
import json
import shutil

import pytest
import torch

from starflow_world.config.video import ASPECTS, latent_frames, load_video_config
from starflow_world.errors import CheckpointError, ConfigError, DataError
from starflow_world.io.files import write_tensors
from starflow_world.model.t5 import T5Text, identity
from tests.tiny_video import ALTERED, PUBLISHED, altered, tiny_t5

LENGTH = 40
TEXTS = ["a red video", "", "two dogs."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_t5(tmp_path_factory.mktemp("t5"))


def test_a_video_prompt_is_wrapped_as_published():
    assert PUBLISHED.prompt("A dog runs.", fps=16, aspect="16:9") == (
        "Noise Level 500:\nA video with 16 fps:\nA dog runs.\n\n in a 16:9 aspect ratio.\n"
    )
    assert PUBLISHED.prompt("", fps=24, aspect="9:21", task="extend") == (
        "Noise Level 500:\nA video with 24 fps:\n(extend) \n\n in a 9:21 aspect ratio.\n"
    )
    assert PUBLISHED.prompt("A dog", fps=0, aspect="1:1") == (
        "Noise Level 500:\nAn image:\nA dog\n\n in a 1:1 aspect ratio.\n"
    )
    assert "\n(v2v) A dog\n" in PUBLISHED.prompt("A dog", fps=16, aspect="1:1", task="v2v")
    with pytest.raises(ConfigError, match="task"):
        PUBLISHED.prompt("", fps=16, aspect="1:1", task="upscale")


def test_pictures_of_every_aspect_have_the_published_sizes():
    assert {name: PUBLISHED.size(name) for name in ASPECTS} == {
        "1:1": (640, 640), "3:2": (528, 784), "5:4": (576, 720), "16:9": (480, 848), "21:9": (416, 976),
        "2:3": (784, 528), "4:5": (720, 576), "9:16": (848, 480), "9:21": (976, 416),
    }
    assert PUBLISHED.grid("16:9") == (30, 53)
    with pytest.raises(ConfigError, match=r"aspect: expected one of 21:9, 16:9.*found '4:3'"):
        PUBLISHED.size("4:3")


def test_a_clip_of_81_frames_has_21_latent_frames():
    assert [latent_frames(frames) for frames in (1, 5, 81, 161, 481)] == [1, 2, 21, 41, 121]
    with pytest.raises(ConfigError, match=r"expected 1 \+ 4k, such as 81, found 80"):
        latent_frames(80)


def test_a_config_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected a YAML file or one of starflow-v-7b, found 'starflow-v-8b'"):
        load_video_config("starflow-v-8b")
    (tmp_path / "a.yaml").write_text("name: a\nflow: {channels: 48}\nfpss: 3\n")
    with pytest.raises(ConfigError, match="fps"):
        load_video_config(tmp_path / "a.yaml")
    (tmp_path / "long.yaml").write_text("name: a\n" + "# a comment\n" * 3000)
    with pytest.raises(ConfigError, match="expected YAML of at most 32768 bytes, found 36008 bytes"):
        load_video_config(tmp_path / "long.yaml")


def test_states_are_those_of_transformers_and_padding_is_zero(folder):
    from transformers import AutoTokenizer, T5EncoderModel

    states = T5Text(str(folder), LENGTH).encode(TEXTS)
    assert states.shape == (3, LENGTH, 24)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder).eval()
    for text, found in zip(TEXTS, states, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = model(input_ids=ids).last_hidden_state[0]  # alone, without padding
        count = ids.shape[1]
        assert torch.allclose(found[:count], expected, atol=1e-5)
        assert torch.equal(found[count:], torch.zeros(LENGTH - count, 24))
        assert found[:count].abs().sum() > 0


def test_a_prompt_is_encoded_once_and_then_read_from_disk(folder, tmp_path, monkeypatch):
    first = T5Text(str(folder), LENGTH, cache=tmp_path)
    states = first.encode([*TEXTS, TEXTS[0]])
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    later = T5Text(str(folder), LENGTH, cache=tmp_path)
    monkeypatch.setattr(later, "_encoder", lambda: pytest.fail("the encoder was loaded"))
    assert torch.equal(later.encode([*TEXTS, TEXTS[0]]), states)
    assert torch.equal(states[0], states[3])


def test_states_of_another_encoder_length_or_dtype_are_not_taken(folder, tmp_path, tmp_path_factory):
    T5Text(str(folder), LENGTH, cache=tmp_path).encode(["a"])
    other = tiny_t5(tmp_path_factory.mktemp("other"), seed=1)
    assert identity(folder) != identity(other)
    for source, length, dtype in ((other, LENGTH, torch.float32), (folder, 30, torch.float32),
                                  (folder, LENGTH, torch.bfloat16)):
        before = len(list(tmp_path.iterdir()))
        T5Text(str(source), length, cache=tmp_path, dtype=dtype).encode(["a"])
        assert len(list(tmp_path.iterdir())) == before + 1


def test_the_identity_of_an_encoder_follows_the_content_of_its_large_files_too(tmp_path):
    found = set()
    for content in (b"\0" * (5 << 20), b"\1" * (5 << 20), b"\0" * (5 << 20) + b"\0"):
        (tmp_path / "model.safetensors").write_bytes(content)
        found.add(identity(tmp_path))
    assert len(found) == 3


def test_damage_to_kept_states_is_noticed(folder, tmp_path):
    T5Text(str(folder), LENGTH, cache=tmp_path).encode(["a"])
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="digest"):
        T5Text(str(folder), LENGTH, cache=tmp_path).encode(["a"])


def test_a_prompt_that_does_not_fit_is_refused_not_cut(folder):
    with pytest.raises(DataError, match="expected at most 40 tokens, found"):
        T5Text(str(folder), LENGTH).encode(["a dog " * 20])


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="expected a T5 encoder"):
        T5Text(str(tmp_path), LENGTH).encode(["a"])
    with pytest.raises(CheckpointError, match="expected a folder, or user/name as on the Hugging Face hub"):
        T5Text("no folder and no name", LENGTH)


T5_TENSOR = "encoder.block.0.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(("how", "said"), ALTERED.items())
def test_an_encoder_without_all_its_numbers_is_one_error_and_leaves_no_states(folder, tmp_path, how, said):
    wrong = altered(shutil.copytree(folder, tmp_path / "t5"), T5_TENSOR, how)
    with pytest.raises(CheckpointError, match=f"t5: expected all tensors of a T5 encoder, .*{said}"):
        T5Text(str(wrong), LENGTH, cache=tmp_path / "prompts").encode(["a"])
    assert not (tmp_path / "prompts").exists()


def test_states_that_were_kept_before_encoders_were_checked_are_not_read(folder, tmp_path):
    facts = ["a", LENGTH, str(torch.float32), identity(folder)]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    write_tensors(tmp_path / f"{name}.safetensors", {"states": torch.full((LENGTH, 24), 9.0)}, sealed=True)
    assert T5Text(str(folder), LENGTH, cache=tmp_path).encode(["a"]).abs().max() < 9


def test_a_whole_t5_is_read_as_its_encoder(folder, tmp_path):
    whole = altered(shutil.copytree(folder, tmp_path / "t5"), "lm_head.weight", "unknown")
    assert torch.equal(T5Text(str(whole), LENGTH).encode(TEXTS), T5Text(str(folder), LENGTH).encode(TEXTS))


def test_a_prompt_is_counted_without_the_weights(folder, tmp_path):
    lean = shutil.copytree(folder, tmp_path / "t5", ignore=shutil.ignore_patterns("*.safetensors"))
    T5Text(str(lean), LENGTH).check("a dog")
    with pytest.raises(DataError, match="expected at most 40 tokens"):
        T5Text(str(lean), LENGTH).check("a dog " * 20)
