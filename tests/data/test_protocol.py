from zsad_jax.data.protocol import prompt_name


def test_plain_rule():
    assert prompt_name("metal_nut") == "metal nut"
    assert prompt_name("fine-mesh") == "fine mesh"
    assert prompt_name("pcb1", dataset="visa") == "pcb1"


def test_describing_names_where_known():
    assert prompt_name("pcb1", dataset="visa", naming="descriptive") == "printed circuit board"
    assert prompt_name("pipe_fryum", dataset="visa", naming="descriptive") == "pipe fryum"
    assert prompt_name("pcb1", dataset="mvtec_ad", naming="descriptive") == "pcb1"
