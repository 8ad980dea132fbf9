"""Target expressions: the layers that they select, ranks and alphas, and refusals."""

import jax
import numpy as np
import pytest
from helpers.families import CONFIGS, model_of

from lora_jax.errors import UserError
from lora_jax.models import bert
from lora_jax.models.heads import Classifier
from lora_jax.targets import place, select, sites

pytestmark = pytest.mark.smoke

# MiniLM's shapes; nothing is allocated.
MODEL = jax.eval_shape(lambda: Classifier(bert.Bert(bert.BertConfig()), 384, 77))
ATTN, MLP = "backbone/layers/attn", "backbone/layers/mlp"


def selected_layers(expression):
    """Returns the selected layers by path, without the prefix of the path."""
    selected = select(sites(MODEL), expression)
    return {path.rpartition("layers/")[2]: np.flatnonzero(layers).tolist() for path, layers in selected.items()}


def alpha_of(rank):
    return 2.0 * rank


def test_sites_are_the_linear_layers_and_embeddings_below_the_head():
    all_sites = sites(MODEL)
    layers = [f"{ATTN}/{name}" for name in "koqv"] + [f"{MLP}/down", f"{MLP}/up", "backbone/pooler"]
    tables = [f"backbone/embed/{name}" for name in ("position", "type", "word")]
    assert {path: site.lookup for path, site in all_sites.items()} == dict.fromkeys(layers, False) | dict.fromkeys(
        tables, True
    )
    assert (all_sites[tables[2]].d_in, all_sites[tables[2]].d_out, all_sites[tables[2]].layers) == (30522, 384, None)
    up, pooler = all_sites[f"{MLP}/up"], all_sites["backbone/pooler"]
    assert (up.d_in, up.d_out, up.layers) == (384, 1536, 6)
    assert (pooler.d_in, pooler.d_out, pooler.layers) == (384, 384, None)
    assert up.names()[5] == "backbone/layers/5/mlp/up" and pooler.names() == ["backbone/pooler"]


ALL_LAYERS = list(range(6))
GROUPS = {
    "q": ["attn/q"],
    "k": ["attn/k"],
    "v": ["attn/v"],
    "o": ["attn/o"],
    "qv": ["attn/q", "attn/v"],
    "qkvo": ["attn/k", "attn/o", "attn/q", "attn/v"],
    "mlp": ["mlp/down", "mlp/up"],
    "all": ["attn/k", "attn/o", "attn/q", "attn/v", "mlp/down", "mlp/up"],
    "q+v+mlp": ["attn/q", "attn/v", "mlp/down", "mlp/up"],
    "q+q": ["attn/q"],
    "re:attn/[qv]$": ["attn/q", "attn/v"],
    "o+re:up$": ["attn/o", "mlp/up"],
}


@pytest.mark.parametrize("expression", GROUPS)
def test_groups_and_their_sums_select_all_layers(expression):
    assert selected_layers(expression) == dict.fromkeys(GROUPS[expression], ALL_LAYERS)


@pytest.mark.parametrize(
    "expression, layers",
    [
        ("q@0:3", [0, 1, 2]),
        ("q@4:", [4, 5]),
        ("q@:2", [0, 1]),
        ("q@0:6:2", [0, 2, 4]),
        ("q@::-2", [1, 3, 5]),
        ("q@3", [3]),
        ("q@-1", [5]),
        ("q@-2:", [4, 5]),
        ("q@:", ALL_LAYERS),
        ("q@4:100", [4, 5]),
        ("q@0+q@-1", [0, 5]),
        (r"re:/[02]/attn/q", [0, 2]),
        ("q@3+re:layers/(1|5)/attn/q$", [1, 3, 5]),
    ],
)
def test_layers_are_selected_as_python_slices(expression, layers):
    assert selected_layers(expression) == {"attn/q": layers}


def test_each_term_has_its_own_layers():
    assert selected_layers("q@:2+v@4:+re:1/mlp/up$") == {"attn/q": [0, 1], "attn/v": [4, 5], "mlp/up": [1]}


def test_a_regex_can_select_sites_of_no_group():
    assert selected_layers("re:pooler") == {"backbone/pooler": [0]}
    assert selected_layers("re:embed") == {f"backbone/embed/{name}": [0] for name in ("position", "type", "word")}


@pytest.mark.parametrize("name", CONFIGS)
def test_all_excludes_embeddings_and_embed_or_patch_selects_them(name):
    model = model_of(name)
    table = "backbone/embed/patch" if name == "vit" else "backbone/embed"
    table += "/word" if name in ("bert", "roberta", "deberta") else ""
    group = "patch" if name == "vit" else "embed"
    assert list(place(model, group, 2, float)) == [table]
    assert set(place(model, f"all+{group}", 2, float)) == set(place(model, "all", 2, float)) | {table}
    assert not any("embed" in path for path in place(model, "all", 2, float))


@pytest.mark.parametrize(
    "expression, message",
    [
        (
            "query",
            r"targets='query': 'query' is not a target group; "
            r"use q, k, v, o, qv, qkvo, mlp, all, embed, patch or re:<regex>",
        ),
        ("q+", r"targets='q\+': '' is not a target group"),
        ("Q", r"'Q' is not a target group"),
        (
            "re:c_attn",
            r"'re:c_attn' matches nothing; this model has backbone/embed/position, .*attn/k \(6 layers\), .*pooler$",
        ),
        ("q+re:c_attn", r"targets='q\+re:c_attn': 're:c_attn' matches nothing"),
        ("q@6", r"'q@6' matches nothing; this model has"),
        ("q@7:", r"'q@7:' matches nothing"),
        ("re:head", r"matches nothing"),
        ("re:attn/[qv", r"targets='re:attn/\[qv': not a regular expression: unterminated character set"),
        ("q@a:b", r"targets='q@a:b': layers are a number or a slice such as 0:6, got 'a:b'"),
        ("q@1:2:3:4", r"layers are a number or a slice"),
        ("q@1.5", r"layers are a number or a slice"),
        ("q@0:6:0", r"targets='q@0:6:0': .*slice"),
        ("q@", r"targets='q@': .*slice"),
        ("q@::0", r"targets='q@::0': .*slice"),
        ("q@::-0", r"targets='q@::-0': .*slice"),
        ("q@5:2", r"targets='q@5:2': 'q@5:2' matches nothing"),
        ("q@٣", r"targets='q@٣': .*slice"),
        (f"q@{'9' * 5000}", r"at most 4096 characters"),
        (f"q@{'9' * 500}", r"a number or a slice"),
        (f"re:{'q' * 4096}", r"at most 4096 characters"),
        ("+" * 4000, r"'' is not a target group"),
        ("re:" + "(" * 1500 + ")" * 1500, r"not a regular expression"),
        ("re:a{99999999999}", r"not a regular expression"),
        ("re:(a+)+$", r"targets='re:\(a\+\)\+\$': may take too long to match; use fewer repetitions"),
        ("re:(a|a)*$", r"may take too long"),
        ("re:(a?){30}a{30}", r"may take too long"),
        ("re:.*.*.*.*x", r"may take too long"),
        ("re:(?=(a*)*)q", r"may take too long"),
        ("re:" + "(.|[^x])" * 20 + "!", r"may take too long"),
    ],
)
def test_invalid_expressions_are_refused(expression, message):
    with pytest.raises(UserError, match=message) as error:
        select(sites(MODEL), expression)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    "expression", [r"re:.*layers.*attn.*", r"re:layers/(1\d+|[02])/(attn/)?(q|mlp/up)$", "q+" * 1000 + "q"]
)
def test_long_expressions_and_some_repetitions_are_accepted(expression):
    assert "attn/q" in selected_layers(expression)


# ---- ranks and alphas


def test_place_gives_ranks_and_alphas_by_layer():
    placements = place(MODEL, "q@:3+mlp", 8, alpha_of)
    assert list(placements) == [f"{ATTN}/q", f"{MLP}/down", f"{MLP}/up"]
    np.testing.assert_array_equal(placements[f"{ATTN}/q"].rank, [8, 8, 8, 0, 0, 0])
    np.testing.assert_array_equal(placements[f"{ATTN}/q"].alpha, [16, 16, 16, 0, 0, 0])
    np.testing.assert_array_equal(placements[f"{MLP}/up"].rank, [8] * 6)


def test_patterns_change_some_ranks_and_alphas_and_the_last_match_wins():
    placements = place(
        MODEL, "q@:4+mlp", 8, alpha_of, {"mlp": 16, "mlp@-1": 2, "q@0+v+q@5": 4}, {"re:up$": 5.0, "q@1:2": 1}
    )
    np.testing.assert_array_equal(placements[f"{ATTN}/q"].rank, [4, 8, 8, 8, 0, 0])
    np.testing.assert_array_equal(placements[f"{ATTN}/q"].alpha, [8, 1, 16, 16, 0, 0])
    np.testing.assert_array_equal(placements[f"{MLP}/down"].rank, [16] * 5 + [2])
    np.testing.assert_array_equal(placements[f"{MLP}/down"].alpha, [32] * 5 + [4])
    np.testing.assert_array_equal(placements[f"{MLP}/up"].alpha, [5.0] * 6)
    assert f"{ATTN}/v" not in placements  # a pattern does not add targets


@pytest.mark.parametrize(
    "patterns, message",
    [
        (({"v": 4}, None), r"method.rank_pattern: 'v' matches none of the targets backbone/layers/attn/q"),
        (({"q@3:": 4}, None), r"method.rank_pattern: 'q@3:' matches none of the targets"),
        (({"queri": 4}, None), r"method.rank_pattern='queri': 'queri' is not a target group"),
        ((None, {"mlp": 4.0}), r"method.alpha_pattern: 'mlp' matches none of the targets"),
        ((None, {"re:x": 4.0}), r"method.alpha_pattern='re:x': 're:x' matches nothing; this model has"),
    ],
)
def test_a_pattern_that_matches_no_target_is_refused(patterns, message):
    with pytest.raises(UserError, match=message):
        place(MODEL, "q@:3", 8, alpha_of, *patterns)


@pytest.mark.parametrize("rank, pattern", [(385, None), (8, {"mlp": 385})])
def test_a_rank_above_a_layers_smaller_side_is_refused(rank, pattern):
    with pytest.raises(UserError, match=r"rank=385: \S+ is \d+ x \d+, so its rank is at most 384"):
        place(MODEL, "all", rank, alpha_of, pattern)
    assert place(MODEL, "all", 384, alpha_of)
