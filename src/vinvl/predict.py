"""Answer a split's questions: `python -m vinvl.predict ckpt_path=FILE [data.predict_split=NAME]`."""

import json
from pathlib import Path

import hydra
import pytorch_lightning as pl
import torch.distributed
from hydra.utils import instantiate
from omegaconf import DictConfig

from vinvl.callbacks import progress
from vinvl.data.json_files import atomic_write
from vinvl.restore import restore
from vinvl.runs import config_directory, register_resolvers, run_door
from vinvl.tasks.vqa import Prediction

register_resolvers()


def predict(config: DictConfig) -> list[Prediction]:
    """Predictions for `data.predict_split`, written to `config.paths.output_dir` in two files.

    results.json: [{"question_id", "answer"}], the official VQA result format. predictions.jsonl: one line per question
    with its five best answers and their probabilities. Both are in the order of the question file.
    """
    pl.seed_everything(config.seed, verbose=False)
    restored = restore(config)
    restored.datamodule.setup("predict")
    trainer: pl.Trainer = instantiate(config.trainer, callbacks=[progress()], logger=False, enable_checkpointing=False)
    batches = trainer.predict(restored.task, datamodule=restored.datamodule) or []
    predictions = in_file_order(gather([prediction for batch in batches for prediction in batch]))
    if trainer.is_global_zero:
        output_dir = Path(config.paths.output_dir)
        write_predictions(predictions, output_dir)
        print(f"{len(predictions):,} answers to '{restored.data.predict_split}':")
        print(f"official result file:  {output_dir / 'results.json'}")
        print(f"five best answers:     {output_dir / 'predictions.jsonl'}")
    return predictions


def gather(predictions: list[Prediction]) -> list[Prediction]:
    """The predictions of all ranks, on every rank."""
    if not torch.distributed.is_initialized():
        return predictions
    parts: list[list[Prediction]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, predictions)
    return [prediction for part in parts for prediction in part]


def in_file_order(predictions: list[Prediction]) -> list[Prediction]:
    """Sorted as in the question file: batches come longest first."""
    return sorted(predictions, key=lambda prediction: prediction.position)


def write_predictions(predictions: list[Prediction], folder: Path) -> None:
    """results.json and predictions.jsonl, each whole or not at all."""
    with atomic_write(folder / "results.json") as file:
        json.dump([{"question_id": one.question_id, "answer": one.answers[0]} for one in predictions], file)
    with atomic_write(folder / "predictions.jsonl") as file:
        for one in predictions:
            top = [{"answer": a, "score": round(p, 6)} for a, p in zip(one.answers, one.probabilities, strict=True)]
            file.write(json.dumps({"question_id": one.question_id, "top": top}, ensure_ascii=False) + "\n")


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="predict")
def main(config: DictConfig) -> None:
    run_door(predict, config)


if __name__ == "__main__":
    main()
