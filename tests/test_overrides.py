"""What we override in other people's classes, and which of their private names we use.

A release that renames or changes one of them must fail here, by name: an override that nobody calls any more would leave
no other trace. The tables are complete: a test looks for what they do not list.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [train]")

ROOMS = ("annotate", "evaluation", "model", "pixel160k", "policies", "serve", "simulation", "tiny_models", "train")
THEIRS = ("accelerate", "peft", "torchdata", "transformers", "uvicorn", "webdataset")
TRAINER = "transformers:Trainer"
GROUNDING_DINO_LOSS = "transformers.loss.loss_grounding_dino:GroundingDinoImageLoss"
SAM2_VIDEO = "transformers:Sam2VideoModel"
ROBOSUITE = "robosuite.utils.binding_utils"

# (our class, their class, the method, the method of theirs that calls it)
OVERRIDDEN = [
    ("train.trainer:PolicyTrainer", TRAINER, "_get_num_items_in_batch", "get_batch_samples"),
    ("train.trainer:PolicyTrainer", TRAINER, "_init_training_state", "_inner_training_loop"),
    ("train.trainer:PolicyTrainer", TRAINER, "_load_from_checkpoint", "train"),
    ("train.trainer:PolicyTrainer", TRAINER, "_load_optimizer_and_scheduler", "_prepare_for_training"),
    ("train.trainer:PolicyTrainer", TRAINER, "_prepare_for_training", "_inner_training_loop"),
    ("train.trainer:PolicyTrainer", TRAINER, "_prepare_inputs", "training_step"),
    ("train.trainer:PolicyTrainer", TRAINER, "_save_checkpoint", "_maybe_log_save_evaluate"),
    ("train.trainer:PolicyTrainer", TRAINER, "_save_optimizer_and_scheduler", "_save_checkpoint"),
    ("train.trainer:PolicyTrainer", TRAINER, "compute_loss", "training_step"),
    ("train.trainer:PolicyTrainer", TRAINER, "create_optimizer", "_prepare_for_training"),
    ("train.trainer:PolicyTrainer", TRAINER, "get_decay_parameter_names", "create_optimizer"),
    ("train.trainer:PolicyTrainer", TRAINER, "get_eval_dataloader", "evaluate"),
    ("train.trainer:PolicyTrainer", TRAINER, "get_train_dataloader", "_inner_training_loop"),
    ("train.trainer:PolicyTrainer", TRAINER, "log", "_maybe_log_save_evaluate"),
    ("train.trainer:PolicyTrainer", TRAINER, "prediction_step", "evaluation_loop"),
    ("train.trainer:PolicyTrainer", TRAINER, "save_model", "_save_checkpoint"),
    ("train.trainer:PolicyTrainer", TRAINER, "store_flos", "_finalize_training"),
    ("train.trainer:PolicyTrainer", TRAINER, "training_step", "_run_epoch"),
    # on_log is one of the events that transformers' CallbackHandler calls by its name.
    ("train.progress:Progress", "transformers:ProgressCallback", "on_log", ""),
    # asyncio calls both.
    ("serve.server:_Impatient", "uvicorn.protocols.http.h11_impl:H11Protocol", "connection_made", ""),
    ("serve.server:_Impatient", "uvicorn.protocols.http.h11_impl:H11Protocol", "data_received", ""),
    ("tiny_models.detector_model:_ImageLoss", GROUNDING_DINO_LOSS, "_get_target_classes_one_hot", "loss_labels"),
]

# (their class or module, the private name, the parameters that we give it; None for an attribute)
PRIVATE = [
    (SAM2_VIDEO, "_single_frame_forward", ["image_embeddings", "input_points", "input_labels", "multimask_output"]),
    (
        SAM2_VIDEO,
        "_encode_new_memory",
        ["current_vision_feats", "pred_masks_high_res", "object_score_logits", "is_mask_from_pts"],
    ),
    (SAM2_VIDEO, "_process_object_pointers", 6),
    (SAM2_VIDEO, "_use_multimask", 2),
    ("transformers.models.sam2.modeling_sam2:Sam2HieraDetModel", "_get_pos_embed", 1),
    ("os", "_exit", 1),
    ("torch.utils.data", "_utils", None),
    (
        "torchdata.stateful_dataloader.stateful_dataloader:_StatefulMultiProcessingDataLoaderIter",
        "_STEPS_SINCE_SNAPSHOT",
        None,
    ),
    ("transformers.loss.loss_for_object_detection", "_set_aux_loss", 2),
    ("transformers:PreTrainedModel", "_hf_peft_config_loaded", None),
    ("torch._subclasses", "fake_tensor", None),
    ("torch._subclasses.fake_tensor:FakeTensorMode", "from_tensor", ["tensor"]),
    (f"{ROBOSUITE}:MjModel", "_model", None),
    (f"{ROBOSUITE}:MjData", "_data", None),
    (f"{ROBOSUITE}:MjSim", "_render_context_offscreen", None),
]

# (their class, the public attribute that we set or read, the method of theirs that must know it); it would be set in vain
ATTRIBUTES = [
    (TRAINER, "loss_is_scaled_for_ga", "training_step"),
    (TRAINER, "is_fsdp_enabled", "_save_optimizer_and_scheduler"),
    ("transformers:ProgressCallback", "training_bar", "on_log"),
    ("transformers:TrainingArguments", "fsdp_plugin_args", "__post_init__"),
    ("peft.tuners.lora:LoraLayer", "cast_input_dtype_enabled", "__init__"),
    ("tarfile:TarFile", "members", "next"),
    ("uvicorn.protocols.http.h11_impl:H11Protocol", "conn", "handle_events"),
    ("uvicorn.protocols.http.h11_impl:H11Protocol", "timeout_keep_alive", "on_response_complete"),
]

# (their function or method, the parameters that we give it by name)
PARAMETERS = [
    ("accelerate.utils:save_fsdp_optimizer", ["fsdp_plugin", "accelerator", "optimizer", "model", "output_dir"]),
    ("peft.tuners.lora:Linear.merge", ["safe_merge"]),
    ("peft.tuners.lora:LoraLayer.get_base_layer", []),
    ("fsspec.implementations.http:HTTPFileSystem._open", ["block_size", "size"]),
    ("torch.utils.data._utils.collate:collate", ["collate_fn_map"]),
    ("torch.distributed.fsdp:FSDPModule.set_reduce_scatter_unused_params", []),
    ("torch.distributed.fsdp:FSDPModule.set_reshard_after_forward", []),
]


def find(name):
    """What "module:a.b" names."""
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] != "robosuite":  # of the extra [sim]
            raise
        pytest.skip(f"{error.name} is not installed")
    for part in filter(None, path.split(".")):
        assert hasattr(found, part), f"{name} is not there any more: look for what took its place"
        found = getattr(found, part)
    return found


def mentions(function, name):
    """Whether the source of a method has `self.NAME`."""
    return bool(re.search(rf"\bself\.{name}\b", inspect.getsource(function)))


@pytest.mark.parametrize(
    ("ours", "theirs", "name", "caller"), OVERRIDDEN, ids=lambda value: value.partition(":")[2] or value
)
def test_an_overridden_method_is_still_there_called_and_alike(ours, theirs, name, caller):
    mine, base = find(ours), find(theirs)
    assert issubclass(mine, base)
    assert hasattr(base, name), f"{theirs} has no {name} any more: {ours} overrides nothing"
    if caller:
        assert mentions(find(f"{theirs}.{caller}"), name), f"{theirs}.{caller} does not call {name} any more"
    given = list(inspect.signature(getattr(base, name)).parameters.values())
    taken = inspect.signature(getattr(mine, name)).parameters
    kinds = {parameter.kind for parameter in taken.values()}
    positions = [parameter.name for parameter in taken.values()]
    for position, parameter in enumerate(given):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.VAR_POSITIONAL in kinds:
            continue
        same = parameter.name in taken and (
            parameter.kind is parameter.KEYWORD_ONLY or positions.index(parameter.name) == position
        )
        assert same or parameter.VAR_KEYWORD in kinds, f"{theirs}.{name} takes {parameter.name}, {ours}.{name} does not"
    wanted = {p.name for p in taken.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    assert wanted <= {parameter.name for parameter in given}, f"{theirs}.{name} does not give {ours} what it wants"


@pytest.mark.parametrize(
    ("theirs", "name", "given"), PRIVATE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_private_name_is_still_there(theirs, name, given):
    owner = find(theirs)
    if given is None:
        there = hasattr(owner, name) or f"self.{name} = " in inspect.getsource(owner)
        assert there, f"{theirs} has no {name} any more"
        return
    assert hasattr(owner, name), f"{theirs} has no {name} any more"
    parameters = list(inspect.signature(getattr(owner, name)).parameters.values())
    if inspect.isclass(owner):
        parameters = parameters[1:]
    if isinstance(given, int):
        required = sum(parameter.default is parameter.empty for parameter in parameters)
        assert required <= given <= len(parameters), f"{theirs}.{name} does not take {given} arguments any more"
    else:
        assert not set(given) - {p.name for p in parameters}, f"{theirs}.{name} takes other arguments now"


@pytest.mark.parametrize(("theirs", "name", "user"), ATTRIBUTES, ids=lambda value: value.partition(":")[2] or value)
def test_an_attribute_still_has_its_meaning(theirs, name, user):
    assert mentions(find(f"{theirs}.{user}"), name), f"{theirs}.{user} does not use {name} any more"


@pytest.mark.parametrize(
    ("function", "parameters"), PARAMETERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_function_still_takes_what_we_give_it(function, parameters):
    missing = set(parameters) - set(inspect.signature(find(function)).parameters)
    assert not missing, f"{function} takes no {', '.join(missing)} any more"


def test_what_a_state_of_a_loader_calls_replayed_batches():
    from torchdata.stateful_dataloader import stateful_dataloader

    from pixel160k.read.resume import _REPLAYED

    for kind in ("_StatefulSingleProcessDataLoaderIter", "_StatefulMultiProcessingDataLoaderIter"):
        assert hasattr(stateful_dataloader, kind)
    assert stateful_dataloader._StatefulMultiProcessingDataLoaderIter._STEPS_SINCE_SNAPSHOT == _REPLAYED


def test_the_default_collate_function_and_streams_of_fsspec_can_be_used_as_we_do():
    from fsspec.implementations.http import HTTPStreamFile
    from torch.utils.data._utils.collate import default_collate_fn_map

    assert isinstance(default_collate_fn_map, dict)
    assert "self.r = " in inspect.getsource(HTTPStreamFile)


def test_accelerate_still_sends_the_first_process_s_weights_and_ties_them():
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    source = inspect.getsource(fsdp2_prepare_model)
    assert "cpu_ram_efficient_loading" in source and "fsdp2_load_full_state_dict(" in source
    assert source.count("model.tie_weights()") == 2  # a policy has that method for it


def test_loaders_still_ask_a_data_set_for_its_state():
    """torchdata finds `state_dict` and `load_state_dict` by a protocol that a data set need not name."""
    from torchdata.stateful_dataloader.stateful import Stateful

    from train.stream import _Endless

    assert issubclass(_Endless, Stateful)


# --- the tables are complete


@functools.cache
def our_modules():
    """Every module of the rooms that can be imported here."""
    modules = []
    for room in ROOMS:
        package = importlib.import_module(room)
        for found in pkgutil.walk_packages(package.__path__, f"{room}."):
            try:
                modules.append(importlib.import_module(found.name))
            except ImportError:
                continue  # of an extra that is not installed
    return modules


def test_no_other_method_of_theirs_is_overridden():
    listed = {(ours, name) for ours, _, name, _ in OVERRIDDEN}
    for module in our_modules():
        for mine in vars(module).values():
            if not inspect.isclass(mine) or mine.__module__ != module.__name__:
                continue
            for base in mine.__mro__[1:]:
                if base.__module__.partition(".")[0] in THEIRS:
                    ours = f"{module.__name__}:{mine.__name__}"
                    hidden = {name for name in vars(mine).keys() & vars(base).keys() if not name.startswith("__")}
                    assert not hidden - {name for owner, name in listed if owner == ours}, (
                        f"{ours}: list what it overrides"
                    )


def test_no_other_private_name_of_theirs_is_used():
    listed = {name for _, name, _ in PRIVATE} | {name for _, _, name, _ in OVERRIDDEN}
    folder = Path(__file__).parents[1]
    for file in [folder / "cli.py", *(file for room in ROOMS for file in sorted((folder / room).rglob("*.py")))]:
        nodes = list(ast.walk(ast.parse(file.read_text())))
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
        own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
        own |= {
            node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] not in ROOMS:
                used |= {alias.name for alias in node.names}
        private = {name for name in used - own if name.startswith("_") and not name.startswith("__")}
        # These belong to typing.NamedTuple and to Settings, ours.
        private -= {"_replace", "_asdict", "_keys"}
        assert not private - listed, f"{file.relative_to(folder)}: list whose {sorted(private - listed)} it uses"
