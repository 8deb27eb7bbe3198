import re
from pathlib import Path

from setuptools import find_packages, setup


root = Path(__file__).parent

setup(
    name="jca",
    version=re.search(r'__version__ = "(.+)"', (root / "jca/__init__.py").read_text())[1],
    description="Face and voice in, a valence/arousal timeline out: joint cross-attention as a Transformers model",
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    # the flat modules travel with checkpoints and are importable on their own; jca/ is what a checkpoint need not carry
    py_modules=[
        "configuration_jca",
        "detection_jca",
        "encoders_jca",
        "faces_jca",
        "fusions_jca",
        "media_jca",
        "modeling_jca",
        "pipeline_jca",
        "processing_jca",
    ],
    packages=find_packages(include=["jca", "jca.*"]),
    package_data={"jca": ["py.typed"]},
    install_requires=[
        "accelerate>=1.10",
        "av>=17",
        "datasets>=5",
        "evaluate>=0.4.6",
        "huggingface-hub>=2",
        "lz4>=4",
        "mtcnn>=1.0,<2",
        "numpy>=1.26",
        "pyarrow>=21",
        "pyyaml>=6",
        "safetensors>=0.5",
        "soundfile>=0.12",
        "torch>=2.6",
        "tqdm>=4.66",
        "transformers>=5.20",
    ],
    extras_require={
        "augment": ["kornia>=0.8"],
        "formats": ["pympi-ling>=1.71", "pysubs2>=1.7"],
        "plots": ["matplotlib>=3.9", "pillow>=10.1"],
        "trackers": ["tensorboard>=2.19", "trackio>=0.20"],
        "dev": [
            "audmetric>=1.4",
            "kornia>=0.8",
            "matplotlib>=3.9",
            "onnx>=1.18",
            "onnxruntime>=1.22",
            "onnxscript>=0.5",
            "pillow>=10.1",
            "praatio>=6.2",
            "pre-commit>=4",
            "pympi-ling>=1.71",
            "pysubs2>=1.7",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "scipy>=1.13",
            "tensorboard>=2.19",
            "trackio>=0.20",
            "setuptools>=77",
            "typos>=1.30",
        ],
    },
)
