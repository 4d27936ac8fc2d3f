"""Networks of torchvision that several test modules try."""

# One small network of each family, with the smallest image that it is at home with.
FAMILIES = {
    "alexnet": 96,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_lite0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_32": 64,
    "wide_resnet50_2": 64,
}

# With sums, branches, channels that weigh each other, and windows of attention.
SMALL = {
    "efficientnet_lite0", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
    "swin_t",
}  # fmt: skip


def image_size_of(name):
    if name in FAMILIES:
        return FAMILIES[name]
    small = {"alexnet": 96, "inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
    return small.get(name, 64)
