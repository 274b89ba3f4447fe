"""Commands that train, and the one that measures what was trained; `cli.py` has the table they stand in."""

import argparse
from pathlib import Path

from vipra_ros.command import (
    CHECKPOINT,
    DEVICE,
    ENGINES,
    EULER_STEPS,
    TASKS,
    WEIGHTS,
    Command,
    arg,
    room,
    settings,
)


def _train_vq(a: argparse.Namespace) -> None:
    preset = Path(a.preset) if a.preset.endswith((".yaml", ".yml")) else \
        room("config:share")("config", "learning", a.preset, "vq.yaml")
    room("learning.vq:train")(a.dataset, a.out, preset, **settings(a.set))


def _overrides(a: argparse.Namespace, job: str) -> dict:
    """Keys of the variant, then those of --set on top."""
    return room("learning.presets:variant")(a.variant, job) | settings(a.set)


def _train_finetune(a: argparse.Namespace) -> None:
    init = a.init if a.init == "scratch" else room("policy.shipped:resolve")(a.init)
    room("learning.finetune:train")(a.dataset, a.out, preset=a.preset, init=init, overrides=_overrides(a, "finetune"))


def _train_latent(a: argparse.Namespace) -> None:
    room("learning.latent:train")([a.dataset, *a.also], a.out, a.preset, _overrides(a, "latent"))


def _label(a: argparse.Namespace) -> None:
    room("learning.label:label")(a.dataset, a.latent, a.out, a.camera, a.stride, a.every, ray=a.ray)


def _train_pretrain(a: argparse.Namespace) -> None:
    room("learning.pretrain:train")(a.dataset, a.labels, a.out, preset=a.preset,
                                     overrides=_overrides(a, "pretrain"), init=a.init)


def _imagine(a: argparse.Namespace) -> None:
    room("learning.imagine:main")(a.checkpoint, a.dataset, a.out, a.count)


def _reproduce(a: argparse.Namespace) -> None:
    room("learning.reproduce:reproduce")(a.out, a.table, a.preset, settings(a.set), a.results, a.plan)


def _bench_flow(a: argparse.Namespace) -> None:
    room("learning.flow_check:main")(a.flow, a.weights, a.size or (), a.episodes, a.seed)


def _bench_memory(a: argparse.Namespace) -> None:
    room("learning.memory_plan:main")(a.stage, a.preset, a.gb, a.json)


def _eval(a: argparse.Namespace) -> None:
    folder = room("policy.shipped:resolve")(a.checkpoint)
    room("learning.evaluate:main")(folder, a.task, a.episodes, a.seed, json_path=a.json,
                                    video=a.video, ros=a.ros, engine=a.engine, device=a.device,
                                    euler_steps=a.euler_steps, weights=a.weights,
                                    latency=None if a.latency_ms is None else a.latency_ms / 1e3,
                                    workers=a.workers, together=a.together)


TRAINING = (
    arg("dataset", metavar="DATASET", help="LeRobot data set, as vipra convert makes it"),
    arg("out", metavar="OUT", help="folder for checkpoints, curves and log; an interrupted training resumes"),
    arg("--preset", default="tiny", help="folder of config/learning, or a YAML file (%(default)s)"),
    arg("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable"),
)
VARIANT = arg("--variant", default="", metavar="NAME",
              help="a method variant of config/learning/variants: vipra_fm, vipra_ar, vipra_ac, sp2, sp2_ar, la, "
                   "la_fm, sp3_fm, sp3_ar, lapa, scratch_fm")


LEARNING = (
    Command("train vq", "Learn", "Train the quantiser that turns camera images into tokens.",
            "vipra train vq out/dataset out/vq --set frames=20000", TRAINING, _train_vq),
    Command("train finetune", "Learn", "Train the policy on demonstrations.",
            "vipra train finetune out/dataset out/policy --preset tiny --init scratch --set vq=out/vq",
            (*TRAINING, VARIANT, arg("--init", default="scratch", metavar="DIR",
                                     help="a policy's or a pre-training's checkpoint to start from, or a folder of "
                                          "vipra import-lwm")),
            _train_finetune),
    Command("train latent", "Learn", "Train latent actions on video without labels, and see whether they are alive.",
            "vipra train latent out/dataset out/latent --preset tiny --set loop.minutes=30",
            (arg("dataset", metavar="VIDEOS", help="LeRobot data set, folder of videos, or one video"), *TRAINING[1:],
             VARIANT,
             arg("--also", action="append", default=[], metavar="VIDEOS", help="train on these, too; repeatable")),
            _train_latent),
    Command("label", "Learn", "Write the latent actions that follow each frame of a data set or of videos.",
            "vipra label out/dataset out/latent out/labels --camera front",
            (arg("dataset", metavar="VIDEOS", help="LeRobot data set, folder of videos, or one video"),
             arg("latent", metavar="LATENT", help="folder of vipra train latent"),
             arg("out", metavar="OUT", help="folder for the shards; an interrupted run goes on"),
             arg("--camera", default="front", help="camera of a data set (%(default)s)"),
             arg("--stride", type=int, default=0, metavar="N",
                 help="frames between steps; default: the time step of the training"),
             arg("--every", type=int, default=1, metavar="N",
                 help="label one frame in N, where pre-training may begin (%(default)s)"),
             arg("--ray", default="", metavar="ADDRESS", help="work on this Ray cluster (auto, HOST:PORT, local)")),
            _label),
    Command("train pretrain", "Learn", "Train the trunk on videos and their latent actions, without robot actions.",
            "vipra train pretrain out/videos out/labels out/pretrain --set vq=out/vq",
            (TRAINING[0], arg("labels", metavar="LABELS", help="latent actions of DATASET, as vipra label makes them"),
             *TRAINING[1:], VARIANT,
             arg("--init", default="", metavar="DIR",
                 help="folder of vipra import-lwm to start from; default: random weights")), _train_pretrain),
    Command("imagine", "Learn", "Draw the future frames that a pre-trained model predicts beside the true ones.",
            "vipra imagine out/pretrain/checkpoint out/videos out/imagined.png --count 6",
            (arg("checkpoint", metavar="CHECKPOINT", help="folder `checkpoint` of vipra train pretrain"),
             arg("dataset", metavar="DATASET", help="LeRobot data set"),
             arg("out", metavar="OUT.png", help="the picture to write"),
             arg("--count", type=int, default=6, metavar="N", help="moments drawn (%(default)s)")), _imagine),
    Command("reproduce", "Learn", "Make a table of results from seeds: episodes, all trainings, evaluations, a plot.",
            "vipra reproduce out/reproduce --table 1 --plan",
            (arg("out", metavar="OUT", help="folder for all that is made; an interrupted run goes on"),
             arg("--table", type=int, default=1, choices=(1, 2, 3),
                 help="1: variants; 2: whose videos; 3: flow consistency (%(default)s)"),
             arg("--preset", default="tiny", help="folder of config/learning, or a YAML file (%(default)s)"),
             arg("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable"),
             arg("--results", default="docs/results", metavar="DIR", help="where tableN.json goes (%(default)s)"),
             arg("--plan", action="store_true", help="say what would be done and how long it takes, do nothing")),
            _reproduce),
    Command("bench flow", "Learn", "How far a flow estimator is off on simulated pictures, whose true flow is known.",
            "vipra bench flow --size 64 --size 128",
            (arg("--flow", default="pyramid", choices=("pyramid", "raft"), help="estimator (%(default)s)"),
             arg("--weights", default="", metavar="FILE", help="of torchvision's RAFT-large, raft only"),
             arg("--size", type=int, action="append", metavar="PX",
                 help="side of the pictures; repeatable (64, 128, 224)"),
             arg("--episodes", type=int, default=1, metavar="N", help="of each task (%(default)s)"),
             arg("--seed", type=int, default=500, help="seed of the first start (%(default)s)")), _bench_flow),
    Command("bench memory", "Learn", "What a training takes on each of 1 to 32 GPUs, counted without allocating it.",
            "vipra bench memory --stage pretrain --gb 80",
            (arg("--stage", default="pretrain", choices=("pretrain", "finetune"), help="training (%(default)s)"),
             arg("--preset", default="paper", help="folder of config/learning, or a YAML file (%(default)s)"),
             arg("--gb", type=float, default=80.0, metavar="GB", help="memory of one GPU (%(default)g)"),
             arg("--json", metavar="FILE", help="write the figures here")), _bench_memory),
    Command("eval", "Learn", "Measure a policy over unseen random starts: success, latency, smoothness.",
            "vipra eval --checkpoint models/tiny --task push --episodes 50 --seed 1000 --json out/push.json",
            (CHECKPOINT, arg("--task", default="all", choices=(*TASKS, "all"), help="task (%(default)s)"),
             arg("--episodes", type=int, default=50, metavar="N", help="per task (%(default)s)"),
             arg("--seed", type=int, default=1000, help="seed of the first start (%(default)s)"),
             arg("--json", metavar="FILE", help="write the figures here"),
             arg("--video", metavar="DIR", help="write one video per episode here"),
             arg("--ros", action="store_true", help="through the running nodes"),
             arg("--latency-ms", type=float, metavar="MS",
                 help="charged per chunk where time is simulated (what this machine needs)"),
             arg("--workers", type=int, default=1, metavar="N", help="processes, without --ros (%(default)s)"),
             arg("--together", type=int, default=0, metavar="N",
                 help="episodes that one steps at a time, their chunks one batch (8 of a discrete policy, else 1)"),
             arg("--engine", default="auto", choices=ENGINES, help="what computes (%(default)s)"),
             DEVICE, EULER_STEPS, WEIGHTS), _eval),
)
