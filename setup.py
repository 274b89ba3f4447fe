"""`pip install .` without ROS: training, conversion, evaluation anywhere. With ROS: see CMakeLists.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).resolve().parent
version = re.search(r'__version__ = "(.+)"', (root / "vipra_ros" / "__init__.py").read_text()).group(1)


def shared(*folders: str) -> list[tuple[str, list[str]]]:
    """The shipped files under `folders`, to be installed into share/vipra_ros, where `config.share` looks."""
    found = {}
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                where = path.parent.relative_to(root).as_posix()
                found.setdefault(f"share/vipra_ros/{where}", []).append(path.relative_to(root).as_posix())
    return list(found.items())


robot = ["franky-control>=2.0,<3", "ruckig>=0.19", "dynamixel-sdk>=4.1,<5"]
sim = ["franky-sim>=1.0.4", "mujoco>=3.3", "opencv-python-headless>=4.10", *robot]
train = ["torch>=2.6", "transformers>=4.53", "tokenizers>=0.21", "safetensors>=0.5", "pyarrow>=18", "av>=14",
         "opencv-python-headless>=4.10", "rosbags>=0.10.4", "matplotlib>=3.9"]
serve = ["websockets>=13", "msgpack>=1.0.5", "opencv-python-headless>=4.10"]
console = ["nicegui>=3.0,<4"]
view = ["rerun-sdk>=0.41,<0.42"]  # its recordings and its API change from one release to the next
tensorboard = ["tensorboard>=2.18", *train]
lora = ["peft>=0.17", *train]
losses = ["torchvision>=0.21", "lpips>=0.1.4", *train]
dev = ["msgpack>=1", "sentencepiece>=0.2", "pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "ruff>=0.9"]

setup(
    name="vipra_ros",
    version=version,
    description="Robot policies pretrained on video (ViPRA) driving a Franka arm through ROS 2.",
    long_description=(root / "README.md").read_text() if (root / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": "."},  # an editable install is then a plain path entry, found before any built copy
    packages=find_packages(include=["vipra_ros", "vipra_ros.*"]),
    package_data={"vipra_ros": ["py.typed"]},
    data_files=shared("config", "launch", "models"),
    install_requires=["numpy>=1.26", "PyYAML>=6", "rich>=13", "honcho>=2"],
    extras_require={"robot": robot, "sim": sim, "train": train, "serve": serve, "console": console, "view": view,
                    "tensorboard": tensorboard, "losses": losses, "lora": lora,
                    "ray": ["ray>=2.9", *train], "onnx": ["onnx>=1.18", "onnxruntime>=1.20", "onnxscript>=0.5", *train],
                    "dev": dev},
    entry_points={"console_scripts": ["vipra = vipra_ros.cli:main"]},
)
