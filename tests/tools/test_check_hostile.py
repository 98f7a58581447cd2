# SPDX-License-Identifier: Apache-2.0
"""Tables of what configs must not contain, in many spellings, and of what they may; no check runs any of it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest

from tools import REPOSITORY
from tools.check.files import bundle_files

META, TRAIN, LOGGING = "configs/metadata.json", "configs/train.json", "configs/logging.conf"
OWN = "tiny_segmentation"

EXPRESSIONS = [
    # names of builtins
    "$eval('1')",
    "$exec('x = 1')",
    "$compile('1', 'a', 'eval')",
    "$__import__('os').system('id')",
    "$open('/etc/passwd').read()",
    "$open('a', 'w').write('b')",
    "$globals()",
    "$locals()",
    "$vars(@network)",
    "$dir(torch)",
    "$breakpoint()",
    "$input()",
    "$help()",
    "$type('X', (), {})",
    "$object()",
    "$print('a')",
    "$__builtins__",
    "$__builtins__['eval']('1')",
    "$__loader__",
    "$__local_refs",
    "$__local_refs['imports::0'].system('id')",
    "$builtins.exec('1')",
    # attribute tricks
    "$getattr(torch, 'load')('a')",
    "$getattr(@network, 'to')",
    "$setattr(@network, 'a', 1)",
    "$delattr(@network, 'a')",
    "$hasattr(torch, 'hub')",
    "$[getattr][0](torch, 'hub')",
    "$(lambda f: f('os'))(__import__)",
    "$(lambda: torch.hub)()",
    "$(1).__class__.__base__.__subclasses__()",
    "$[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0]",
    "$@network.__class__.__init__.__globals__['os']",
    "$@network._modules",
    "$@network.forward.__globals__",
    "$''.join(['a']).__class__",
    "$'{0.__class__}'.format(1)",
    "$'{0.a}'.format(@network)",
    "$'%s' % torch.hub",
    '$f\'{__import__("os").system("id")}\'',
    "$f'{torch.hub.load}'",
    "$f'{1:{eval(\"1\")}}'",
    "$vars(torch)['hub']",
    "$torch.__dict__['hub']",
    "$torch.__dict__.get('hub')",
    "$os.__dict__['system']('id')",
    "$__import__('importlib').import_module('os')",
    "$(x := __import__('os')).system('id')",
    "$(x := 1)",
    "$[os][0].system('id')",
    "${'a': os}['a'].system('id')",
    "$(os if True else 1).system('id')",
    "$[o.system('id') for o in [os]]",
    "$(lambda o: o.system('id'))(os)",
    "$[torch for torch in [os]][0].system('id')",
    "$(lambda torch: torch.device)(1)",
    "$[len for len in [eval]]",
    "$[*map(os.system, ['id'])]",
    "$list(map(eval, ['1']))",
    "$max(['id'], key=os.system)",
    "$sorted(['id'], key=os.system)",
    "$sum([1], start=eval('1'))",
    "$dict(**@network)",
    "$@cases(**{'weights_only': False})",
    "$1 if eval('1') else 2",
    "$[x for x in range(3) if exec('1')]",
    "${x: y for x, y in [(eval, 1)]}",
    "$lambda x=eval('1'): x",
    "$[1, 2][os.system('id'):]",
    "$await_(1)",
    "$(yield 1)",
    # modules through modules
    "$os.system('id')",
    "$os.popen('id')",
    "$os.execv('a', [])",
    "$os.remove('a')",
    "$os.path.os.system('id')",
    "$os.path.genericpath.os.system('id')",
    "$os.environ.update({'A': 'b'})",
    "$os.environ.pop('A')",
    "$os.environ.setdefault('A', 'b')",
    "$os.putenv('A', 'b')",
    "$os.makedirs('a')",
    "$os.sys.modules['subprocess'].run('id')",
    "$torch.os.system('id')",
    "$torch.sys.modules",
    "$torch.hub.load('a', 'b')",
    "$torch.hub.load_state_dict_from_url('a')",
    "$torch.load('a')",
    "$torch.load('a', weights_only=False)",
    "$torch.load('a', weights_only=0)",
    "$torch.load('a', weights_only=None)",
    "$torch.load('a', weights_only=not True)",
    "$torch.load('a', weights_only=@device)",
    "$torch.load('a', weights_only=True, pickle_module=1)",
    "$torch.save(1, 'a')",
    "$torch.jit.load('a')",
    "$torch.classes.load_library('a')",
    "$torch.ops.load_library('a')",
    "$torch.compile(@network)",
    "$torch.serialization.load('a')",
    "$torch.package.PackageImporter('a')",
    "$torch.utils.cpp_extension.load('a', 'b')",
    "$torch.utils.model_zoo.load_url('a')",
    "$torch.multiprocessing.spawn(1)",
    "$torch.distributed.run.main()",
    "$torch.fx.symbolic_trace(1)",
    "$torch.utils.data.datapipes.iter.FileOpener(1)",
    "$torch._C",
    "$torch.nn.Module.__subclasses__()",
    "$torch.nn.Module.load_state_dict(1)",
    "$np.load('a', allow_pickle=True)",
    "$np.load('a')",
    "$np.fromfile('a')",
    "$np.save('a', 1)",
    "$np.zeros(1).tofile('a')",
    "$np.zeros(1).dump('a')",
    "$np.testing.runstring('1', {})",
    "$numpy.testing.runstring('1', {})",
    "$numpy.f2py.compile('a')",
    "$numpy.ctypeslib.load_library('a', 'b')",
    "$np.vectorize(eval)('1')",
    "$np.lib.npyio.load('a')",
    "$monai.utils.run_cmd(['id'])",
    "$monai.utils.misc.run_cmd(['id'])",
    "$monai.utils.instantiate('os.system', 'default', command='id')",
    "$monai.utils.module.instantiate('os.system', 'default')",
    "$monai.utils.optional_import('os')",
    "$monai.utils.optional_import('os')[0].system('id')",
    "$monai.utils.module.optional_import('subprocess')",
    "$monai.utils.load_submodules(1)",
    "$monai.utils.module.locate('os.system')('id')",
    "$monai.bundle.run('a')",
    "$monai.bundle.load('a')",
    "$monai.bundle.download('a')",
    "$monai.bundle.ConfigParser.load_config_files('a.json')",
    "$monai.bundle.ConfigParser.export_config_file({}, 'a.json')",
    "$monai.bundle.ConfigExpression('$1').evaluate()",
    "$monai.bundle.ConfigParser({'a': 'b'}).get_parsed_content('a')",
    "$monai.bundle.config_item.import_module('os')",
    "$monai.apps.download_url('a')",
    "$monai.apps.utils.extractall('a')",
    "$monai.data.utils.pickle_operations([])",
    "$monai.data.torchscript_utils.load_net_with_metadata('a')",
    "$monai.fl.client.MonaiAlgo('a')",
    "$monai.auto3dseg.algo_from_pickle('a')",
    "$monai.networks.utils.torch.hub.load('a', 'b')",
    "$monai.networks.utils.save_state(1, 'a')",
    "$monai.config.deviceconfig.os.system('id')",
    "$monai.transforms.LoadImage(reader='os.system')",
    "$monai.transforms.LoadImage('exec')",
    "$monai.data.NumpyReader(None, True)",
    "$[*map(monai.data.NumpyReader, [None], [True])]",
    "$monai.losses.PerceptualLoss(2)",
    "$monai.transforms.Compose.__init__",
    "$monai.os",
    "$monai.utils.misc.subprocess.run('id')",
    # names that look like something in a text
    "$[@cases('os.system')]",
    "$'subprocess.Popen'",
    "$['torch.hub.load']",
    "${'_target_': 'builtins.exec'}",
    "$'__globals__'",
    "$'a__class__b'",
    "$b'__class__'",
    # the bundle's own package, and what it imports
    f"${OWN}.network.torch.hub.load('a', 'b')",
    f"${OWN}.network.nothing()",
    f"${OWN}.__loader__",
    f"${OWN}.__dict__",
    f"${OWN}.os.system('id')",
    # names that are not imported
    "$subprocess.run('id')",
    "$pickle.loads(b'')",
    "$joblib.load('a')",
    "$codecs.decode('a', 'rot13')",
    "$ctypes.CDLL('a')",
    "$importlib.import_module('os')",
    "$operator.attrgetter('system')(os)",
    "$operator.methodcaller('system', 'id')(os)",
    "$functools.partial(os.system, 'id')()",
    "$functools.reduce(getattr, ['system'], os)",
    "$itertools.starmap(os.system, [('id',)])",
    "$yaml.load('a')",
    "$sys.exit()",
    "$shutil.rmtree('a')",
    "$marshal.loads(b'')",
    "$runpy.run_path('a')",
    "$types.FunctionType(1, {})",
    # what writes
    "$[0 for os.environ['A'] in ['b']]",
    "$[0 for @train.data in [1]]",
    "$[0 for torch.load in [1]]",
    "$[0 for @device[0] in [1]]",
    "$[0 for (a, @network.data) in [(1, 2)]]",
    # what looks like something else
    "$\N{MATHEMATICAL BOLD SMALL E}val('1')",
    "$torch.\N{MATHEMATICAL BOLD SMALL H}ub.load('a', 'b')",
    "$" + "+".join(["1"] * 5000),
    "$" + "-" * 3000 + "1",
    "$1\x00",
    "$",
    "$ 1",
    # what is no expression
    "$import os; os.system('id')",
    "$1; 2",
    "$a = 1",
    "$del os",
    "$def f(): pass",
    "$@network @ torch.ones(1)",
    "$'@device + eval(1) + '",
    "$@imports#0.system('id')",
    "$@imports[0].system('id')",
    "@imports#0",
]
IMPORTS = [
    "$import subprocess",
    "$import os as torch",
    "$import math as m",
    "$import os as len",
    "$import numpy as os",
    "$import builtins",
    "$import importlib",
    "$import pickle",
    "$import joblib",
    "$import ctypes",
    "$import sys",
    "$import shutil",
    "$import socket",
    "$import operator",
    "$import functools",
    "$import antigravity",
    "$import evil",
    "$import torch.hub",
    "$import monai.bundle",
    "$import os, math",
    "$import torch, subprocess",
    "$from os import system",
    "$from os import *",
    "$from os import system as join",
    "$from subprocess import Popen",
    "$from importlib import import_module",
    "$from torch import load",
    "$from torch import hub",
    "$from monai.bundle import run",
    "$from monai.utils import run_cmd as set_determinism",
    "$from monai.utils import optional_import",
    "$from numpy.testing import runstring",
    "$from builtins import exec",
    "$from . import network",
    "$from .network import TinyNet",
    "$from __future__ import annotations",
    f"$import {OWN}.network",
    f"$from {OWN}.network import torch",
    f"$from {OWN} import os",
    "$import os\nos.system('id')",
    "$__import__('os')",
]
TARGETS = [
    "os.system",
    "subprocess.Popen",
    "subprocess.run",
    "builtins.exec",
    "builtins.eval",
    "exec",
    "eval",
    "os",
    "pickle.load",
    "joblib.load",
    "codecs.open",
    "ctypes.CDLL",
    "importlib.import_module",
    "operator.attrgetter",
    "functools.partial",
    "functools.reduce",
    "runpy.run_path",
    "shutil.rmtree",
    "yaml.unsafe_load",
    "numpy.load",
    "numpy.testing.runstring",
    "numpy.vectorize",
    "scipy.io.loadmat",
    "torch.load",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.jit.load",
    "torch.jit.script",
    "torch.compile",
    "torch.save",
    "torch.os.system",
    "torch.serialization.load",
    "torch.serialization.pickle.load",
    "torch.package.PackageImporter",
    "torch.utils.cpp_extension.load",
    "torch.utils.cpp_extension.subprocess.run",
    "torch.utils.model_zoo.load_url",
    "torch.multiprocessing.spawn",
    "torch.nn.Module.load_state_dict",
    "torch.nn.modules.module.Module.__subclasses__",
    "torch.nn.modules.module.functools.partial",
    "torch.utils.data.datapipes.iter.FileOpener",
    "monai.bundle.run",
    "monai.bundle.load",
    "monai.bundle.ConfigParser",
    "monai.bundle.ConfigWorkflow",
    "monai.bundle.ConfigExpression",
    "monai.bundle.scripts.run",
    "monai.utils.run_cmd",
    "monai.utils.instantiate",
    "monai.utils.optional_import",
    "monai.utils.module.locate",
    "monai.utils.misc.subprocess.run",
    "monai.apps.download_url",
    "monai.apps.download_and_extract",
    "monai.auto3dseg.algo_from_pickle",
    "monai.data.utils.pickle_operations",
    "monai.data.torchscript_utils.load_net_with_metadata",
    "monai.fl.client.MonaiAlgo",
    "monai.networks.utils.convert_to_torchscript",
    "monai.networks.trt_compiler.trt_compile",
    "ignite.utils.setup_logger",
    "ignite.distributed.launcher.Parallel",
    "run_cmd",
    "instantiate",
    "optional_import",
    "ConfigParser",
    "ConfigExpression",
    "download_url",
    "algo_from_pickle",
    "import_bundle_algo_history",
    "BundleWorkflow",
    "PerceptualLoss",
    "monai.losses.PerceptualLoss",
    "volseg.registry.client.download",
    "volseg.storage.files.remove_leftovers",
    "volseg.weights.write_state",
    "volseg.weights.torch.load",
    "volseg.weights.pickle.loads",
    "volseg.__main__.main",
    "tools.pack.pack",
    f"{OWN}.network.torch.load",
    f"{OWN}.network.torch.nn.Conv3d",
    f"{OWN}.network.system",
    f"{OWN}.network.aliased",
    f"{OWN}.network.load",
    f"{OWN}.network.made",
    f"{OWN}.network.TinyNet.__init__.__globals__",
    f"{OWN}.network.TinyNet.nothing",
    f"{OWN}.network.missing",
    f"{OWN}.network",
    OWN,
    "@device",
    "$@device",
    "$torch.load",
    "%configs/x.json",
    "os system",
    "torch..load",
    " os.system",
    "",
    None,
    1,
    ["os.system"],
    {"_target_": "os.system"},
]
# another item than {"_target_": TARGET}, with the part of the finding that says why
ITEMS = [
    ({"_target_": "SimpleInferer", "_mode_": "debug"}, "has an unknown _mode_"),
    ({"_target_": "SimpleInferer", "_mode_": "$'debug'"}, "has an unknown _mode_"),
    ({"_target_": "NumpyReader", "_mode_": "callable"}, "is a callable with arguments that must be seen"),
    ({"_target_": "monai.transforms.LoadImage", "_mode_": "callable"}, "is a callable with arguments that must"),
    ({"_target_": "SimpleInferer", "_debug_": True}, "has a key that MONAI keeps for itself"),
    ({"_target_": "SimpleInferer", "_requires_": ["$eval('1')"]}, "::_requires_::0 uses eval"),
    ({"_target_": "SimpleInferer", "_requires_": {"_target_": "os.system"}}, "::_requires_ has a _target_ outside"),
    ({"_target_": "SimpleInferer", "_disabled_": "$exec('1')"}, "::_disabled_ uses exec"),
    ({"_target_": "SimpleInferer", "_desc_": "$eval('1')"}, "has a _desc_ that MONAI would evaluate"),
    ({"_target_": "SimpleInferer", "_desc_": {"_target_": "os.system"}}, "has a _desc_ that MONAI would evaluate"),
    ({"_desc_": "%configs/evaluate.json"}, "has a _desc_ that MONAI would evaluate"),
    ({"_meta_": "$eval('1')"}, "has the key _meta_"),
    ({"_desc_why_": "$eval('1')"}, "::_desc_why_ uses eval"),
    ({"deep": [[{"_target_": "os.system"}]]}, "::deep::0::0 has a _target_ outside"),
    ({"_target_": "DataLoader", "dataset": [{"x": "$eval('1')"}]}, "::dataset::0::x uses eval"),
    ({"_target_": "LoadImage", "reader": "os.system"}, "::reader names code"),
    ({"_target_": "LoadImage", "reader": "exec"}, "::reader names code"),
    ({"_target_": "LoadImage", "reader": ["subprocess.Popen"]}, "::reader names code"),
    ({"_target_": "LoadImaged", "keys": "a", "reader": "$'ex' + 'ec'"}, "::reader names code"),
    ({"_target_": "LoadImaged", "keys": "a", "reader": "@builtin"}, "::reader names code"),
    ({"_target_": "SaveImage", "writer": "torch.hub.load"}, "::writer names code"),
    ({"_target_": "SlidingWindowInferer", "merger_cls": "exec"}, "::merger_cls names code"),
    ({"_target_": "SlidingWindowInferer", "anything": "subprocess.Popen"}, "::anything names code"),
    ({"_target_": "PersistentDataset", "weights_only": False}, "loads pickles"),
    ({"_target_": "PersistentDataset", "weights_only": 0}, "loads pickles"),
    ({"_target_": "PersistentDataset", "weights_only": None}, "loads pickles"),
    ({"_target_": "PersistentDataset", "weights_only": "$1 > 2"}, "loads pickles"),
    ({"_target_": "NumpyReader", "allow_pickle": True}, "loads pickles"),
    ({"_target_": "NumpyReader", "allow_pickle": 1}, "loads pickles"),
    ({"options": {"allow_pickle": "true"}}, "::options loads pickles"),
    ("%train", "has an include or a relative id"),
    ("%configs/evaluate.json#run", "has an include or a relative id"),
    ("%configs/evil.yaml::run", "has an include or a relative id"),
    ("@::a", "has an include or a relative id"),
    ("$@##a", "has an include or a relative id"),
    ("$1 + %#a", "has an include or a relative id"),
]
LEGITIMATE = [
    "$@network.parameters()",
    "$@train#dataset.data",
    "$@train#handlers[: None if torch.distributed.get_rank() == 0 else -3] + [@network]",
    "$[p for n, p in @network.named_parameters() if n.endswith('bias')]",
    "$[*@train#preprocessing.transforms, @device]",
    "$lambda i: min(1, (i + 1) / max(1, @val_interval)) * (0.5 + 0.5 * math.cos(math.pi * i))",
    "$lambda output: ([o['image'].mean(dim=0, keepdim=True) for o in output], [o['label'] for o in output])",
    "$dict((key, value[0] if isinstance(value, list) else value) for key, value in @train.items())",
    "$(@train if @device else {**@train, **@validate}) | @train",
    "$torch.device('cuda', int(os.environ['LOCAL_RANK'])) if torch.cuda.is_available() else torch.device('cpu')",
    "$torch.device(@device).type == 'cuda'",
    "$torch.cuda.set_device(@device) if torch.cuda.is_available() else None",
    "$monai.handlers.from_engine(['pred', 'label'])",
    "$monai.utils.set_determinism(seed=0)",
    "$monai.data.utils.pickle_hashing",
    "$monai.inferers.SimpleInferer()",
    "$monai.transforms.Compose(@image_transforms)",
    "$torch.nn.Conv3d(1, 2, kernel_size=1)",
    f"${OWN}.network.TinyNet(channels=2)",
    "$os.path.join(@bundle_root, 'models', 'model.pt')",
    '$f"{@bundle_root}/models/model.pt"',
    "$@bundle_root + '/models/model.pt'",
    "$sorted(glob.glob(@bundle_root + '/*.nii.gz'))",
    "$[{'image': i, 'label': j} for i, j in zip(@train, @validate)]",
    "$float('nan')",
    "$torch.float16",
    "$monai.bundle.ConfigParser.load_config_file(@bundle_root + '/configs/metadata.json')['version']",
    "$np.inf",
    "$not @device",
    "statistics.json",
    "model.pt",
    "A sentence. With two.",
    "image.label",
]
LEGITIMATE_ITEMS = [
    {"_target_": f"{OWN}.network.again", "reader": "sections", "writer": {"keys": "image"}},
    {"writer": {"suffix": "image"}, "reader": ["any"]},
    {"_target_": "torch.optim.lr_scheduler.LambdaLR", "lr_lambda": "$lambda i: 1"},
    {"_target_": "torch.nn.L1Loss"},
    {"_target_": "torch.nn.parallel.DistributedDataParallel", "module": "@network"},
    {"_target_": "torch.utils.data.RandomSampler", "data_source": []},
    {"_target_": "ignite.handlers.ProgressBar", "desc": "a"},
    {"_target_": "monai.networks.nets.UNet"},
    {"_target_": "monai.networks.nets.unet.UNet"},
    {"_target_": "DiceCELoss", "_desc_": "Costs 5 $."},
    {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
    {"_target_": "LoadImaged", "keys": "image", "reader": ["monai.data.ITKReader"]},
    {"_target_": "PersistentDataset", "weights_only": True, "_mode_": "default"},
    {"_target_": "DiceLoss", "_mode_": "callable"},
    {"_target_": "NumpyReader", "allow_pickle": False, "_disabled_": "$not @device", "_requires_": ["@network"]},
    {"_target_": "volseg.weights.recorded_values", "path": "a", "defaults": {}},
    {"_target_": "volseg.blockwise.worker_network.WorkerNetwork.of"},
    {"_target_": f"{OWN}.network.method"},
    {"_target_": f"{OWN}.network.same"},
    {"_target_": f"{OWN}.network.again"},
    {"_target_": f"{OWN}.network.taken"},
]
NETWORK = f"""
import os
import torch
from os import system
from torch import load
from monai.networks.nets import UNet as taken
from . import network as itself
from .other import Other as again
from {OWN}.other import same

class TinyNet(torch.nn.Conv3d):
    pass

aliased = os.system
made = load("a")
method = Other = TinyNet(1).forward
"""


@pytest.fixture
def lines(tiny_bundle):
    """The findings of a bundle whose training config has further items."""
    tiny_bundle.write(f"{OWN}/network.py", NETWORK)
    tiny_bundle.write(f"{OWN}/other.py", "class Other: pass\ndef same(): pass\n")

    def findings_of(items, imports=()):
        content = json.loads((tiny_bundle.root / TRAIN).read_text())
        content["imports"] += ["$import math", "$import glob", *imports]
        content["builtin"] = "exec"
        tiny_bundle.write_json(TRAIN, {**content, **{f"x{index}_": item for index, item in enumerate(items)}})
        return [line for _, line in tiny_bundle.findings()]

    return findings_of


def unnoticed(items, lines):
    """The items that no finding names."""
    names = [f"x{index}_" for index in range(len(items))]
    seen = [any(line.startswith((f"{TRAIN}: {name} ", f"{TRAIN}: {name}::")) for line in lines) for name in names]
    return [item for item, is_seen in zip(items, seen, strict=True) if not is_seen]


def test_the_tables_are_long():
    assert len({*EXPRESSIONS, *IMPORTS}) == len(EXPRESSIONS) + len(IMPORTS) > 200
    assert len(TARGETS) > 90


def test_every_hostile_expression_is_a_finding(lines):
    assert unnoticed(EXPRESSIONS, lines(EXPRESSIONS)) == []


def test_every_hostile_import_is_a_finding(lines):
    assert unnoticed(IMPORTS, lines(IMPORTS)) == []


def test_an_import_of_a_listed_module_does_not_hide_what_it_must_not_do(lines):
    calls = ["$subprocess.run('id')", "$pickle.loads(b'')", "$functools.partial(eval, '1')", "$load('a')", "$p('id')"]
    imports = ["$import subprocess", "$import pickle", "$import functools", "$from torch import load"]
    assert unnoticed(calls, lines(calls, [*imports, "$from os import popen as p"])) == []


def test_every_hostile_target_is_a_finding(lines):
    items = [{"_target_": target} for target in TARGETS]
    assert unnoticed(items, lines(items)) == []


def test_every_hostile_item_is_a_finding_that_says_why(lines):
    found = lines([item for item, _ in ITEMS])
    assert [
        why for i, (_, why) in enumerate(ITEMS) if not any(f": x{i}_" in line and why in line for line in found)
    ] == []


def test_what_bundles_need_has_no_findings(lines):
    assert lines([*LEGITIMATE, *LEGITIMATE_ITEMS]) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"description": "$eval('1')"}, "description would be evaluated by MONAI; found: $eval('1')."),
        ({"changelog__0.1.0": "$import evil"}, "changelog::0.1.0 would be evaluated by MONAI"),
        ({"name": "%configs/train.json"}, "name would be evaluated by MONAI"),
        ({"more": {"_target_": "os.system"}}, "more would be built by MONAI; found: os.system."),
        ({"more": {"_desc_": "$eval('1')"}}, "more has a _desc_ that MONAI would evaluate"),
    ],
)
def test_metadata_only_describes(tiny_bundle, changes, line):
    tiny_bundle.edit(META, **changes)
    [(rule, found)] = tiny_bundle.findings()
    assert rule == "expressions"
    assert found.startswith(f"{META}: {line}")


CONSOLE = "[handlers]\nkeys=a\n[handler_a]\nclass=StreamHandler\nlevel=INFO\nformatter=b\nargs=(sys.stdout, )\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            CONSOLE.replace("StreamHandler", "FileHandler"),
            "handler_a has a class that is not on the list; found: FileH",
        ),
        (CONSOLE.replace("StreamHandler", "__import__('os').system('id')"), "handler_a has a class"),
        (CONSOLE.replace("(sys.stdout, )", "(__import__('os').system('id'),)"), "handler_a has a args"),
        (CONSOLE.replace("(sys.stdout, )", "%(x)s") + "x=1\n", "handler_a has a args"),
        (CONSOLE + "kwargs={'a': eval('1')}\n", "handler_a has a kwargs"),
        (
            CONSOLE + "[formatter_b]\nclass=os.system\n",
            "formatter_b has a class that is not on the list; found: os.sys",
        ),
        (CONSOLE + "[formatter_b]\ndefaults={'a': eval('1')}\n", "formatter_b has a defaults"),
        (CONSOLE + "[formatter_b]\nstyle={\n", "formatter_b has a style"),
        (CONSOLE + "[DEFAULT]\nargs=(eval('1'),)\n", "the section DEFAULT is not on the list; found: args"),
        (CONSOLE + "[other]\nclass=os.system\n", "other has a class"),
        (CONSOLE + CONSOLE, "the file cannot be read; found: DuplicateSectionError"),
    ],
)
def test_a_logging_file_holds_nothing_but_the_console(tiny_bundle, text, line):
    tiny_bundle.write(LOGGING, text)
    found = [line for _, line in tiny_bundle.findings()]
    assert found
    assert found[0].startswith(f"{LOGGING}: {line}")


def test_a_logging_file_of_the_console_has_no_findings(tiny_bundle):
    for text in (CONSOLE, CONSOLE + "[formatter_b]\nformat=%(asctime)s %(message)s\ndatefmt=%H:%M\n"):
        tiny_bundle.write(LOGGING, text)
        assert tiny_bundle.findings() == []


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("configs/evil.yaml", "the file is no JSON config"),
        ("configs/evil.yml", "the file is no JSON config"),
        ("configs/more/train.json", "the file is no JSON config"),
        ("configs/TRAIN.JSON", "the file is no JSON config"),
        ("torch.py", "the file is code outside of the bundle's own package"),
        ("torch/__init__.py", "the file is code outside of the bundle's own package"),
        ("sitecustomize.py", "the file is code outside of the bundle's own package"),
        ("scripts/a.py", "the file is code outside of the bundle's own package"),
        ("evil.pth", "the file is code outside of the bundle's own package"),
        ("models/model.pkl", "the file is a pickle, which can run any code"),
        (f"{OWN}/network.pyc", "the file is code outside of the bundle's own package"),
        (f"{OWN}/network.cpython-311-x86_64-linux-gnu.so", "the file is code outside of the bundle's own package"),
    ],
)
def test_a_file_that_no_rule_reads_is_a_finding(tiny_bundle, path, what):
    tiny_bundle.write(path, "")
    [(rule, line)] = tiny_bundle.findings()
    assert rule == "files"
    assert line.startswith(f"{path}: {what}")


@pytest.mark.parametrize("name", ["subprocess", "torch", "jsonschema"])
def test_a_bundle_may_not_be_named_like_an_installed_package(tiny_bundle, name):
    root = tiny_bundle.root.rename(tiny_bundle.root.with_name(name))
    (root / OWN).rename(root / name)
    tiny_bundle.root, tiny_bundle.title = root, f"bundles/{name}"
    assert [line for _, line in tiny_bundle.findings() if line.startswith(f"{META}: the bundle's name is that of an")]


def test_what_belongs_to_git_is_no_file_of_a_bundle(tiny_bundle):
    before = bundle_files(tiny_bundle.root)
    for path in (".git/config", ".gitattributes", f"{OWN}/.GitHub/a.yml"):
        tiny_bundle.write(path, "")
    assert bundle_files(tiny_bundle.root) == before
    assert tiny_bundle.findings() == []


class Planted:
    """Unpickling it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_of_a_bundle_is_run(tiny_bundle, tmp_path):
    marker = tmp_path / "marker"
    shell, python = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    call = f"__import__('os').system({shell!r})"
    for path in (
        f"{OWN}/__init__.py",
        f"{OWN}/network.py",
        f"{OWN}/__main__.py",
        "volseg/__init__.py",
        "volseg/weights.py",
        "evil.py",
        "torch.py",
        "conftest.py",
        "setup.py",
        "sitecustomize.py",
        "json/__init__.py",
        "configs/__init__.py",
    ):
        tiny_bundle.write(path, f"{python}\nclass TinyNet: pass\n")
    tiny_bundle.write("evil.pth", f"import os; {python}")
    tiny_bundle.write(LOGGING, CONSOLE.replace("(sys.stdout, )", f"({call},)"))
    for path in ("large_files.yml", "configs/evil.yaml"):
        tiny_bundle.write(path, f"large_files: !!python/object/apply:os.system ['{shell}']\n")
    (tiny_bundle.root / "models/model.pt").write_bytes(pickle.dumps(Planted(shell)))
    hostile = [f"${call}", "$import evil", "%configs/evil.yaml", {"_target_": "os.system", "command": shell}]
    hostile += [{"_target_": f"{OWN}.network.TinyNet"}, {"_target_": "evil.TinyNet"}, {"_desc_": f"${call}"}]
    for path in ("train", "evaluate", "inference", "metadata"):
        tiny_bundle.edit(f"configs/{path}.json", **{f"x{index}": item for index, item in enumerate(hostile)})
    tiny_bundle.edit(TRAIN, imports=["$import os", f"$import {OWN}", "$import evil", f"${call}"])
    hook = tmp_path / "hook.sh"
    hook.write_text(f"#!/bin/sh\n{shell}\n")
    hook.chmod(0o755)
    for folder in (tmp_path, tiny_bundle.root.parent, tiny_bundle.root):
        subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
        for key in ("core.fsmonitor", "core.sshCommand", "diff.external", "filter.x.clean", "core.pager"):
            subprocess.run(["git", "-C", str(folder), "config", key, str(hook)], check=True)
    command = [sys.executable, "-m", "tools", "check", str(tiny_bundle.root)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tiny_bundle.root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{TRAIN}: imports::2 imports evil" in done.stdout
    assert not marker.exists()
    subprocess.run(["git", "-C", str(tiny_bundle.root), "ls-files", "--others"], check=True, capture_output=True)
    assert marker.exists()  # the plant works
