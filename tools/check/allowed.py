# SPDX-License-Identifier: Apache-2.0
"""What the configs of a bundle may import, call and build; whatever is not listed here is a finding."""

from __future__ import annotations

import ast


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# What MONAI puts into every expression's globals.
MONAI_DEFAULTS = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}

# Modules that "$import NAME" may name, besides the bundle's own package.
IMPORTS = ("glob", "math", "numpy", "os", "os.path", "torch", "monai", "volseg")

# A text that ends so is the name of a file, and not that of something in a module: "statistics.json".
FILE_SUFFIXES = _words(
    "bz2 conf csv gz h5 jpg json md mha mhd nii npy npz nrrd pdf png pt tif tiff ts txt yaml yml zip"
)

# Modules of which every public name may be used.
PURE_MODULES = ("math",)

# Names of modules by what they do: values, and functions that read and compute but run and write nothing.
NAMES = frozenset(
    f"{module}.{name}"
    for module, names in {
        "glob": "glob iglob",
        "os": "cpu_count environ getenv listdir sep",
        "os.path": "abspath basename dirname exists expanduser isdir isfile join normpath realpath relpath splitext",
        "numpy": "arange array asarray bool_ concatenate float16 float32 float64 inf int16 int32 int64 int8 linspace "
        "max mean min nan newaxis ones pi stack sum uint16 uint32 uint64 uint8 unique zeros",
        "torch": "arange argmax as_tensor bfloat16 bool cat channels_last channels_last_3d contiguous_format device "
        "float float16 float32 float64 half inf int int16 int32 int64 int8 long manual_seed nan ones pi "
        "preserve_format sigmoid softmax stack tensor uint8 zeros",
        "torch.cuda": "device_count get_device_capability is_available is_bf16_supported set_device",
        "torch.backends.mps": "is_available",
        "torch.distributed": "destroy_process_group get_rank get_world_size init_process_group is_available "
        "is_initialized",
        "monai.bundle.ConfigParser": "load_config_file",
        "monai.data": "decollate_batch list_data_collate load_decathlon_datalist pad_list_data_collate "
        "partition_dataset",
        "monai.data.utils": "decollate_batch json_hashing list_data_collate no_collation pad_list_data_collate "
        "partition_dataset pickle_hashing",
        "monai.handlers": "from_engine",
        "monai.handlers.utils": "from_engine",
        "monai.utils": "set_determinism",
        "monai.utils.misc": "set_determinism",
    }.items()
    for name in names.split()
)

# Packages of which a config may build something.
PACKAGES = ("torch", "monai", "ignite", "volseg")

# Public classes of installed packages that "_target_" or an expression may build, by the module that defines them.
CLASSES_OF = (
    "ignite.engine",
    "ignite.handlers",
    "ignite.metrics",
    "monai.data",
    "monai.engines",
    "monai.handlers",
    "monai.inferers",
    "monai.losses",
    "monai.metrics",
    "monai.networks.blocks",
    "monai.networks.layers",
    "monai.networks.nets",
    "monai.networks.schedulers",
    "monai.optimizers",
    "monai.transforms",
    "torch.nn.modules",
    "torch.nn.parallel",
    "torch.optim",
    "torch.utils.data.dataloader",
    "torch.utils.data.dataset",
    "torch.utils.data.distributed",
    "torch.utils.data.sampler",
)

# Modules below those whose classes run code that they download.
EXCEPT = ("monai.losses.perceptual",)

# Parts of volseg of which a config may use every class and function.
VOLSEG = (
    "volseg.blocks",
    "volseg.blockwise",
    "volseg.console.command_line",
    "volseg.console.federated",
    "volseg.console.monai_label",
    "volseg.console.option_checks",
    "volseg.data",
    "volseg.handlers",
    "volseg.inferers",
    "volseg.instances",
    "volseg.label_maps",
    "volseg.losses",
    "volseg.phantoms",
    "volseg.runtime",
    "volseg.transforms",
    "volseg.weights.load_weights",
    "volseg.weights.recorded_values",
)

# Builtins.
BUILTINS = _words(
    "abs all any bool dict divmod enumerate filter float frozenset int isinstance len list map max min pow range",
    "reversed round set slice sorted str sum tuple zip",
)

# Attributes and methods of values: references, variables, and what calls return.
ATTRIBUTES = _words(
    "argmax count cpu cuda data dataset detach device dim dtype ema_model endswith epoch eval float get half index int",
    "item items join keys lower lstrip max mean min named_parameters ndim network numpy parameters permute reshape",
    "rsplit rstrip run sampler shape sigmoid size softmax split squeeze startswith state state_dict strip sum to",
    "transforms type unsqueeze upper values",
)

# Syntax without names, which only puts values together.
SYNTAX = (
    ast.BinOp,
    ast.BoolOp,
    ast.Compare,
    ast.Dict,
    ast.DictComp,
    ast.FormattedValue,
    ast.GeneratorExp,
    ast.IfExp,
    ast.JoinedStr,
    ast.Lambda,
    ast.List,
    ast.ListComp,
    ast.Set,
    ast.SetComp,
    ast.Slice,
    ast.Starred,
    ast.Subscript,
    ast.Tuple,
    ast.UnaryOp,
    ast.arg,
    ast.arguments,
    ast.comprehension,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
    ast.operator,
    ast.unaryop,
)

# Keys of a config that MONAI itself reads, besides "_desc_" and "_desc_..._".
SPECIAL_KEYS = ("_target_", "_disabled_", "_requires_", "_mode_")
MODES = ("default", "callable")

# Arguments that must have this value wherever they stand: any other loads pickles, which can run any code.
SAFE_ARGUMENTS = {"weights_only": True, "allow_pickle": False}

# Arguments whose text MONAI takes for the name of a class, and the module in which it looks first.
CLASS_ARGUMENTS = {"reader": "monai.data", "writer": "monai.data", "merger_cls": "monai.inferers"}

# Keys and texts of logging.conf; Python evaluates "class", "args", "kwargs" and "defaults" as code.
LOGGING_CLASSES = ("StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler")
LOGGING_ARGUMENTS = ("()", "(sys.stdout,)", "(sys.stderr,)")
LOGGING_KEYS = {
    "loggers": ("keys",),
    "handlers": ("keys",),
    "formatters": ("keys",),
    "logger": ("level", "handlers", "propagate", "qualname"),
    "handler": ("class", "level", "formatter", "args"),
    "formatter": ("format", "datefmt"),
}
