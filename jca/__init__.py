"""Joint cross-attention audio-visual emotion recognition. Importing `jca` registers everything with Transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
from transformers.models.auto.video_processing_auto import (
    AutoVideoProcessor,
)  # a placeholder above, without torchvision
from transformers.pipelines import PIPELINE_REGISTRY

from configuration_jca import I3DConfig, JCAConfig, R2Plus1DConfig, ResNetGRUConfig
from encoders_jca import I3DModel, R2Plus1DModel, ResNetGRUModel
from modeling_jca import JCAModel, ccc_loss
from pipeline_jca import AudioVisualEmotionPipeline
from processing_jca import JCAFeatureExtractor, JCAProcessor, JCAVideoProcessor
from sources_jca import IncompleteMediaWarning, Limits, MediaError, MediaLimitError


__version__ = "0.1.0"

for model_class in (JCAModel, R2Plus1DModel, I3DModel, ResNetGRUModel):
    config_class = model_class.config_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)
AutoProcessor.register(JCAConfig, JCAProcessor, exist_ok=True)
AutoFeatureExtractor.register(JCAConfig, JCAFeatureExtractor, exist_ok=True)
AutoVideoProcessor.register(JCAConfig, JCAVideoProcessor, exist_ok=True)

if "audio-visual-emotion" not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(
        "audio-visual-emotion", pipeline_class=AudioVisualEmotionPipeline, pt_model=AutoModel, type="multimodal"
    )

import_module("jca.backends")  # registers exported models

if TYPE_CHECKING:
    from jca.affwild2 import load_affwild2 as load_affwild2
    from jca.corpus import load_corpus as load_corpus
    from jca.csv_corpus import load_csv as load_csv
    from jca.features import extract_features as extract_features
    from jca.preparation import load_prepared as load_prepared
    from jca.preparation import prepare as prepare
    from jca.timeline import Timeline as Timeline

_LAZY = {  # they import `datasets` and more, which a model needs not
    "Timeline": "jca.timeline",
    "extract_features": "jca.features",
    "load_affwild2": "jca.affwild2",
    "load_corpus": "jca.corpus",
    "load_csv": "jca.csv_corpus",
    "load_prepared": "jca.preparation",
    "prepare": "jca.preparation",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'jca' has no attribute {name!r}")


__all__ = [
    "AudioVisualEmotionPipeline",
    "I3DConfig",
    "I3DModel",
    "IncompleteMediaWarning",
    "JCAConfig",
    "JCAFeatureExtractor",
    "JCAModel",
    "JCAProcessor",
    "JCAVideoProcessor",
    "Limits",
    "MediaError",
    "MediaLimitError",
    "R2Plus1DConfig",
    "R2Plus1DModel",
    "ResNetGRUConfig",
    "ResNetGRUModel",
    "ccc_loss",
    *_LAZY,
]
