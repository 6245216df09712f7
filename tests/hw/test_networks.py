"""Layer lists against independently counted multiply-accumulates."""

import itertools

import pytest

from hw.networks import (
    Bits,
    ConvShape,
    imagenet_resnet_layout,
    network,
    total_macs,
    transformer_lm,
)

# model: (block convolutions, how many, shortcuts, how many, total), counted by hooks on the trained networks
MACS = {
    "resnet38": (82_575_360, 36, 262_144, 2, 83_280_512),
    "resnet74": (167_510_016, 72, 262_144, 2, 168_215_168),
    "mobilenetv2": (75_694_080 + 6_553_600, 34 + 1, 2_129_920, 4, 91_154_944),
    "resnet18": (1_676_279_808, 16, 19_267_584, 3, 1_814_073_344),
    "resnet34": (3_525_967_872, 32, 19_267_584, 3, 3_663_761_408),
}
STEMS = {"resnet38": 442_368, "mobilenetv2": 884_736, "resnet18": 118_013_952}


@pytest.mark.parametrize("model", MACS)
def test_mac_table(model: str) -> None:
    shapes = network(model)
    blocks, block_count, shortcuts, shortcut_count, total = MACS[model]
    assert total_macs(shapes) == total
    assert total_macs(shapes, ["conv"]) == blocks
    assert sum(s.kind == "conv" for s in shapes) == block_count
    assert total_macs(shapes, ["shortcut"]) == shortcuts
    assert sum(s.kind == "shortcut" for s in shapes) == shortcut_count
    assert len({s.name for s in shapes}) == len(shapes)


@pytest.mark.parametrize("model", STEMS)
def test_stem(model: str) -> None:
    assert total_macs(network(model), ["stem"]) == STEMS[model]


def test_depthwise_layers() -> None:
    depthwise = [s for s in network("mobilenetv2") if s.kind == "depthwise"]
    assert len(depthwise) == 17
    assert total_macs(depthwise) == 5_879_808
    assert all(s.groups == s.in_channels == s.out_channels for s in depthwise)


def test_every_layer_feeds_the_next() -> None:
    for shapes in (network("resnet20"), network("resnet34"), network("mobilenetv2")):
        trunk = [s for s in shapes if s.kind not in ("shortcut", "fc")]
        for before, after in itertools.pairwise(trunk):
            assert before.out_channels == after.in_channels
            if before.name != "stem":  # ImageNet networks pool after the stem
                assert before.out_hw == after.in_hw


def test_transformer_base() -> None:
    shapes = transformer_lm(layers=6, width=512, heads=8, hidden=2048, tokens=512)
    projections = 512 * (4 * 512 * 512 + 2 * 512 * 2048)
    attention = 2 * 512 * 512 * 512
    assert total_macs(shapes) == 6 * (projections + attention)
    assert total_macs(shapes, ["attention"]) == 6 * attention
    logits = transformer_lm(vocabulary=1000)[-1]
    assert logits.macs == 512 * 512 * 1000


def test_transformers_by_name() -> None:
    assert network("transformer") == network("transformer-base") == network("Transformer_base", 0) == transformer_lm()
    small = network("transformer-small", 50, image=(7,))
    assert small == transformer_lm(2, 128, 4, 512, 7, 50)
    for model, image in (
        ("transformer", (3, 32, 32)),
        ("resnet38", (7,)),
        ("resnet18", (224, 224)),
        ("mobilenetv2", ()),
    ):
        with pytest.raises(ValueError, match="takes"):
            network(model, image=image)


def test_attention_has_no_widths_of_weights() -> None:
    scores = next(shape for shape in transformer_lm() if shape.kind == "attention")
    wanted = {"forward": (4, 4), "input_gradient": (6, 4), "weight_gradient": (4, 6)}
    assert scores.operands(Bits(8, 4, 6, 16)) == wanted


def test_element_counts() -> None:
    shape = ConvShape("a", 16, 32, 3, 2, 1, (32, 24))
    assert (shape.out_hw, shape.weights, shape.inputs, shape.outputs) == ((16, 12), 4608, 12_288, 6144)
    assert shape.macs == 16 * 12 * 4608


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", 0, 16, 3, 1, 1, (8, 8)), "in_channels is 0"),
        (("a", 16, 16, 3, 1, -1, (8, 8)), "padding is -1"),
        (("a", 16, 16, 3, 1, 1, (8, 8), 3), "do not divide into 3 groups"),
        (("a", 16, 16, 3, 1, 0, (2, 8)), "does not fit"),
        (("a", 16, 16, 3, 1, 1, (8, 8), 1, "odd"), "kind 'odd'"),
    ],
)
def test_bad_shapes_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvShape(*arguments)


def test_unknown_models_are_refused() -> None:
    with pytest.raises(ValueError, match="6n"):
        network("resnet39")
    with pytest.raises(ValueError, match="unknown"):
        network("vgg")
    with pytest.raises(ValueError, match="18 or 34"):
        imagenet_resnet_layout(50)


@pytest.mark.parametrize("depth", [50, 101, 152, 164, 200])
def test_names_of_bottleneck_networks_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"resnet-{depth} means .* bottleneck"):
        network(f"resnet-{depth}")
