import functools

import pytest

from zsad_jax.data import protocols
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.protocols import PROTOCOLS, parse_name, prompt_name
from zsad_jax.utils.errors import UserError


def test_plain_names():
    assert prompt_name("metal_nut") == "metal nut"
    assert prompt_name("fine-mesh") == "fine mesh"
    assert prompt_name("pcb1", dataset="visa") == "pcb1"


def test_describing_names_are_used_where_known():
    assert prompt_name("pcb1", dataset="visa", naming="descriptive") == "printed circuit board"
    assert prompt_name("pipe_fryum", dataset="visa", naming="descriptive") == "pipe fryum"
    assert prompt_name("pcb1", dataset="mvtec_ad", naming="descriptive") == "pcb1"


def test_descriptions_of_aaclip_are_of_its_datasets_alone():
    names = functools.partial(prompt_name, naming="aaclip")
    assert names("bottle", dataset="mvtec_ad") == "dark bottle"
    assert names("screw", dataset="mvtec_ad") == "screw"
    assert names("pipe_fryum", dataset="visa") == "pipe-shaped fryum"
    assert names("bracket_white", dataset="mpdd").startswith("white, elongated triangular")
    assert names("01", dataset="btad").endswith("stylized wave or energy field radiating outward.")
    assert names("br35h", dataset="br35h") == "scan"
    assert names("toothbrush", dataset="real_iad") == "toothbrush"
    assert names("bottle", dataset="my_parts") == names("bottle") == "bottle"
    for facts in DATASETS.values():
        described = facts.aaclip_names
        assert isinstance(described, str) or set(described) <= set(facts.categories)


def test_single_category_datasets_are_named_by_content():
    assert prompt_name("ksdd", dataset="ksdd") == "electrical commutators"
    assert prompt_name("SDD", dataset="ksdd") == "electrical commutators"
    assert prompt_name("ksdd", dataset="ksdd", naming="plain") == "ksdd"
    assert prompt_name("headct", dataset="headct") == "brain"
    assert prompt_name("headct", dataset="headct", naming="descriptive") == "brain ct"
    assert prompt_name("br35h", dataset="br35h", naming="descriptive") == "brain"


def test_dataset_names_may_contain_splits_and_be_joined():
    assert parse_name("mvtec_ad") == (("mvtec_ad", ""),)
    assert parse_name("mvtec_ad:train + visa") == (("mvtec_ad", "train"), ("visa", ""))
    assert protocols.title("mvtec_ad:train+visa") == "MVTec AD (train) + VisA"
    assert protocols.title("my+parts") == "my+parts"
    for wrong in ("", "visa+", ":train", "gs://bucket/parts"):
        with pytest.raises(UserError, match="is not a valid dataset name"):
            parse_name(wrong)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_use_known_datasets_and_never_train_on_a_target(name):
    rules = PROTOCOLS[name]
    assert len(set(rules.targets)) == len(rules.targets)
    for target in rules.targets:
        auxiliary = rules.auxiliary_for.get(target, rules.auxiliary)
        assert target in DATASETS
        keys = {part.key for part in parse_name(auxiliary)}
        assert keys <= set(DATASETS)
        assert target not in keys
