"""Conditions: every space survives JSON, none is not zero, text is encoded whole or refused."""

import json
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces

from starflow_world.config.world import TextConfig
from starflow_world.errors import ActionError, ConfigError, DataError
from starflow_world.model.actions import ActionEncoder, flatten_action, flatten_actions, space_from_json, space_to_json
from starflow_world.model.text import TextEncoder, text_tokens

SPACES = [
    spaces.Discrete(7),
    spaces.Discrete(3, start=-1),
    spaces.Box(-1, 1, (2, 3), np.float32),
    spaces.Box(np.array([-np.inf, 0]), np.array([np.inf, 1e30]), dtype=np.float64),
    spaces.Box(0, 255, (4,), np.uint8),
    spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (1,), np.int64),
    spaces.Box(-0.1, 0.3, (), np.float32),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 1], [0, -2]]),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 2]),
    spaces.Dict(b=spaces.Discrete(2), a=spaces.Box(0, 1, (1,))),
    spaces.Tuple([spaces.Discrete(2), spaces.Dict(x=spaces.Tuple([spaces.MultiBinary(1)]))]),
]
TEXT = TextConfig("t5", length=12, width=16, layers=2, heads=2)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_survives_json(space):
    text = space_to_json(space)
    again = space_from_json(text)
    assert again == space
    assert space_to_json(again) == text
    assert isinstance(json.loads(text), dict)
    space.seed(0)
    for _ in range(5):
        action = space.sample()
        flat = flatten_action(again, action)
        assert flat.shape == (1 + spaces.flatdim(space),)
        assert flat.dtype == np.float32
        assert flat[0] == 1
        np.testing.assert_array_equal(flat[1:], np.asarray(spaces.flatten(space, action), np.float32))


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Sequence(spaces.Discrete(2)), spaces.Dict({1: SPACES[0]})])
def test_a_space_that_cannot_be_an_action_is_refused(space):
    with pytest.raises(ConfigError, match="expected Discrete"):
        space_to_json(spaces.Tuple([space]))


@pytest.mark.parametrize("text", [
    "", "[]", "null", "{", "{}", '{"type": "Text"}', '{"type": "Discrete"}', '{"type": "Discrete", "n": 0}',
    '{"type": "Discrete", "n": 1e400}', '{"type": "Discrete", "n": "7"}', f'{{"type": "Discrete", "n": {10**30}}}',
    '{"type": "Dict", "spaces": [1]}', '{"type": "Tuple", "spaces": 3}', '{"type": "Tuple", "spaces": [1]}',
    '{"type": "Box", "low": [0], "high": [1], "shape": [2], "dtype": "float32"}',
    '{"type": "Box", "low": [0], "high": [1], "shape": [1], "dtype": "object"}',
    '{"type": "Box", "low": ["a"], "high": [1], "shape": [1], "dtype": "float32"}',
    '{"type": "MultiDiscrete", "nvec": [-1], "start": [0]}', '{"type": "MultiBinary", "n": -1}', "[" * 100_000,
])
def test_text_that_describes_no_space_is_refused(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError, match="expected the JSON of a Gymnasium space"):
            space_from_json(text)


def test_no_action_is_not_an_action_of_zeros():
    space = spaces.Box(-1, 1, (2,))
    none, zeros = flatten_actions(space, [None, np.zeros(2, np.float32)])
    assert not none.any()
    assert zeros.tolist() == [1, 0, 0]
    encoder = ActionEncoder(space, 8)
    assert not encoder(zeros).any()
    assert encoder.project.bias is None
    torch.nn.init.normal_(encoder.project.weight)
    assert not encoder(none).any()
    assert encoder(zeros).any()


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_what_is_not_in_the_space_is_refused(space):
    numbers = (10**30, np.full((5, 5), np.nan), float("nan"), (1, 2, 3, 4, 5, 6))
    for wrong in ("7", b"7", object(), [[[]]], {"c": 1}, *numbers):
        with pytest.raises(ActionError, match=r"expected an element of"):
            flatten_action(space, wrong)


BOX, BYTES = spaces.Box(-1, 1, (2,), np.float32), spaces.Box(0, 255, (2,), np.uint8)
OTHER_TYPES = [
    (BOX, np.array([0.1, 1.0]), np.array([0.1, 1.0], np.float32)), (BOX, [0.1, -1], np.array([0.1, -1], np.float32)),
    (BOX, torch.tensor([0.5, 1], dtype=torch.float64, requires_grad=True), np.array([0.5, 1], np.float32)),
    (BOX, (1, 0), np.array([1, 0], np.float32)), (BOX, np.array([1.0, 1 + 1e-12]), np.array([1, 1], np.float32)),
    (BYTES, [1, 255], np.array([1, 255], np.uint8)), (BYTES, np.array([3.0, 4.0]), np.array([3, 4], np.uint8)),
    (spaces.Box(-1, 1, ()), 0.25, np.array(0.25, np.float32)),
    (spaces.Discrete(5), np.int64(3), 3), (spaces.Discrete(5), np.uint8(3), 3), (spaces.Discrete(5), np.array(3), 3),
    (spaces.Discrete(5), torch.tensor(3), 3), (spaces.Discrete(2), torch.tensor(True), 1),
    (spaces.MultiDiscrete([2, 3]), [1, 2], np.array([1, 2])),
    (spaces.MultiDiscrete([2, 3]), torch.tensor([1, 2], dtype=torch.int32), np.array([1, 2])),
    (spaces.MultiBinary(2), [True, False], np.array([1, 0], np.int8)),
    (spaces.Dict(a=BOX, b=spaces.Discrete(2)), {"b": torch.tensor(1), "a": [0, 1.0]},
     {"a": np.array([0, 1], np.float32), "b": 1}),
    (spaces.Tuple([BOX, spaces.Discrete(2)]), [[0, 1.0], np.int8(1)], (np.array([0, 1], np.float32), 1)),
]


@pytest.mark.parametrize(("space", "given", "same"), OTHER_TYPES, ids=lambda part: f"{part!r:.40}")
def test_lists_tensors_and_other_dtypes_are_taken_as_the_same_action(space, given, same):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(flatten_action(space, given), flatten_action(space, same))


@pytest.mark.parametrize(("space", "wrong", "said"), [
    (BOX, np.array([0.5, 1.5]), r"found array\(\[0.5, 1.5\]\) of type float64"),
    (BOX, np.array([0.5, np.nan], np.float32), "nan.* of type float32"),
    (BOX, torch.tensor([0.5, 1.5]), r"1.5000\]\) of type torch.float32"), (BOX, [0.5], "of type list"),
    (BOX, np.array([1j, 0]), "complex128"), (BYTES, [0, 256], "256"), (BYTES, [0, 0.5], "0.5"),
    (spaces.Discrete(5), np.int64(5), "of type int64"), (spaces.Discrete(5), torch.tensor(-1), "of type torch.int64"),
    (spaces.Discrete(5), 1.0, "of type float"), (spaces.Discrete(5), np.array([1]), "of type int64"),
    (spaces.MultiDiscrete([2, 3]), [1, 3], "of type list"), (spaces.MultiBinary(2), [0, 2], "of type list"),
    (spaces.Dict(a=BOX), {"a": [0, 2]}, "of type dict"), (spaces.Tuple([BOX]), [], "of type list"),
])
def test_a_wrong_value_is_refused_with_its_type(space, wrong, said):
    with pytest.raises(ActionError, match=said):
        flatten_action(space, wrong)


def test_a_number_that_float32_cannot_hold_is_refused():
    for large in (1e300, np.inf):
        with pytest.raises(ActionError, match="float32"):
            flatten_action(spaces.Box(-np.inf, np.inf, (1,), np.float64), np.array([large]))


def test_text_is_the_bytes_of_byt5():
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer(extra_ids=0)
    for text in ("", "go to the red ball", "Grün 球 🟥", " a\tb \n", "a\0b"):
        assert text_tokens(text, 64) == tokenizer(text)["input_ids"]
    assert len(tokenizer) == TextEncoder(TEXT).model.embed_tokens.num_embeddings == 259
    odd = ["", "</s>", "<pad>", "<unk>", "\0", "a\0", "a", "a ", "\u202eabc", "é", "e\u0301"]
    assert len({tuple(text_tokens(text, 64)) for text in odd}) == len(odd)  # nothing is cut or read as a sign


def test_text_that_does_not_fit_is_refused_and_never_cut():
    assert len(text_tokens("a" * 11, 12)) == 12
    for text, said in (("a" * 12, "at most 11 bytes, found 12"), ("ü" * 6, "found 12"), ("🟥" * 10_000, "found 40000")):
        with pytest.raises(DataError, match=said):
            text_tokens(text, 12)
    for wrong in (None, 3, b"a", "\ud800"):
        with pytest.raises(DataError, match="UTF-8"):
            text_tokens(wrong, 12)


def test_padding_says_nothing_and_is_zero():
    torch.manual_seed(0)
    encoder = TextEncoder(TEXT).eval().double()
    with torch.no_grad():
        states = encoder(["go", "go to it", ""])
        longer = TextEncoder(TextConfig("t5", length=20, width=16, layers=2, heads=2)).eval().double()
        longer.load_state_dict(encoder.state_dict())
        more = longer(["go", "go to it", ""])
    assert states.shape == (3, 12, 16)
    assert more.shape == (3, 20, 16)
    for row, length in enumerate((3, 9, 1)):
        assert not states[row, length:].any()
        assert states[row, :length].any(-1).all()
        assert (states[row, :length] - more[row, :length]).abs().max() < 1e-12
