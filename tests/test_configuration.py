import pytest
from conftest import TINY_VIDEO, tiny_config
from transformers import AutoConfig, ResNetConfig

import jca


def test_defaults_are_the_papers():
    config = jca.JCAConfig()
    assert (config.num_clips, config.projection_size, config.attention_size) == (16, 128, 32)
    assert config.fusion == "joint_cross_attention"
    assert config.id2label == {0: "valence", 1: "arousal"}
    assert config.problem_type == "regression"
    assert config.video_config.hidden_sizes == (64, 128, 256, 512)
    assert isinstance(config.audio_config, ResNetConfig)
    assert config.audio_config.num_channels == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fusion": "concat", "modalities": ["audio"]},
        {"id2label": {0: "valence"}},
        {"temporal": ["joint"], "temporal_layer": "tcn"},
    ],
)
def test_round_trip(tmp_path, changes):
    config = tiny_config(**changes)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is jca.JCAConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert type(loaded.video_config) is jca.R2Plus1DConfig
    assert loaded.num_labels == len(config.id2label)


def test_lstms_stand_where_a_config_does_not_say_which_layer():
    """As in those that were saved before there was a choice."""
    saved = tiny_config(temporal=["video"]).to_diff_dict()
    assert saved.pop("temporal_layer") == "lstm"
    assert jca.JCAConfig.from_dict(saved).to_diff_dict() == {**saved, "temporal_layer": "lstm"}


def test_saved_config_finds_code_and_task(tmp_path):
    saved = tiny_config().to_dict()
    assert saved["auto_map"]["AutoModel"] == "modeling_jca.JCAModel"
    assert saved["custom_pipelines"]["audio-visual-emotion"]["impl"] == "pipeline_jca.AudioVisualEmotionPipeline"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": "sum"}, "fusion='sum' is not known. Choose one of concat, cross_attention, joint_cross_attention"),
        ({"modalities": ["video"]}, 'needs video and audio.*A unimodal model takes fusion="concat"'),
        ({"modalities": ["text"]}, r"modalities=\['text'\] must be one or both of \['video', 'audio'\]"),
        ({"modalities": []}, "must be one or both"),
        ({"temporal_layer": "gru"}, "temporal_layer='gru' is not known. Choose one of lstm, tcn"),
        ({"num_clips": 0}, "num_clips=0 must be at least 1"),
        ({"temperature": 0}, "must be above 0"),
        ({"dropout": 1.0}, r"give a value in \[0, 1\)"),
        ({"num_clips": "16"}, "num_clips"),
        ({"video_config": {**TINY_VIDEO, "depths": [1]}}, "must name the same stages"),
    ],
)
def test_bad_values_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**changes)
