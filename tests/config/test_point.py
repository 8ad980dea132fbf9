"""Names of points: different overrides have different folders, or are refused before anything trains."""

import itertools

import pytest

from lora_jax.commands.composition import point_name
from lora_jax.config.point import check_names
from lora_jax.errors import UserError


def test_different_overrides_have_different_names():
    texts = ["/a/m/a", "/a/m_a", "/a/m%2Fa", "a%m", "a%25m", "a/m", "a_m", "a\nm", "a m", "é/m", "%2Fa%2Fm%2Fa"]
    names = [point_name(f"model.source={text}", "lora") for text in texts]
    assert len(set(names)) == len(texts) and not any("/" in name or "\n" in name for name in names)
    assert point_name("rank=8,targets=qv", "lora") == "rank=8,targets=qv" and point_name("", "full") == "method=full"


@pytest.mark.parametrize(
    ("names", "fragment"),
    [
        (["same", "same"], "two points of the sweep would write to one folder (same)"),
        (["a", "a/b"], "one folder (a and a/b)"),
        (["a/b", "a/b/c/d", "z"], "one folder (a/b and a/b/c/d)"),
        (["report"], "hydra.sweep.subdir='report': must be a folder inside of the sweep's, and not .hydra, adapter"),
        (["a/checkpoints/b"], "must be a folder inside"),
        (["../elsewhere"], "must be a folder inside"),
        (["/elsewhere"], "must be a folder inside"),
        (["."], "must be a folder inside"),
        (["targets=" + "q+" * 200], "has a name of 408 bytes; must be at most 255"),
        (["targets=" + "é" * 130], "has a name of 268 bytes"),
    ],
)
def test_names_that_are_no_folders_of_their_own_are_refused(names, fragment):
    for order in itertools.permutations(names):
        with pytest.raises(UserError) as refused:
            check_names(order)
        assert fragment in str(refused.value)


def test_names_beside_each_other_are_accepted():
    check_names(["rank=4", "rank=8", "rank=8,seed=1", "a/b", "a/c", "a-b", "0", "1", "reports", "it's, é"])
