"""Fast paths compute what the model computes, through the same pipeline, and what does not is refused."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY_VIDEO, tiny_model, tiny_processor
from media import write_video
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoProcessor, ResNetConfig, ResNetModel, Wav2Vec2FeatureExtractor, pipeline

import jca
from jca import backends
from jca.backends import ExportedJCAModel, FastJCAModel, export, load_pipeline, optimize
from jca.cards import write_card
from jca.features import describe_features
from jca.publishing import PublishingError, find_files


ROOT = Path(__file__).parents[1]
I3D = {"model_type": "i3d", "width_multiplier": 0.03, "tcn_channels": [8, 8]}
RESNET = {"num_channels": 3, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
WAYS = [("onnx", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")]
ROUNDING = {"float32": 1e-5, "bfloat16": 0.04}  # relative, of all features together


def trained(**changes) -> jca.JCAModel:
    """A tiny model whose batch normalisation has statistics and weights as training leaves them, not 0 and 1."""
    model = tiny_model(**changes)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model


def clips(windows: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "pixel_values": torch.randn(windows, 16, 8, 3, 16, 16, generator=generator),
        "input_features": torch.randn(windows, 16, 64, 107, generator=generator),
    }


def assert_near(got: torch.Tensor, expected: torch.Tensor, dtype: str) -> None:
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    assert (got - expected).norm() <= ROUNDING[dtype] * expected.norm()


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "new"
    differences = export(model, tiny_processor(), folder)
    assert set(differences) == {"video", "audio"}
    assert max(differences.values()) < 1e-5
    return folder


@pytest.fixture(scope="module")
def int8(model, video, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    assert max(export(model, tiny_processor(), folder, [video], "openvino").values()) < 0.1
    return folder


@pytest.fixture(scope="module")
def rows(model, video):
    return pipeline("audio-visual-emotion", model=model, processor=tiny_processor())(video)


@torch.no_grad()
@pytest.mark.parametrize(("backend", "dtype"), WAYS)
def test_an_exported_folder_goes_where_a_model_goes(model, exported, video, rows, backend, dtype):
    pipe = pipeline("audio-visual-emotion", model=str(exported), dtype=dtype, model_kwargs={"backend": backend})
    assert isinstance(pipe.model, ExportedJCAModel)
    assert pipe.model.config.backend == backend
    assert pipe.model.name_or_path == str(exported)
    assert pipe.processor.to_dict() == AutoProcessor.from_pretrained(exported).to_dict()
    got = pipe(video)
    for name in ("valence", "arousal"):
        difference = np.abs([a[name] - b[name] for a, b in zip(got, rows, strict=True)])
        assert difference.max() < ROUNDING[dtype]
    assert [{**row, "valence": 0, "arousal": 0} for row in got] == [{**row, "valence": 0, "arousal": 0} for row in rows]
    assert list(pipe.stream(video)) == got
    assert len(list(pipe.stream(video, live=True))) == len(rows)
    out, expected = pipe.model(**clips(), output_attentions=True), model(**clips(), output_attentions=True)
    assert_near(out.logits, expected.logits, dtype)
    assert_near(out.video_attentions[0], expected.video_attentions[0], dtype)


@torch.no_grad()
def test_clips_that_are_not_there_are_not_encoded(exported):
    model, mask = AutoModel.from_pretrained(exported), torch.ones(1, 16)
    mask[:, 3:] = 0
    features = model.get_video_features(clips()["pixel_values"], mask)
    assert (features[:, 3:] == 0).all()
    assert (features[:, :3] != 0).any(-1).all()
    torch.testing.assert_close(features[:, :3], model.get_video_features(clips()["pixel_values"][:, :3]))


def check_graphs(folder: Path, model: jca.JCAModel, lengths: list[int]) -> None:
    """Each graph alone in ONNX Runtime, for several numbers of clips and windows."""
    features = []
    for modality, (name, x) in zip(("video", "audio"), clips().items(), strict=True):
        session = onnxruntime.InferenceSession(folder / f"{modality}_encoder.onnx")
        for count in (1, 16):
            (got,) = session.run(["features"], {name: x[0, :count].numpy()})
            expected = getattr(model, f"get_{modality}_features")(x[:, :count])[0]
            assert_near(torch.from_numpy(got), expected, "float32")
        features.append(got)
    session = onnxruntime.InferenceSession(folder / "fusion.onnx")
    names = [x.name for x in session.get_inputs()]
    assert names == ["video_features", "audio_features", "video_mask", "audio_mask"]
    for windows, length in zip((3, 1), lengths, strict=True):
        inputs = [np.tile(x[None, :length], (windows, 1, 1)) for x in features]
        inputs += [np.ones((windows, length), np.float32) for _ in features]
        inputs[3][:, 2:] = 0
        (got,) = session.run(["logits"], dict(zip(names, inputs, strict=True)))
        expected = model(**{name: torch.from_numpy(x) for name, x in zip(names, inputs, strict=True)}).logits
        assert_near(torch.from_numpy(got), expected, "float32")


@torch.no_grad()
def test_graphs_are_files_for_any_runtime(model, exported, tmp_path):
    check_graphs(exported, model, [16, 16])
    other = trained(fusion="cross_attention", temporal=["joint"])  # takes windows of any length
    export(other, tiny_processor(), tmp_path)
    check_graphs(tmp_path, other, [16, 5])
    for fast in (AutoModel.from_pretrained(tmp_path), optimize(other, tiny_processor(), "float32")):
        assert_near(fast(**clips()).logits, other(**clips()).logits, "float32")


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.bfloat16, "auto"])
@pytest.mark.parametrize(
    "video_config",
    [
        {"model_type": "r2plus1d", "stem_size": 4, "hidden_sizes": [4, 8], "depths": [2, 1]},
        I3D,
        {"model_type": "resnet_gru", "resnet_config": {"model_type": "resnet", **RESNET}, "hidden_size": 8},
    ],
    ids=["r2plus1d", "i3d", "resnet_gru"],
)
def test_optimized_encoders_compute_the_same(video_config, dtype):
    model = trained(video_config=video_config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = optimize(model, tiny_processor(), dtype)
    assert not [m for m in fast.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    rounding = "float32" if dtype == "float32" else "bfloat16"
    for modality, x in zip(("video", "audio"), clips().values(), strict=True):
        name = f"get_{modality}_features"
        assert_near(getattr(fast, name)(x), getattr(model, name)(x), rounding)
        dtypes = {parameter.dtype for parameter in getattr(fast, f"{modality}_encoder").parameters()}
        assert len(dtypes) == 1
        assert dtype == "auto" or str(*dtypes).endswith(str(dtype).removeprefix("torch."))
    assert_near(fast(**clips()).logits, model(**clips()).logits, rounding)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_clips_go_through_a_few_at_a_time(model, exported, monkeypatch):
    x, counts = clips()["pixel_values"], []
    fast = optimize(model, tiny_processor(), "float32")
    fast.video_encoder.run.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
    expected = fast.get_video_features(x)
    monkeypatch.setattr(backends, "AT_ONCE", 3 * x[0, 0].numel())
    torch.testing.assert_close(fast.get_video_features(x), expected)
    assert counts == [16, 3, 3, 3, 3, 2, 2]
    graphs = AutoModel.from_pretrained(exported, backend="openvino")
    assert_near(graphs.get_video_features(x), model.get_video_features(x), "float32")


@torch.no_grad()
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_int8(model, int8, video, rows, backend):
    for name in ("video", "audio"):
        graph = onnx.load(int8 / f"{name}_encoder.onnx").graph
        made = {output: node for node in graph.node for output in node.output}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert len(convolutions) > 5
        weights = {x.name: x for x in graph.initializer}
        for node in convolutions:  # what it reads and its weights both come from 8 bits
            assert [made[x].op_type for x in node.input[:2]] == ["DequantizeLinear"] * 2
            assert weights[made[node.input[1]].input[0]].data_type == onnx.TensorProto.INT8
    fast = AutoModel.from_pretrained(int8, backend=backend)
    got = pipeline("audio-visual-emotion", model=fast, processor=tiny_processor())(video)
    for name in ("valence", "arousal"):
        expected = np.array([row[name] for row in rows])
        difference = np.array([row[name] for row in got]) - expected
        assert 0 < np.abs(difference).max() < 0.2 * np.abs(expected).max()


@torch.no_grad()
def test_encoders_of_transformers(video, tmp_path):
    vit = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vit |= {"model_type": "vit", "image_size": 16, "patch_size": 8}
    wav2vec2 = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    wav2vec2 |= {"model_type": "wav2vec2", "conv_dim": [8, 8], "conv_stride": [20, 16], "conv_kernel": [20, 16]}
    wav2vec2 |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    model = tiny_model(video_config=vit, audio_config=wav2vec2)
    feature_extractor = Wav2Vec2FeatureExtractor(sampling_rate=16000)
    processor = jca.JCAProcessor(feature_extractor, jca.JCAVideoProcessor(size=16, faces="center"))
    export(model, processor, tmp_path, [video])
    for name in ("video", "audio"):  # attention stays as it is
        assert not {"QuantizeLinear", "DequantizeLinear"} & {
            node.op_type for node in onnx.load(tmp_path / f"{name}_encoder.onnx").graph.node
        }
    inputs = processor(videos=video)
    assert "input_values" in inputs
    inputs = {name: x[:1] for name, x in inputs.items()}
    expected = model(**inputs).logits
    ways = [AutoModel.from_pretrained(tmp_path, backend=backend) for backend in ("onnx", "openvino")]
    for fast in (*ways, optimize(model, processor, "float32")):
        torch.testing.assert_close(fast(**inputs).logits, expected, atol=1e-4, rtol=1e-3)
        assert_near(
            fast.get_video_features(inputs["pixel_values"]), model.get_video_features(inputs["pixel_values"]), "float32"
        )
    with pytest.raises(ValueError, match="reads input_values"):
        ways[0](input_features=inputs["input_values"])


@torch.no_grad()
def test_a_model_of_one_modality(silent_video, tmp_path):
    model = trained(modalities=["video"], fusion="concat")
    export(model, tiny_processor(), tmp_path, [silent_video])
    assert not (tmp_path / "audio_encoder.onnx").exists()
    fast, processor = AutoModel.from_pretrained(tmp_path, backend="openvino"), tiny_processor()
    rows = [pipeline("audio-visual-emotion", model=m, processor=processor)(silent_video) for m in (fast, model)]
    assert len(rows[0]) == len(rows[1]) == 40
    np.testing.assert_allclose(rows[0][9]["valence"], rows[1][9]["valence"], atol=0.1)


def test_kept_features_of_each_way_have_their_own_name(model, exported, int8):
    ways = [model, *(optimize(model, tiny_processor(), dtype) for dtype in ("float32", "bfloat16"))]
    ways += [AutoModel.from_pretrained(exported, backend=backend, dtype=dtype) for backend, dtype in WAYS]
    ways.append(AutoModel.from_pretrained(int8))
    descriptions = [describe_features(way, tiny_processor(), 8, "no") for way in ways]
    assert len({description["weights"] for description in descriptions}) == len(ways)
    again = describe_features(AutoModel.from_pretrained(exported), tiny_processor(), 8, "no")
    assert again["weights"] == descriptions[3]["weights"]


def test_openvino_tells_nobody(int8, tmp_path):
    code = f"import jca.backends, transformers; transformers.AutoModel.from_pretrained({str(int8)!r})"
    code += "; import sys; print('openvino' in sys.modules, 'openvino_telemetry.main' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["True", "False"], done.stderr[-2000:]
    assert not (tmp_path / "intel").exists()  # where it keeps an id of the user


def test_an_exported_folder_runs_with_what_it_was_exported_for(exported, int8, monkeypatch):
    for folder, backend, package in ((exported, "onnx", "onnxruntime"), (int8, "openvino", "openvino")):
        other = {"onnxruntime": "openvino", "openvino": "onnxruntime"}[package]
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, other, None)
            assert AutoModel.from_pretrained(folder).config.backend == backend
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=package):
                AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_graph_that_computes_something_else_is_refused(request, tmp_path, precision, backend):
    shutil.copytree(request.getfixturevalue({"float32": "exported"}.get(precision, precision)), tmp_path / "broken")
    path = tmp_path / "broken/audio_encoder.onnx"
    graph = onnx.load(path)
    for weight in graph.graph.initializer:
        if len(weight.dims) == 4:
            array = onnx.numpy_helper.to_array(weight).copy()
            array[0] *= -1  # one output of each convolution
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(graph, path)
    message = rf"audio_encoder.onnx with backend='{backend}' gives features that differ by .* must be exported anew"
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(path.parent, backend=backend)
    with pytest.raises(ValueError, match=message):
        pipeline("audio-visual-emotion", model=str(path.parent), model_kwargs={"backend": backend})


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_what_is_no_graph_is_refused(exported, tmp_path, backend):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    (tmp_path / "audio_encoder.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=rf"backend='{backend}' can not open .*audio_encoder.onnx: "):
        AutoModel.from_pretrained(tmp_path, backend=backend)
    (tmp_path / "video_encoder.onnx").unlink()
    with pytest.raises(OSError, match="video_encoder.onnx"):
        AutoModel.from_pretrained(tmp_path, backend=backend)


@torch.no_grad()
@pytest.mark.parametrize("name", ["check.safetensors", "fusion.safetensors"])
def test_damaged_tensors_are_refused(exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "damaged")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name} is damaged .*: export the model anew"):
        load_pipeline(folder, "onnx")
    if name == "fusion.safetensors":
        save_file(dict(list(load_file(exported / name).items())[1:]), folder / name)
        with pytest.raises(ValueError, match=rf"{name} of .*damaged is of another model .*: export the model anew"):
            load_pipeline(folder, "onnx")


def test_a_model_that_is_an_encoder_is_refused(tmp_path):
    model = ResNetModel(ResNetConfig(**{**RESNET, "num_channels": 1}))
    model.save_pretrained(tmp_path / "encoder")
    tiny_processor().save_pretrained(tmp_path / "encoder")
    for backend in (None, "torch"):
        with pytest.raises(ValueError, match=r"The model in .*encoder is a 'resnet', which is an encoder at most"):
            load_pipeline(tmp_path / "encoder", backend)
    for make in (lambda: optimize(model, tiny_processor()), lambda: export(model, tiny_processor(), tmp_path / "new")):
        with pytest.raises(ValueError, match="The model is a 'resnet', which is an encoder at most: give a JCAModel"):
            make()
    assert not (tmp_path / "new").exists()


def test_batch_normalisation_that_reads_no_convolution_stays():
    model = trained()
    width = model.video_encoder.config.hidden_sizes[0]
    norm = nn.BatchNorm3d(width)
    norm.running_mean.copy_(torch.linspace(-1, 1, width))
    model.video_encoder.stem.append(norm.eval())  # behind the ReLU
    fast, x = optimize(model, tiny_processor(), "float32"), clips()["pixel_values"]
    assert sum(isinstance(module, nn.BatchNorm3d) for module in fast.modules()) == 1
    assert_near(fast.get_video_features(x), model.get_video_features(x), "float32")


class LosesDigits(nn.Module):
    def forward(self, x):
        return (x + 1e4) - 1e4


def test_an_encoder_that_bfloat16_ruins_is_refused():
    model = trained()
    model.video_encoder.stem.append(LosesDigits())
    optimize(model, tiny_processor(), "float32")
    with pytest.raises(
        ValueError, match="PyTorch .* gives features that differ by .* at most 0.05 is rounding in bfloat16"
    ):
        optimize(model, tiny_processor(), "bfloat16")


def test_no_number_is_no_agreement():
    with pytest.raises(ValueError, match="differ by nan"):
        backends.check_features(torch.full((1, 4), torch.nan), torch.ones(1, 4), "bfloat16", "It")


def test_what_is_asked_for_must_be_there(model, exported, silent_video, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="backend='tensorrt' is not known. Choose one of onnx, openvino"):
        AutoModel.from_pretrained(exported, backend="tensorrt")
    with pytest.raises(ValueError, match="backend='onnx' has no dtype='bfloat16'"):
        AutoModel.from_pretrained(exported, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="dtype='float16' is not known here"):
        optimize(model, tiny_processor(), "float16")
    with pytest.raises(ValueError, match="Nothing that was given to calibrate with holds audio"):
        export(model, tiny_processor(), tmp_path, [silent_video])
    assert not (tmp_path / "config.json").exists()
    for package, extra in (("openvino", "openvino"), ("onnxruntime", "onnx")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"Graphs need {package}: pip install 'jca\[{extra}\]'"):
            AutoModel.from_pretrained(exported, backend=extra)
    with pytest.raises(ImportError, match=r"pip install 'jca\[onnx\]'"):
        export(model, tiny_processor(), tmp_path)


def test_what_can_not_be_made_fast_is_refused(model, exported, tmp_path):
    for fast in (optimize(model, tiny_processor()), AutoModel.from_pretrained(exported)):
        for make in (lambda m: optimize(m, tiny_processor()), lambda m: export(m, tiny_processor(), tmp_path)):
            with pytest.raises(ValueError, match="was made for inference already"):
                make(fast)
    tracks = trained(video_config={**TINY_VIDEO, "tracks": True})
    with pytest.raises(ValueError, match=r"trained for tracks \(tracks=True\)"):
        export(tracks, tiny_processor(), tmp_path)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tracks_are_made_fast_as_tracks(video, dtype):
    plain, processor = trained(video_config={**TINY_VIDEO, "tracks": True}), tiny_processor()
    fast, track = optimize(plain, processor, dtype), processor.inputs(next(processor.windows(video, tracks=True)))
    assert fast.reads_tracks
    sizes = processor.track_sizes(8)
    assert_near(fast.forward_track(**track, sizes=sizes), plain.forward_track(**track, sizes=sizes), dtype)
    x = clips()["pixel_values"]
    assert_near(fast.get_video_features(x), plain.get_video_features(x), dtype)


@torch.no_grad()
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_pictures_are_computed_once(video, tmp_path, int8, monkeypatch):
    """Encoders that see frame by frame do so in graphs, too: clips share the frames in which they overlap."""
    plain, processor = trained(video_config={"model_type": "resnet", **RESNET}), tiny_processor()
    block = processor.inputs(next(processor.windows(video, tracks=True)))
    sizes, track = processor.track_sizes(8), [block[name] for name in ("pixel_values", "frame_mask", "clip_frames")]
    shown = int((block["frame_mask"] != 0).sum())
    export(plain, processor, tmp_path / "new", [video] if int8 else None)
    with monkeypatch.context() as patch:
        patch.setattr(backends, "as_read", lambda encoder, clips: clips)
        export(plain, processor, tmp_path / "clips", [video] if int8 else None)  # as folders were before
    ways = {backend: AutoModel.from_pretrained(tmp_path / "new", backend=backend) for backend in ("onnx", "openvino")}
    ways["torch"] = optimize(plain, processor, "float32")
    expected, x = plain.get_track_features(*track, sizes), processor(videos=video)["pixel_values"][:1]
    for way, fast in ways.items():
        assert fast.reads_tracks
        run, seen = fast.video_encoder.run, []
        rounding = 0.1 if int8 and way != "torch" else ROUNDING["float32"]

        def count(pictures, run=run, seen=seen):
            seen.append(len(pictures))
            return run(pictures)

        if way == "torch":  # there it is a module
            run.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
        else:
            fast.video_encoder.run = count
        features = fast.get_track_features(*track, sizes)
        assert (features - expected).norm() <= rounding * expected.norm()
        assert sum(seen) == shown
        difference = fast.get_video_features(x) - plain.get_video_features(x)
        assert difference.norm() <= rounding * plain.get_video_features(x).norm()
    old = AutoModel.from_pretrained(tmp_path / "clips")
    assert not old.reads_tracks
    difference = old.get_video_features(x) - ways["onnx"].get_video_features(x)
    assert difference.norm() <= (0.1 if int8 else ROUNDING["float32"]) * plain.get_video_features(x).norm()


@torch.no_grad()
def test_a_model_in_bfloat16_is_made_fast_as_well():
    plain, x = trained().bfloat16().float(), clips()
    fast = optimize(copy.deepcopy(plain).bfloat16(), tiny_processor(), "float32")
    assert_near(fast(**x).logits, plain(**x).logits, "float32")


def test_a_fast_model_is_not_saved(model, exported, tmp_path):
    for fast in (optimize(model, tiny_processor()), AutoModel.from_pretrained(exported)):
        assert isinstance(fast, FastJCAModel)
        with pytest.raises(ValueError, match="save the model that it was made of"):
            fast.save_pretrained(tmp_path)
        assert not fast.train().video_encoder.training
        assert not any(parameter.requires_grad for parameter in fast.parameters())


@pytest.mark.parametrize(("name", "needs"), [("exported", "onnx"), ("int8", "onnx,openvino")])
def test_an_exported_folder_is_published_with_a_card_that_opens_it(request, name, needs, silent_video, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(name), tmp_path / "published")
    card = write_card(folder).read_text("utf-8")
    assert f"Needs `pip install 'jca[{needs}]'`" in card
    assert ("in int8" in card) == (name == "int8")
    assert "trust_remote_code" not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    shutil.copy(silent_video, folder / "video.mp4")
    run = [sys.executable, "-c", f"{code}\nprint('ROWS', len(rows))"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True)
    assert "ROWS 40" in run.stdout, run.stderr[-3000:]
    assert 'revision="COMMIT")' in write_card(folder, "someone/jca").read_text("utf-8")
    for path in ("video_encoder.onnx", "fusion.safetensors", "check.safetensors", "processor_config.json"):
        assert path in {file.name for file in find_files(folder)}
        (folder / path).rename(tmp_path / path)
        with pytest.raises(PublishingError, match=rf"lacks {path}, without which nobody opens the model"):
            find_files(folder)
        (tmp_path / path).rename(folder / path)


@pytest.mark.parametrize("backend", [None, "torch", "onnx", "openvino"])
def test_load_pipeline(model, exported, video, rows, tmp_path, backend):
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    pipe = load_pipeline(exported if backend in backends.DTYPES else tmp_path, backend)
    assert isinstance(pipe.model, FastJCAModel if backend else jca.JCAModel)
    difference = np.abs([a["valence"] - b["valence"] for a, b in zip(pipe(video), rows, strict=True)])
    assert difference.max() < ROUNDING["bfloat16"]
    if backend in backends.DTYPES:
        with pytest.raises(ValueError, match=r"holds no graphs for backend='\w+': scripts/export.py makes"):
            load_pipeline(tmp_path, backend)
    with pytest.raises(ValueError, match="backend='tensorrt' is not known. Choose one of torch, onnx, openvino"):
        load_pipeline(tmp_path, "tensorrt")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match=r"There is no folder .*nowhere/at all, and no model could be read from the Hub"):
        load_pipeline(tmp_path / "nowhere/at all")
    with pytest.raises(ValueError, match="Unrecognized model in"):
        load_pipeline(tmp_path)


def test_script(model_folder, tmp_path):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", num_frames=40, waveform=0.1 * np.sin(np.arange(60000) / 9))
    command = [sys.executable, str(ROOT / "scripts/export.py"), model_folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments):
        return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, env=environment)

    done = run(tmp_path / "out", "--backend", "openvino", "--calibrate", tmp_path / "videos")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "audio_encoder.onnx: its features differ from the model's by" in done.stdout
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["precision"], config["backend"]) == ("int8", "openvino")
    done = run(tmp_path / "other", "--calibrate", tmp_path / "nothing")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    # importing `jca` is enough
    code = "import jca, transformers; print(len(transformers.pipeline('audio-visual-emotion', model='out')('videos/a.mp4')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.split() == ["40"], done.stderr[-2000:]
