import pickle

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

import jca
from encoders_jca import R2Plus1DConv, SamePadding, TCNConv, feature_size


TINY_RESNET = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
ENCODERS = {
    "pooled": jca.R2Plus1DConfig(stem_size=4, hidden_sizes=[4, 8], depths=[1, 1]),
    "map": jca.R2Plus1DConfig(stem_size=4, hidden_sizes=[4, 8], depths=[1, 1], spatial_size=3),
    "i3d": jca.I3DConfig(width_multiplier=1 / 16),
    "i3d_tcn": jca.I3DConfig(width_multiplier=1 / 16, tcn_channels=[8, 12], tcn_kernel_size=3),
    "resnet_gru": jca.ResNetGRUConfig(resnet_config={"model_type": "resnet", **TINY_RESNET}, hidden_size=6),
}
SIZES = {"pooled": 8, "map": 72, "i3d": 64, "i3d_tcn": 12, "resnet_gru": 6}


def tiny_encoder(name, seed=0):
    torch.manual_seed(seed)
    model = AutoModel.from_config(ENCODERS[name])
    with torch.no_grad():
        for module in model.modules():  # as after training: statistics are not 0 and 1
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def clips(batch=2, size=32, seed=0):
    return torch.randn(batch, 8, 3, size, size, generator=torch.Generator().manual_seed(seed))


every_encoder = pytest.mark.parametrize("name", list(ENCODERS))


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_default_encoders_have_the_sizes_of_the_published_networks():
    def count(model_class, config):
        with torch.device("meta"):
            return sum(p.numel() for p in model_class(config).parameters())

    # the common release of I3D without its classifier of 1024 x 400 + 400
    assert count(jca.I3DModel, jca.I3DConfig()) == 12_697_264 - 410_000
    tcn = 4 * 2 * (512 * 512 * 5 + 2 * 512) + (1024 - 512) * 512 * 5 + 1024 * 512 + 512
    assert count(jca.I3DModel, jca.I3DConfig(tcn_channels=[512] * 4)) == 12_287_264 + tcn
    # torchvision's resnet18 without its classifier; three gates, each with two biases
    gru = 3 * (512 * 512 + 512 * 512 + 2 * 512)
    assert count(jca.ResNetGRUModel, jca.ResNetGRUConfig()) == 11_689_512 - 513_000 + gru
    assert feature_size(jca.R2Plus1DConfig(spatial_size=7)) == 25_088
    assert [feature_size(config) for config in (jca.I3DConfig(), jca.ResNetGRUConfig())] == [1024, 512]


@every_encoder
@torch.no_grad()
def test_feature_is_as_wide_as_said(name):
    model = tiny_encoder(name)
    assert feature_size(model.config) == SIZES[name]
    for frames, size in ((8, 32), (1, 50), (3, 17)):
        output = model(torch.randn(2, frames, 3, size, size))
        assert output.pooler_output.shape == (2, SIZES[name])
    assert torch.equal(model(clips(), return_dict=False)[1], model(clips()).pooler_output)


@torch.no_grad()
def test_r2plus1d_feature_is_the_map_channels_first():
    model = tiny_encoder("map")
    output = model(clips(size=10))  # a map of 3 x 3: nothing is pooled in space
    assert output.last_hidden_state.shape == (2, 8, 4, 3, 3)
    expected = np.stack([clip.numpy().mean(1).reshape(-1) for clip in output.last_hidden_state])
    np.testing.assert_allclose(output.pooler_output.numpy(), expected, atol=1e-6)
    output = model(clips(size=24))  # 6 x 6: mean of four neighbours
    expected = output.last_hidden_state.mean(2).reshape(2, 8, 3, 2, 3, 2).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(output.pooler_output, expected)


@pytest.mark.parametrize(("size", "rows"), [(224, 7), (112, 4), (50, 2), (1, 1)])
@torch.no_grad()
def test_i3d_keeps_time_and_halves_space_five_times(size, rows):
    model, maps = tiny_encoder("i3d"), []
    model.stages.register_module("probe", nn.Identity())  # after the last stage
    model.stages.probe.register_forward_hook(lambda module, inputs, output: maps.append(output))
    output = model(clips(1, size))
    assert maps[0].shape == (1, 64, 8, rows, rows)
    expected = maps[0].mean(dim=(3, 4))
    torch.testing.assert_close(output.last_hidden_state.mT, (expected[..., 1:] + expected[..., :-1]) / 2)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean(1))


# Layers against their definitions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 5, 6, 7])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 2), (3, 1), (3, 2), (7, 2)])
def test_same_padding_is_tensorflows(size, kernel, stride):
    """Output i of a "SAME" layer reads from `i * stride - total // 2` on, with the total that gives ceil(size / stride)."""
    rows = -(-size // stride)
    total = max((rows - 1) * stride + kernel - size, 0)
    x = torch.arange(1.0, size + 1).view(1, 1, 1, 1, size)
    (padded,) = SamePadding((1, 1, kernel), stride)(x).flatten().unsqueeze(0)
    windows = padded.unfold(0, kernel, stride)
    assert len(windows) == rows
    for i, window in enumerate(windows):
        first = i * stride - total // 2
        expected = [x.flatten()[j].item() if 0 <= j < size else 0 for j in range(first, first + kernel)]
        assert window.tolist() == expected


@torch.no_grad()
def test_tcn_convolution_is_causal_and_normalised():
    torch.manual_seed(0)
    conv = TCNConv(3, 4, kernel_size=3, dilation=2)
    for parameter in conv.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 9).numpy()
    direction, length, bias = (p.numpy() for p in (conv.direction, conv.length, conv.bias))
    kernel = np.stack([g * v / np.sqrt((v**2).sum()) for g, v in zip(length[:, 0], direction, strict=True)])
    expected = np.zeros((4, 9))
    for t in range(9):
        for k in range(3):
            if (past := t - 2 * (2 - k)) >= 0:
                expected[:, t] += kernel[:, :, k] @ x[:, past]
    np.testing.assert_allclose(conv(torch.tensor(x)[None])[0].numpy(), expected + bias[:, None], atol=1e-5)


@torch.no_grad()
def test_tcn_starts_with_the_kernels_it_was_given():
    """Weight normalisation divides by a norm that initialisation multiplies by."""
    block = tiny_encoder("i3d_tcn").tcn[1]
    for conv in (block.conv1, block.conv2):
        torch.testing.assert_close(conv.length, conv.direction.norm(dim=(1, 2), keepdim=True))
    assert 0.3 < conv.direction.std() * (conv.direction[0].numel() / 2) ** 0.5 < 3


@torch.no_grad()
def test_resnet_gru_is_its_parts_frame_by_frame():
    model, x = tiny_encoder("resnet_gru"), clips()
    output = model(x)
    features = torch.stack([model.resnet(x[:, t]).pooler_output.flatten(1) for t in range(8)], dim=1)
    hidden = torch.zeros(2, 6)
    gru = model.gru
    for t in range(8):  # the equations of torch.nn.GRU
        r_x, z_x, n_x = F.linear(features[:, t], gru.weight_ih_l0, gru.bias_ih_l0).chunk(3, dim=1)
        r_h, z_h, n_h = F.linear(hidden, gru.weight_hh_l0, gru.bias_hh_l0).chunk(3, dim=1)
        r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
        hidden = (1 - z) * (n_x + r * n_h).tanh() + z * hidden
        torch.testing.assert_close(output.last_hidden_state[:, t], hidden)
    torch.testing.assert_close(output.pooler_output, hidden)


@every_encoder
@torch.no_grad()
def test_order_of_frames_and_neighbours_in_the_batch(name):
    model, x = tiny_encoder(name), clips()
    feature = model(x).pooler_output
    torch.testing.assert_close(model(x[1:]).pooler_output, feature[1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(x.flip(1)).pooler_output, feature, atol=1e-3)


# Training and saving --------------------------------------------------------------------------------------------------


@every_encoder
@torch.no_grad()
def test_save_and_load(name, tmp_path):
    model = tiny_encoder(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(clips()).pooler_output, model(clips()).pooler_output)
    assert torch.equal(pickle.loads(pickle.dumps(model))(clips()).pooler_output, model(clips()).pooler_output)


@every_encoder
@torch.no_grad()
def test_weights_that_a_file_lacks_are_drawn_as_for_a_new_model(name, tmp_path):
    """`from_pretrained` builds on the meta device: what `_init_weights` does not set would be whatever lay in memory."""
    model = tiny_encoder(name)
    model.save_pretrained(tmp_path, state_dict={"none_of_them": torch.zeros(1)})
    loaded = AutoModel.from_pretrained(tmp_path)
    for (key, parameter), other in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.isfinite(parameter).all(), key
        assert parameter.std(correction=0) <= 3 * other.std(correction=0) + 1e-6, key
        assert (parameter == 0).all() == (other == 0).all(), key


@every_encoder
def test_checkpointing_gives_the_same_gradients(name):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_encoder(name).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(clips()).pooler_output.square().sum().backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients[0].values())
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


@every_encoder
@torch.no_grad()
def test_half_precision(name, tmp_path):
    model = tiny_encoder(name)
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    feature = half(clips().bfloat16()).pooler_output
    assert feature.dtype is torch.bfloat16
    expected = model(clips()).pooler_output
    assert (feature.float() - expected).norm() < 0.05 * expected.norm()


@every_encoder
def test_inside_the_model(name, tmp_path):
    model = tiny_model(video_config=ENCODERS[name].to_dict(), num_clips=3)
    pixel_values = clips(3, size=16)[None]
    with torch.no_grad():
        features = model.get_video_features(pixel_values)
        assert features.shape == (1, 3, SIZES[name])
        expected = model(pixel_values=pixel_values).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded.config.video_config) is type(ENCODERS[name])
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=pixel_values).logits, expected)
    loaded.train()(pixel_values=pixel_values, labels=torch.rand(1, 3, 2)).loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.video_encoder.parameters())


@pytest.mark.parametrize("name", ["i3d_tcn", "resnet_gru"])
def test_a_feature_can_be_learnt(name):
    """Which of two still pictures a clip shows."""
    model = tiny_encoder(name).train()
    torch.manual_seed(0)
    pictures = torch.randn(2, 1, 3, 16, 16)
    labels = torch.arange(2).repeat(8)
    head = nn.Linear(SIZES[name], 2)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], 1e-2)
    for _ in range(25):
        x = pictures[labels].expand(-1, 4, -1, -1, -1) + 0.1 * torch.randn(16, 4, 3, 16, 16)
        loss = F.cross_entropy(head(model(x).pooler_output), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


# Bad values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jca.R2Plus1DConfig(spatial_size=0), "spatial_size=0 must be at least 1, or None"),
        (lambda: jca.I3DConfig(width_multiplier=0), "width_multiplier=0 must be above 0"),
        (lambda: jca.I3DConfig(tcn_kernel_size=0), "tcn_kernel_size=0 must be at least 1"),
        (lambda: jca.I3DConfig(tcn_dropout=1), r"tcn_dropout=1 is a probability: give a value in \[0, 1\)"),
        (lambda: jca.ResNetGRUConfig(num_layers=0), "num_layers=0 must be at least 1"),
        (lambda: jca.JCAConfig(**{**TINY, "video_config": {"model_type": "i3d", "tcn_channels": 8}}), "tcn_channels"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(Exception, match=message):
        make()


@torch.no_grad()
@pytest.mark.parametrize("steps", [16, 17, 33, 47])
def test_stretches_of_a_track_are_the_track(steps):
    """What is read a stretch at a time in evaluation is what training, which reads it at once, would give."""
    torch.manual_seed(0)
    for stride in (1, 2):
        convolution = R2Plus1DConv(3, 4, 5, stride).double().eval()
        track = torch.randn(2, 3, steps, 6, 6).double()
        got = convolution(track)
        torch.testing.assert_close(got, nn.Sequential.forward(convolution, track))
        in_space, weight = nn.Sequential(*list(convolution)[:3])(track), convolution[3].weight
        torch.testing.assert_close(got, nn.functional.conv3d(in_space, weight, None, (stride, 1, 1), (1, 0, 0)))
        every_step = convolution(track, stride=1)  # of which a stride leaves some out
        torch.testing.assert_close(got, every_step[:, :, ::stride])
        assert got.shape[2] == (steps + stride - 1) // stride
