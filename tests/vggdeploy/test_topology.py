"""The network as data, held against published totals and against torch modules."""

import math

import pytest
import torch
from torch import nn

from vggdeploy import reference, topology
from vggdeploy.errors import ConfigError

# Parameters as torchvision publishes them with its weights.
PARAMS = {
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "alexnet": 61_100_840,
}

# Simonyan and Zisserman's columns D and A, written out: what the table in the code must expand to.
COLUMN_D = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M"
COLUMN_A = "64 M 128 M 256 256 M 512 512 M 512 512 M"


def vgg_module(column, batch_norm, divisor=1):
    """VGG as torchvision builds it, from nothing but its own rule."""
    layers, channels = [], 3
    for step in column.split():
        if step == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        width = int(step) // divisor
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
        channels = width
    hidden = 4096 // divisor
    classifier = [nn.Linear(channels * 49, hidden), nn.ReLU(True), nn.Dropout()]
    classifier += [nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout(), nn.Linear(hidden, 1000)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *classifier)


def alexnet_module():
    """torchvision's AlexNet, written out."""
    features = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    features += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    features += [nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()]
    features += [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()]
    features += [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)]
    classifier = [nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU()]
    classifier += [nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(6), nn.Flatten(), *classifier)


MODULES = {
    "vgg11": lambda: vgg_module(COLUMN_A, False),
    "vgg16": lambda: vgg_module(COLUMN_D, False),
    "vgg16_bn": lambda: vgg_module(COLUMN_D, True),
    "alexnet": alexnet_module,
}


def hooked(module, image):
    """Every leaf module with the shapes that really went in and came out, without a batch."""
    seen = []

    def hook(at, inputs, output):
        seen.append((at, tuple(inputs[0].shape[1:]), tuple(output.shape[1:])))

    leaves = [leaf for leaf in module.modules() if not list(leaf.children())]
    for leaf in leaves:
        if not isinstance(leaf, nn.Flatten):
            leaf.register_forward_hook(hook)
    module.eval()(image)
    return seen


def widest_view(seen, axis):
    """Input pixels along an axis that one output of the last module in `seen` looks at.

    Walks back from every output position, padding included, with what torch's modules say.
    """
    last = seen[-1][2]
    extents = []
    for position in range(last[axis]) if len(last) == 3 else [0]:
        low = high = position
        for module, shape, _ in reversed(seen):
            if isinstance(module, nn.Linear):
                low, high = 0, (shape[axis] if len(shape) == 3 else 1) - 1
            elif isinstance(module, nn.AdaptiveAvgPool2d):
                size, n = (module.output_size, shape[axis])
                size = size if isinstance(size, int) else size[axis - 1]
                low, high = low * n // size, -(-(high + 1) * n // size) - 1
            elif isinstance(module, nn.Conv2d | nn.MaxPool2d):
                kernel, stride, padding = (
                    value if isinstance(value, int) else value[axis - 1]
                    for value in (module.kernel_size, module.stride, module.padding)
                )
                low, high = low * stride - padding, high * stride - padding + kernel - 1
        extents.append(high - low + 1)
    return max(extents)


@pytest.mark.parametrize("arch", PARAMS)
def test_parameters_are_the_published_ones(arch):
    network = topology.network(arch)
    assert topology.total_params(network) == PARAMS[arch]
    module = reference.build(network)
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMS[arch]


def test_multiply_accumulates_are_the_published_ones():
    assert topology.total_macs(topology.vgg("vgg16")) == 15_470_264_320
    assert topology.total_macs(topology.vgg("vgg16_bn")) == 15_470_264_320
    assert topology.total_macs(topology.alexnet()) == 714_188_480


@pytest.mark.parametrize("size", [(224, 224), (448, 448), (256, 256), (96, 160)])
@pytest.mark.parametrize("arch", MODULES)
def test_every_row_is_what_torch_does(arch, size):
    rows = topology.rows(topology.network(arch, input_size=size))
    with torch.device("meta"):
        seen = hooked(MODULES[arch](), torch.empty(1, 3, *size))
    flat = [(at, (math.prod(i),) if isinstance(at, nn.Linear) else i, o) for at, i, o in seen]
    assert len(rows) == len(flat)
    for index, (row, (module, given, made)) in enumerate(zip(rows, flat, strict=True)):
        # torch flattens before the classifier; the rows do so in its first linear layer.
        assert math.prod(row.input) == math.prod(given), row.name
        assert row.output == made or isinstance(module, nn.Dropout), row.name
        assert math.prod(row.output) == math.prod(made), row.name
        assert row.params == sum(p.numel() for p in module.parameters()), row.name
        weight = getattr(module, "weight", None)
        macs = 0
        if isinstance(module, nn.Conv2d):
            macs = math.prod(made) * math.prod(weight.shape[1:])
        elif isinstance(module, nn.Linear):
            macs = weight.numel()
        assert row.macs == macs, row.name
        # Going back through the flattening: the first fully connected layer sees all of the pool.
        before = zip(flat, rows[: index + 1], strict=False)
        chain = [(at, place.input, place.output) for (at, _, _), place in before]
        view = max(widest_view(chain, 1), widest_view(chain, 2))
        assert row.receptive_field == view, row.name


def test_receptive_fields_are_the_pixels_that_gradients_reach():
    network = topology.vgg("vgg16", width_divisor=64, input_size=(224, 224))
    rows = topology.rows(network)
    module = reference.build(network).to_empty(device="cpu").double().eval()
    for parameter in module.parameters():
        # All weights positive, so nothing cancels and every ReLU is open.
        nn.init.constant_(parameter, 0.1)
    features = [
        # A max pool passes gradient to one pixel of four; the average passes it to all.
        nn.AvgPool2d(2, 2) if isinstance(at, nn.MaxPool2d) else at
        for at in module.features
    ]
    image = torch.ones(1, 3, 224, 224, dtype=torch.float64, requires_grad=True)
    value = image
    for row, layer in zip(rows, features, strict=False):
        value = layer(value.clone())
        if row.layer.kind == "relu":
            continue  # sees what its convolution sees
        # The middle one of the 7 in the end sees pixels 6 to 217: nothing is cut off.
        middle = value.shape[-1] // 2
        (gradient,) = torch.autograd.grad(value[0, 0, middle, middle], image, retain_graph=True)
        reached = gradient[0].abs().sum(0).nonzero()
        sides = reached.max(0).values - reached.min(0).values + 1
        assert sides.tolist() == [row.receptive_field] * 2, row.name
    assert row.receptive_field == 212


def test_three_3x3_layers_see_7x7_for_fewer_weights():
    assert topology.stack_receptive_field(3, 3) == topology.stack_receptive_field(1, 7) == 7
    assert topology.stack_receptive_field(2, 3) == 5
    assert topology.stack_weights(3, 3, 512) == 27 * 512**2
    assert topology.stack_weights(1, 7, 512) == 49 * 512**2
    # The first two convolutions of VGG are such a stack.
    assert topology.rows(topology.vgg())[2].receptive_field == topology.stack_receptive_field(2, 3)


@pytest.mark.parametrize("arch", topology.ARCHITECTURES)
def test_a_slim_network_has_the_same_layers(arch):
    full, slim = topology.vgg(arch), topology.vgg(arch, width_divisor=8)
    assert [(at.name, at.kind) for at in slim.layers] == [(at.name, at.kind) for at in full.layers]
    assert full.batch_norm is slim.batch_norm is arch.endswith("_bn")
    assert {at.out_channels * 8 for at in slim.layers[:-1]} == {
        at.out_channels for at in full.layers[:-1]
    }
    assert slim.layers[-1].out_channels == 1000


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: topology.vgg("vgg17"), "vgg16_bn"),
        (lambda: topology.network("resnet50"), "resnet50"),
        (lambda: topology.vgg(num_classes=0), "cannot have so many classes: got 0, expected 1 to"),
        (lambda: topology.vgg(num_classes=10**15), "cannot have so many classes"),
        (lambda: topology.vgg(input_size=(31, 224)), "31x224"),
        (lambda: topology.alexnet(input_size=(224, 62)), "224x62"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize(("make", "size"), [(topology.vgg, 32), (topology.alexnet, 63)])
def test_the_smallest_image_still_has_a_pixel_at_the_end(make, size):
    rows = topology.rows(make(input_size=(size, size)))
    pooled = [row for row in rows if row.layer.kind == "maxpool"]
    assert pooled[-1].output[1:] == (1, 1)
