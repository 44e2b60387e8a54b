"""A table of patterns names a module's tensors as a file does."""

import pytest

from reca_fast.models.files import SAME_NAMES, NameTable

TABLE = NameTable(
    (
        ("norm.*", "model.final_norm.*"),
        ("layers.{i}.{p:q_proj|k_proj}.{kind}", "model.layers.{i}.self_attn.{p}.{kind}"),
        ("layers.{i}.{p:out.0}.{kind}", "model.layers.{i}.out_proj.{kind}"),
        ("layers.{i}.{rest_of_it}.{kind}", "model.layers.{i}.{rest_of_it}.{kind}"),
    ),
    under="model.",
    others=("model.vision.",),
    ignored=frozenset({"model.table"}),
    convolutions=("layers.{i}.out.0.weight",),
)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("norm.weight", "model.final_norm.weight"),
        ("norm.inner.weight", "model.final_norm.inner.weight"),  # * takes dots too
        ("layers.12.q_proj.bias", "model.layers.12.self_attn.q_proj.bias"),
        ("layers.0.out.0.weight", "model.layers.0.out_proj.weight"),  # alternatives may have dots
        ("layers.0.gate.weight", "model.layers.0.gate.weight"),  # the first rule that fits
    ],
)
def test_a_name_and_its_key(name, key) -> None:
    assert TABLE.key(name) == key
    assert TABLE.keys([name]) == {key: name}


def test_a_word_stands_for_one_part_of_a_name() -> None:
    for name in ("layers.1.a.b.weight", "normweight", "xlayers.1.gate.weight"):
        with pytest.raises(KeyError, match=f"no rule for {name}"):
            TABLE.key(name)


def test_two_tensors_must_not_have_one_key() -> None:
    table = NameTable((("{anything}.weight", "one"),))
    with pytest.raises(ValueError, match="two tensors one key"):
        table.keys(["a.weight", "b.weight"])


def test_which_keys_of_a_file_are_the_module_s() -> None:
    assert TABLE.has("model.layers.0.unheard_of")
    assert not TABLE.has("head.weight") and not TABLE.has("model.vision.x") and not TABLE.has("model.table")
    assert SAME_NAMES.has("anything") and SAME_NAMES.key("a.b") == "a.b"


def test_shapes_in_the_file() -> None:
    assert TABLE.stored_shape("layers.3.out.0.weight", (4, 5)) == (4, 5, 1, 1)
    assert TABLE.stored_shape("layers.3.gate.weight", (4, 5)) == (4, 5)


def test_a_table_within_a_larger_module_and_file() -> None:
    inner = TABLE.within(module="decoder.", file="whole.")
    assert inner.key("decoder.norm.weight") == "whole.model.final_norm.weight"
    assert inner.has("whole.model.x") and not inner.has("model.x")
    assert not inner.has("whole.model.table") and not inner.has("whole.model.vision.x")
    assert inner.stored_shape("decoder.layers.3.out.0.weight", (4, 5)) == (4, 5, 1, 1)
