"""What a checkpoint of ours carries, read as plain types and tensors only (`weights_only=True`)."""

from pathlib import Path
from typing import Any

from torch import nn

from vinvl.data.json_files import refuse_half_characters
from vinvl.data.restricted_pickle import inspect_plain
from vinvl.errors import UserError
from vinvl.tensor_files import load_tensor_file, plain_tensors

OUR_KEY = "vinvl"  # where a Lightning checkpoint keeps what is ours
DELETED_DECODING = ("use_cache",)  # options of earlier versions, without which the same captions are written


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours as plain types and tensors, on the CPU.

    Raises:
        UserError: the file is missing, is no checkpoint, or is not one of ours.
    """
    try:
        checkpoint = load_tensor_file(path)
    except FileNotFoundError:
        raise UserError(f"The checkpoint {path} does not exist: give ckpt_path=FILE, or ckpt_path=last.") from None
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors alike for foreign files
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason[0] if reason else type(error).__name__}): "
            "it is damaged or from another program."
        ) from error
    ours = checkpoint.get(OUR_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or not isinstance(ours.get("run_config"), dict):
        raise UserError(f"{path} is not a checkpoint of vinvl.train: it lacks the '{OUR_KEY}' record.")
    for key in ("state_dict", "hyper_parameters"):
        if not isinstance(checkpoint.get(key), dict):
            raise UserError(f"{path} is not a whole checkpoint of vinvl.train: it lacks '{key}'.")
    plain_tensors(checkpoint["state_dict"], str(path))
    plain = [ours, checkpoint["hyper_parameters"]]
    try:
        inspect_plain(plain)
        refuse_half_characters(plain)
    except ValueError as error:
        raise UserError(f"{path} is not a checkpoint of vinvl.train ({error}): it is damaged.") from None
    if isinstance(decoding := checkpoint["hyper_parameters"].get("decoding"), dict):
        for name in DELETED_DECODING:
            decoding.pop(name, None)
    return checkpoint


def load_into(task: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Loads a checkpoint's weights into a task built to the same shape.

    Raises:
        UserError: names or shapes differ; the sentence names the first that does.
    """
    own, found = task.state_dict(), checkpoint["state_dict"]
    for name, tensor in own.items():
        if name not in found:
            raise UserError(f"{path} has no weight '{name}', which this task's model needs: it is of another model.")
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{path}: weight '{name}' is of shape {tuple(found[name].shape)}, the model's is {tuple(tensor.shape)}."
            )
    task.load_state_dict({name: found[name] for name in own})
