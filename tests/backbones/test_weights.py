"""Weights: where they come from, whether they fit, and what errors say."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models import ResNet18_Weights, ResNet50_Weights, Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification

from sktl import PretrainedImageClassifier
from sktl.backbones import load_backbone
from sktl.backbones.weights import find_weights, load_weights


@pytest.fixture(scope="module")
def state():
    """The state dict of a network with its own weights."""
    torch.manual_seed(1)
    return models.resnet18(weights=None).state_dict()


@pytest.fixture
def resnet18():
    torch.manual_seed(2)
    return models.resnet18(weights=None)


def frozen_weights(backbone):
    prefix = backbone.prefix(len(backbone.stages), "auto")
    return {n.partition(".0.")[2]: v for n, v in prefix.state_dict().items() if n.count(".") > 1}


def assert_holds(backbone, state):
    found = frozen_weights(backbone)
    assert "layer4.1.conv2.weight" in found
    for name, value in found.items():
        assert torch.equal(value, state[name]), name


def test_names_and_members_of_torchvision_mean_the_same():
    member = ResNet50_Weights.IMAGENET1K_V1
    names = ["IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V1", member]
    assert len({find_weights("resnet50", name).name for name in names}) == 1
    default = find_weights("resnet50", "DEFAULT")
    assert default.name == str(ResNet50_Weights.IMAGENET1K_V2)
    assert (default.recipe.resize, default.recipe.crop) == (232, 224)
    assert find_weights("resnet50", member).recipe.resize == 256


def test_random_weights_have_the_recipe_of_the_default_ones():
    source = find_weights("vit_h_14", None)
    assert source.read is None
    assert source.recipe.crop == 518
    assert source.recipe.interpolation == "bicubic"


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("as_path", [True, False])
def test_a_state_dict_from_a_file(state, tmp_path, ending, as_path):
    path = tmp_path / f"mine{ending}"
    (save_file if ending == ".safetensors" else torch.save)(state, path)
    assert_holds(load_backbone("resnet18", path if as_path else str(path)), state)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_checkpoint_that_holds_a_state_dict(state, tmp_path, key):
    torch.save({key: state, "epoch": 3}, tmp_path / "checkpoint.pth")
    assert_holds(load_backbone("resnet18", tmp_path / "checkpoint.pth"), state)


def test_weights_for_a_module_of_the_users(state, tmp_path, resnet18):
    torch.save(state, tmp_path / "mine.pth")
    before = {n: v.clone() for n, v in resnet18.state_dict().items()}
    assert_holds(load_backbone(resnet18, tmp_path / "mine.pth"), state)
    for name, value in resnet18.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_changed_file_is_read_again(state, tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(state, path)
    load_backbone("resnet18", path)
    changed = {n: v + 1 for n, v in state.items()}
    torch.save(changed, path)
    assert_holds(load_backbone("resnet18", path), changed)


@pytest.mark.parametrize("change", ["misshapen", "missing", "replaced"])
def test_the_classifier_alone_may_differ(state, tmp_path, change):
    state = dict(state)
    if change == "misshapen":
        state |= {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    else:
        del state["fc.weight"], state["fc.bias"]
    if change == "replaced":
        state |= {"fc.1.weight": torch.zeros(7, 512), "fc.1.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "mine.pth")
    assert_holds(load_backbone("resnet18", tmp_path / "mine.pth"), state)


def test_keys_that_do_not_fit_are_listed(state, resnet18):
    state = dict(state)
    del state["layer1.0.conv1.weight"]
    state["layer9.weight"] = torch.zeros(3)
    state["bn1.bias"] = torch.zeros(65)
    with pytest.raises(ValueError) as caught:
        load_weights(resnet18, state, ["fc"], "mine.pth")
    message = str(caught.value)
    assert "missing: layer1.0.conv1.weight." in message
    assert "unexpected: layer9.weight." in message
    assert "misshapen: bn1.bias (65,) instead of (64,)." in message
    assert "mine.pth" in message


def test_a_long_list_of_keys_is_cut_with_a_count(resnet18):
    with pytest.raises(ValueError, match=r"and \d+ more"):
        load_weights(resnet18, {"x": torch.zeros(1)}, ["fc"], "mine.pth")


def test_weights_of_another_network_leave_the_network_as_it_was(resnet18):
    before = {n: v.clone() for n, v in resnet18.state_dict().items()}
    wrong = {n: torch.ones_like(v) for n, v in before.items() if n != "conv1.weight"}
    with pytest.raises(ValueError, match=r"missing: conv1.weight"):
        load_weights(resnet18, wrong, ["fc"], "mine.pth")
    for name, value in resnet18.state_dict().items():
        assert torch.equal(value, before[name])


def test_auxiliary_classifiers_are_left_out(tmp_path):
    torch.manual_seed(0)
    whole = models.googlenet(weights=None, aux_logits=True, init_weights=False)
    torch.save(whole.state_dict(), tmp_path / "googlenet.pth")
    backbone = load_backbone("googlenet", tmp_path / "googlenet.pth", 64)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    whole.transform_input = True  # as torchvision's own weights have it
    prefix = backbone.prefix(len(backbone.stages), "auto")
    whole.fc, whole.dropout = nn.Identity(), nn.Identity()
    with torch.inference_mode():
        normalised = prefix[0](images)
        torch.testing.assert_close(prefix(images), whole.eval()(normalised))


def test_a_vision_transformer_at_another_size_interpolates_its_positions(tmp_path):
    torch.manual_seed(0)
    torch.save(models.vit_b_32(weights=None).state_dict(), tmp_path / "vit.pth")
    backbone = load_backbone("vit_b_32", tmp_path / "vit.pth", 128)
    prefix = backbone.prefix(1, "auto")
    with torch.inference_mode():
        tokens = prefix(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))
    assert tokens.shape == (1, 1 + 4 * 4, 768)


class Payload:
    def __reduce__(self):
        return print, ("code of the file was run",)


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"conv1.weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth can't be read as a state dict"):
        load_backbone("resnet18", tmp_path / "evil.pth")
    assert "code" not in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\xff" * 100])
def test_a_damaged_file_is_named(tmp_path, ending, content):
    (tmp_path / f"bad{ending}").write_bytes(content)
    with pytest.raises(ValueError, match=f"bad{ending} can't be read as a state dict"):
        load_backbone("resnet18", tmp_path / f"bad{ending}")


def test_a_pickled_module_is_refused_with_advice(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"holds no state dict .* Save module.state_dict\(\)"):
        load_backbone("resnet18", tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        ("resnet18", "IMAGENET1K_V9", "resnet18 has no weights 'IMAGENET1K_V9'.*IMAGENET1K_V1"),
        ("efficientnet_lite0", "IMAGENET1K_V1", "efficientnet_lite0 has no weights"),
        ("resnet18", "nowhere/mine.pth", "no such file"),
        (nn.Conv2d(3, 4, 3), "IMAGENET1K_V1", "needs a backbone with a name"),
    ],
)
def test_unknown_weights(backbone, weights, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(backbone, weights)


def member_for(url):
    """Weights as torchvision declares them, at another address."""

    class Mine_Weights(WeightsEnum):
        V1 = Weights(url=url, transforms=partial(ImageClassification, crop_size=64), meta={})

    return Mine_Weights.V1


@pytest.fixture
def published(state, tmp_path, monkeypatch):
    """A file named after its hash, as torchvision publishes them, and an empty download cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save(state, folder / "file.pth")
    digest = hashlib.sha256((folder / "file.pth").read_bytes()).hexdigest()[:8]
    return (folder / "file.pth").rename(folder / f"resnet18-{digest}.pth")


@pytest.fixture
def server(published):
    handler = partial(SimpleHTTPRequestHandler, directory=published.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_weights_are_downloaded_checked_and_kept(server, published, state, tmp_path, photographs):
    member = member_for(f"{server}/{published.name}")
    clf = PretrainedImageClassifier("resnet18", weights=member, image_size=64).fit(*photographs)
    assert clf.score(*photographs) > 0.8
    kept = tmp_path / "home" / "hub" / "checkpoints" / published.name
    assert kept.read_bytes() == published.read_bytes()
    published.unlink()  # the second time, the kept file serves
    assert_holds(load_backbone("resnet18", member_for(f"{server}/{published.name}"), 32), state)


def test_a_download_that_is_damaged_on_the_way_is_refused(published):
    published.write_bytes(published.read_bytes()[:-1] + b"!")
    with pytest.raises(RuntimeError, match="invalid hash value"):
        load_backbone("resnet18", member_for(published.as_uri()))


def test_without_a_network_the_error_names_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    nobody_listens = member_for("http://127.0.0.1:9/resnet18-f37072fd.pth")
    with pytest.raises(OSError) as caught:
        load_backbone("resnet18", nobody_listens)
    message = str(caught.value)
    for way_out in (
        "backbone='efficientnet_lite0'",
        "weights=<path of a .pth or .safetensors file>",
        f"resnet18-f37072fd.pth copied to {tmp_path / 'hub' / 'checkpoints'}",
        "weights=None",
    ):
        assert way_out in message


def test_every_downloadable_model_names_its_file(tmp_path):
    """The address and hash are torchvision's own."""
    assert find_weights("resnet18", "DEFAULT").name == str(ResNet18_Weights.DEFAULT)
    assert ResNet18_Weights.DEFAULT.url.endswith("resnet18-f37072fd.pth")


def test_random_weights_follow_the_seed():
    def first(seed):
        return load_backbone("resnet18", None, 32, seed).prefix(1, "auto").state_dict()

    a, b, c = first(0), first(0), first(1)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], c[n]) for n in a)
