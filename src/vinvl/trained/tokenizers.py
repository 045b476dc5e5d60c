"""The tokenizer that belongs to a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import BertTokenizer, PreTrainedTokenizerBase

from vinvl.data.text import load_tokenizer, opened_tokenizer
from vinvl.errors import UserError
from vinvl.models.checkpoint_files import CheckpointFiles
from vinvl.tasks.checkpoints import OUR_KEY

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
VOCABULARY = "vocab.txt"


def find_tokenizer(
    name: str | None, files: CheckpointFiles, ours: Mapping[str, Any]
) -> tuple[str, PreTrainedTokenizerBase]:
    """The tokenizer that a person named, or else that of the training run, or else the one beside the weights.

    Raises:
        UserError: there is none.
    """
    if name is None and ours:
        data = ours[OUR_KEY]["run_config"].get("data")
        said = data.get("tokenizer") if isinstance(data, dict) else None
        name = said if isinstance(said, str) else None
    if name is None and not Path(files.name).expanduser().exists():
        name = files.name  # of a model on the hub, only the weights have been downloaded
    folder = Path(name).expanduser() if name is not None else files.weights.parent
    if not any((folder / one).is_file() for one in TOKENIZER_FILES) and (folder / VOCABULARY).is_file():
        return str(folder), tokenizer_of_vocabulary(folder / VOCABULARY)  # as Oscar was published
    if name is not None:
        return name, load_tokenizer(name)
    if not any((folder / one).is_file() for one in TOKENIZER_FILES):
        raise UserError(
            f"No tokenizer lies beside {files.name}: pass tokenizer=bert-base-uncased, or the folder of the one that "
            "the model was trained with."
        )
    return str(folder), load_tokenizer(folder)


def tokenizer_of_vocabulary(path: Path) -> PreTrainedTokenizerBase:
    """BERT's lower-casing tokenizer of a vocab.txt alone.

    Raises:
        UserError: it is no vocabulary of BERT's.
    """
    try:
        words = path.read_text(encoding="utf-8").splitlines()
        missing = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word not in words]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); get the file again, or pass tokenizer=NAME.") from None
    if missing:
        raise UserError(f"{path} is no vocabulary of BERT's: it has no {missing[0]}; pass tokenizer=NAME.")
    return opened_tokenizer(lambda: BertTokenizer.from_pretrained(path.parent, do_lower_case=True), str(path.parent))
