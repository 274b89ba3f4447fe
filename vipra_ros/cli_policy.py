"""Commands that export, serve and time a policy; `cli.py` has the table they stand in."""

from vipra_ros.command import Command, arg, to

POLICY = (
    Command("import-lwm", "Learn", "Bring LWM's or ViPRA's published JAX weights: safetensors, VQGAN and tokenizer.",
            "vipra import-lwm downloads/LWM-Chat-1M-Jax out/lwm",
            (arg("source", metavar="SRC", help="folder of the published files, or params::FILE"),
             arg("out", metavar="OUT", help="new folder"),
             arg("--vqgan", default="", metavar="FILE", help="pickled VQGAN; default: *vqgan* beside the stream"),
             arg("--tokenizer", default="", metavar="FILE", help="default: tokenizer.model beside the stream"),
             arg("--heads", type=int, default=0, metavar="N", help="attention heads; default: width / 128"),
             arg("--rope-theta", type=float, default=5e7, metavar="X", help="rotary base (%(default)g)"),
             arg("--codebook-size", type=int, default=8192, metavar="N", help="codes of the VQGAN (%(default)s)"),
             arg("--dtype", default="keep", choices=("keep", "bfloat16", "float16", "float32"),
                 help="of the written weights (%(default)s: as stored)")),
            to("learning.import_lwm:main")),
    Command("export", "Policy", "Write a checkpoint as ONNX graphs, for onnxruntime on any processor.",
            "vipra export models/tiny out/graphs",
            (arg("checkpoint", metavar="CHECKPOINT", help="the policy: a folder, or the name of a shipped one"),
             arg("out", metavar="OUT", help="folder for the graphs; older graphs there are replaced"),
             arg("--precision", default="fp32", choices=("fp32", "fp16"),
                 help="fp16 is for GPUs (%(default)s)")), to("policy.export:main")),
)
